"""Random small batches for any objective: whatever it declares that it needs, it is given."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logratio.batch import STREAMS, Batch, Policy, Terms
from logratio.lab import dense
from logratio.lab.dense import Rows
from logratio.objective import Objective, total_loss
from logratio.part import Needs

GROUPS = (0, 0, 0, 0, 1, 1, 1, 1, 1)
PAIRS = (0, 1, 2, 3, 4, 5, 6, 7, -1)  # the last row has no partner
TOKENS = 5
VOCABULARY = 5

Leaves = Mapping[str, Tensor]  # what a gradient may reach: the logits, heads and scalars by name


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """An objective, a prepared batch for it, and the numbers of a model that has seen it."""

    objective: Objective
    batch: Batch
    ids: Int[Tensor, "B T"]
    reference: Rows
    leaves: Leaves

    def policy(self, leaves: Leaves) -> Policy:
        """Returns what a model with these numbers says of the batch."""
        declared = self.objective.declared()
        return dense.read(
            leaves["logits"],
            self.ids,
            needs=declared,
            reference=self.reference,
            heads={name: leaves[name] for name in declared.heads},
            scalars={name: leaves[name] for name in declared.scalars},
        )

    def loss(self, leaves: Leaves) -> Float[Tensor, ""]:
        """Returns the loss of the whole batch."""
        return self.loss_of(self.objective(self.policy(leaves), self.batch))

    def loss_of(self, terms: Terms) -> Float[Tensor, ""]:
        """Returns the one number that these terms come to; nothing is watched."""
        unwatched = Terms(terms=terms.terms)
        return total_loss(unwatched, self.objective.weights(unwatched, self.batch), self.batch)


def draw(objective: Objective, seed: int) -> Draw:
    """Returns ragged rows in float64, shuffled, with a hole, off policy and off reference."""
    generator = torch.Generator().manual_seed(seed)
    declared = objective.declared()
    order = torch.randperm(len(GROUPS), generator=generator)
    group, pair = torch.tensor(GROUPS)[order], torch.tensor(PAIRS)[order]
    mask = random_mask(generator)
    logits = normal(generator, len(GROUPS), TOKENS + 1, VOCABULARY)
    reference = logits + normal(generator, len(GROUPS), TOKENS + 1, VOCABULARY) / 2
    ids = torch.randint(VOCABULARY, mask.shape, generator=generator)
    logp = dense.taken(logits.log_softmax(-1), ids)
    known = {
        "old": logp + normal(generator, *mask.shape) / 3,
        "behaviour": logp + normal(generator, *mask.shape) / 3,
        "pair": pair,
        "reward": reward(objective, generator),
        "split": split(pair, mask, generator),
        **dense.reference_columns(reference, ids),
    }
    streams = {
        name: known[name] if name in known else column(name, declared, mask, generator)
        for name in sorted(declared.streams | {"reward"})  # a batch is as precise as what it holds
    }
    fields = {name: streams.pop(name) for name in STREAMS if name in streams}
    batch = Batch(mask=mask, group=group, **fields, columns=streams)
    return Draw(
        objective=objective,
        batch=objective.prepare(batch),
        ids=ids,
        reference=reference,
        leaves=leaves(declared, logits, generator),
    )


def leaves(declared: Needs, logits: Rows, generator: torch.Generator) -> Leaves:
    """Returns the logits, and every head and scalar that is needed, at random."""
    found = {"logits": logits}
    for name in sorted(declared.heads):
        found[name] = normal(generator, len(GROUPS), TOKENS + 1)
    for name, start in sorted(declared.scalars.items()):
        found[name] = start + normal(generator)
    return found


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Returns numbers in [0, 1) in float64."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def random_mask(generator: torch.Generator) -> Bool[Tensor, "B T"]:
    """Returns rows of 1 to 5 tokens; in one a tool wrote a token, one starts a place later."""
    lengths = torch.randint(1, TOKENS + 1, (len(GROUPS),), generator=generator)
    lengths[:2] = TOKENS
    mask = torch.arange(TOKENS) < lengths[:, None]
    mask[0, 2] = mask[1, 0] = False
    return mask


def reward(objective: Objective, generator: torch.Generator) -> Float[Tensor, " B"]:
    """Returns rewards in the range that an objective accepts: 0 and 1, below 0, or in [0, 1)."""
    if objective.name == "importance":
        return (torch.arange(len(GROUPS)) % 2).to(torch.float64)  # both kinds in every group
    return uniform(generator, len(GROUPS)) - float(objective.name == "spo")


def split(
    pair: Int[Tensor, " B"], mask: Bool[Tensor, "B T"], generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Returns how many tokens the rows of a pair share: fewer than the shorter of them has."""
    rows, found = pair.argsort(), torch.zeros_like(pair)
    first, second = rows[pair[rows] >= 0].view(-1, 2).unbind(1)
    shorter = torch.minimum(mask[first].sum(1), mask[second].sum(1)).clamp(max=2)
    found[first] = (uniform(generator, len(first)) * shorter).long()
    found[second] = found[first]
    return found


def column(
    name: str, declared: Needs, mask: Bool[Tensor, "B T"], generator: torch.Generator
) -> Tensor:
    """Returns a random stream of the declared shape; some names have a range of their own."""
    rows, tokens = mask.shape
    shapes = {"row": (rows,), "token": (rows, tokens), "state": (rows, tokens + 1)}
    shape = shapes[declared.shape(name)]
    if name in ("next_value", "importance", "entropy", "old_kl"):
        return uniform(generator, *shape)
    if name in ("truncated", "step_end"):
        return uniform(generator, *shape) < 0.4
    if name in ("drawn", "q0_samples"):
        return 1 + uniform(generator, *shape)
    if name == "token_reward":
        return -uniform(generator, *shape)
    return normal(generator, *shape)
