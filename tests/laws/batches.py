"""Random small cases for any objective: what it declares that it needs, it is given."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logratio.batch import STREAMS, Batch, Policy
from logratio.lab import dense
from logratio.objective import Objective, total_loss
from logratio.part import Needs

VOCABULARY = 5
ROWS = 8  # two prompts of four rollouts; pairs stay within a prompt
TOKENS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """An objective, the model's numbers for a batch, and the batch, prepared."""

    objective: Objective
    logits: Tensor  # [B, T+1, V]
    reference: Tensor
    ids: Tensor
    heads: dict[str, Tensor]
    scalars: dict[str, Tensor]
    batch: Batch

    def leaves(self) -> dict[str, Tensor]:
        """Returns everything that a gradient may reach."""
        return {"logits": self.logits, **self.heads, **self.scalars}

    def policy(self, rows: Any = slice(None)) -> Policy:
        """Returns what the model says of some rows."""
        return dense.read(
            self.logits[rows],
            self.ids[rows],
            needs=self.objective.declared(),
            reference=self.reference[rows],
            heads={name: head[rows] for name, head in self.heads.items()},
            scalars=self.scalars,
        )

    def loss(self) -> Tensor:
        """Returns the loss of the whole batch."""
        terms = self.objective(self.policy(), self.batch)
        return total_loss(terms, self.objective.weights(terms, self.batch), self.batch)

    def loss_of_parts(self, parts: list[Tensor]) -> Tensor:
        """Returns the sum of the losses of the batch's parts, under the whole batch's weights."""
        total = torch.zeros((), dtype=self.logits.dtype)
        for rows in parts:
            part = self.batch.rows(rows)
            terms = self.objective(self.policy(rows), part)
            whole = self.objective.weights(terms, self.batch, part=part)
            cut = {name: weight.rows(rows) for name, weight in whole.items()}
            total = total + total_loss(terms, cut, part)
        return total

    def gradients(self, loss: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the slope of the loss in every leaf; zeros where it does not reach."""
        leaves = self.leaves()
        loss = self.loss() if loss is None else loss
        if not loss.requires_grad:
            return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), slopes, strict=True)
        return {n: torch.zeros_like(leaf) if g is None else g for (n, leaf), g in pairs}


def case(objective: Objective, seed: int, *, holes: bool = True) -> Case:
    """Returns a random case of eight ragged rows, in float64, off policy and off reference."""
    generator = torch.Generator().manual_seed(seed)
    declared = objective.declared()

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = random_mask(generator, holes=holes)
    logits, reference = normal(ROWS, TOKENS + 1, VOCABULARY), normal(ROWS, TOKENS + 1, VOCABULARY)
    ids = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=generator)
    old = dense.taken(logits.log_softmax(-1), ids) + normal(ROWS, TOKENS, scale=0.3)
    streams = {
        name: column(name, declared, normal, generator, mask) for name in declared.streams - {"old"}
    }
    truth = {**dense.reference_columns(reference, ids), "old": old}
    streams |= {name: truth[name] for name in truth if name in declared.streams or name == "old"}
    fields = {name: streams.pop(name) for name in STREAMS if name in streams}
    batch = Batch(mask=mask, group=torch.arange(ROWS) // 4, **fields, columns=streams)
    return Case(
        objective=objective,
        logits=logits.requires_grad_(),
        reference=reference,
        ids=ids,
        heads={name: normal(ROWS, TOKENS + 1).requires_grad_() for name in sorted(declared.heads)},
        scalars={
            name: (start + normal(1)[0]).requires_grad_()
            for name, start in sorted(declared.scalars.items())
        },
        batch=objective.prepare(batch),
    )


def random_mask(generator: torch.Generator, *, holes: bool) -> Tensor:
    """Returns rows of 1 to 5 tokens; with holes, the second of some longer rows is not chosen."""
    lengths = torch.randint(1, TOKENS + 1, (ROWS,), generator=generator)
    mask = torch.arange(TOKENS) < lengths[:, None]
    if holes:
        hole = torch.rand(ROWS, generator=generator) < 0.3
        mask[:, 1] &= ~(hole & (lengths > 2))
    return mask


def column(
    name: str, declared: Needs, normal: Any, generator: torch.Generator, mask: Tensor
) -> Tensor:
    """Returns a random stream of the declared shape; some names have a range of their own."""
    shape = {"row": (ROWS,), "token": (ROWS, TOKENS), "state": (ROWS, TOKENS + 1)}
    size = shape[declared.shape(name)]
    uniform = torch.rand(*size, generator=generator, dtype=torch.float64)
    special = {
        "reward": (uniform > 0.5).to(torch.float64),
        "next_value": uniform,
        "importance": uniform,
        "entropy": uniform,
        "truncated": uniform < 0.4,
        "step_end": uniform < 0.4,
        "drawn": 1 + uniform,
        "behaviour": -1.5 + 0.3 * uniform,
        "pair": torch.arange(ROWS),
        "split": shared_tokens(generator, mask),
    }
    return special[name] if name in special else normal(*size)


def shared_tokens(generator: torch.Generator, mask: Tensor) -> Tensor:
    """Returns a random split of each pair, within the shorter one of its rows."""
    shorter = torch.minimum(mask[0::2].sum(1), mask[1::2].sum(1))
    split = (torch.rand(len(shorter), generator=generator) * (shorter + 1)).floor()
    return split.to(torch.float64).repeat_interleave(2)


def padded(given: Case, before: int, after: int, fill: float) -> Case:
    """Returns the case with more columns that no token stands in, full of `fill`."""

    def longer(stream: Tensor) -> Tensor:
        if stream.dim() < 2:
            return stream
        value = fill if stream.is_floating_point() else 0
        return torch.nn.functional.pad(stream.detach(), (before, after), value=value)

    def rows(logits: Tensor) -> Tensor:
        flat = logits.detach().transpose(1, 2)
        return torch.nn.functional.pad(flat, (before, after), value=0.0).transpose(1, 2)

    batch = given.batch
    fields = {n: longer(getattr(batch, n)) for n in STREAMS if getattr(batch, n) is not None}
    columns = {name: longer(stream) for name, stream in batch.columns.items()}
    mask = torch.nn.functional.pad(batch.mask, (before, after), value=False)
    return replace(
        given,
        logits=rows(given.logits).requires_grad_(),
        reference=rows(given.reference),
        ids=torch.nn.functional.pad(given.ids, (before, after)),
        heads={n: longer(head).requires_grad_() for n, head in given.heads.items()},
        batch=replace(batch, mask=mask, **fields, columns=columns),
    )


def reordered(given: Case, order: Tensor) -> Case:
    """Returns the case with its rows in another order."""
    return replace(
        given,
        logits=given.logits.detach()[order].requires_grad_(),
        reference=given.reference[order],
        ids=given.ids[order],
        heads={n: head.detach()[order].requires_grad_() for n, head in given.heads.items()},
        batch=given.batch.rows(order),
    )
