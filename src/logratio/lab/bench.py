"""The exact bench: tabular softmax policies, trained on every sequence there is at once.

Each sequence of the tree is a row, and what it would be sampled with multiplies the weight of its
items under stop-gradient. The objective's own credit, loss and average do the rest, so what is
optimised is an exact expectation, and must end where the closed form says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logratio.batch import Batch, Policy, Terms, Weights
from logratio.lab import dense
from logratio.lab.rows import Row
from logratio.lab.tree import Law, Table, World, paths, tokens
from logratio.objective import Objective, total_loss
from logratio.part import needs

PART = "fixed points"
LIMITS = {"gradient": 1e-9, "variation": 1e-3}
Parameters = Mapping[str, Tensor]  # logits [S, M, V], heads [S, M], scalars []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """Which sequences of which problems are rows, and how often each would be drawn."""

    problem: Int[Tensor, " B"]
    sequence: Int[Tensor, " B"]
    share: Float[Tensor, " B"] | None  # None: as often as the policy itself draws it
    pair: Int[Tensor, " B"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Experiment:
    """An objective on data whose expectation is exact."""

    objective: Objective
    world: World
    data: Data
    columns: Mapping[str, Law] = field(default_factory=dict[str, Tensor])  # a number per sequence
    old: Table | None = None  # logits of the policy that sampled; None: the policy itself

    def loss(self, parameters: Parameters, batch: Batch | None = None) -> Float[Tensor, ""]:
        """Returns the expected loss, summed over the problems; a batch that stays may be given."""
        policy = self.policy(parameters)
        batch = self.batch(parameters) if batch is None else batch
        terms = Terms(terms=self.objective(policy, batch).terms)
        share = self.share(parameters)
        return total_loss(terms, expected(self.objective.weights(terms, batch), share), batch)

    @property
    def moves(self) -> bool:
        """Whether the batch changes with the parameters: its log-probs or values are theirs."""
        declared = self.objective.declared()
        return "value" in declared.heads or (self.old is None and "old" in declared.streams)

    def share(self, parameters: Parameters) -> Float[Tensor, " B"]:
        """Returns how often each row is drawn."""
        if self.data.share is not None:
            return self.data.share
        law = self.world.tree.law(parameters["logits"].detach())
        return law[self.data.problem, self.data.sequence].exp()

    def policy(self, parameters: Parameters) -> Policy:
        """Returns what the tables say of every row."""
        declared = self.objective.declared()
        return dense.read(
            self.rows(parameters["logits"]),
            self.ids(),
            needs=declared,
            reference=self.rows(self.world.reference),
            heads={name: self.rows(parameters[name]) for name in declared.heads},
            scalars={name: parameters[name] for name in declared.scalars},
        )

    def batch(self, parameters: Parameters) -> Batch:
        """Returns the prepared batch, in which each problem is a group."""
        ids, place = self.ids(), (self.data.problem, self.data.sequence)
        reference = self.rows(self.world.reference)
        sampler = parameters["logits"].detach() if self.old is None else self.old
        asked = needs(policy=["kl"])
        old = dense.read(self.rows(sampler), ids, needs=asked, reference=reference)
        columns = {"old_kl": old.stream("kl"), **dense.reference_columns(reference, ids)}
        columns |= {name: column[place] for name, column in self.columns.items()}
        if "value" in parameters:
            columns["value"] = self.rows(parameters["value"]).detach()
        batch = Batch(
            mask=torch.ones_like(ids, dtype=torch.bool),
            group=self.data.problem,
            pair=self.data.pair,
            reward=self.world.reward[place],
            old=old.logp,
            ref=columns.pop("ref"),
            columns=columns,
        )
        return self.objective.prepare(batch)

    def rows(self, table: Tensor) -> Tensor:
        """Returns a table's numbers on the states that each row passes."""
        path = paths(self.world.tree)[self.data.sequence]
        return table[self.data.problem[:, None], path]

    def ids(self) -> Int[Tensor, "B T"]:
        """Returns the tokens of each row."""
        return tokens(self.world.tree)[self.data.sequence]

    def gradient(self, parameters: Parameters, batch: Batch | None = None) -> dict[str, Tensor]:
        """Returns the gradient of the expected loss in every parameter."""
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        loss, reached = self.loss(leaves, batch), list(leaves.values())
        found = torch.autograd.grad(loss, reached, allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def law(self, parameters: Parameters) -> Law:
        """Returns the law of the sequences; of a reward model, the softmax of its scores."""
        if "score" not in parameters:
            return self.world.tree.law(parameters["logits"])
        after = 1 if self.objective.loss.resolved()["pooling"] == "mean" else -1
        states = paths(self.world.tree)[:, after:]
        return parameters["score"][:, states].mean(-1).log_softmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim:
    """That an experiment has its one fixed point at these parameters."""

    case: str
    experiment: Experiment
    optimum: Parameters
    rate: float = 0.3
    steps: int = 200
    part: str = PART
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)

    def row(self) -> Row:
        """Returns the gradient at the closed form, and how far from it an optimiser ends."""
        slopes = [slope.flatten() for slope in self.experiment.gradient(self.optimum).values()]
        ended = self.experiment.law(optimised(self))
        return Row(
            part=self.part,
            subject=self.experiment.objective.name,
            case=self.case,
            measured={
                "gradient": float(torch.cat(slopes).square().sum().sqrt()),
                "variation": variation(ended, self.experiment.law(self.optimum)),
            },
            limits=self.limits,
        )


def optimised(claim: Claim) -> dict[str, Tensor]:
    """Returns where Adam ends from the reference (all else 0), with its rate falling to 0.

    Written out, because the first use of torch's own loads its compiler, which takes seconds.
    """
    values, experiment = start(claim), claim.experiment
    batch = None if experiment.moves else experiment.batch(values)
    mean = {name: torch.zeros_like(value) for name, value in values.items()}
    square = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(claim.steps):
        rate = claim.rate * (1 - step / claim.steps)
        for name, slope in experiment.gradient(values, batch).items():
            mean[name] = 0.9 * mean[name] + 0.1 * slope
            square[name] = 0.999 * square[name] + 0.001 * slope.square()
            first, second = (1 - decay ** (step + 1) for decay in (0.9, 0.999))
            size = (square[name] / second).sqrt() + 1e-8
            values[name] = values[name] - rate * (mean[name] / first) / size
    return values


def start(claim: Claim) -> dict[str, Tensor]:
    """Returns the parameters that an optimisation starts from."""
    zeros = {name: torch.zeros_like(value) for name, value in claim.optimum.items()}
    return {**zeros, "logits": claim.experiment.world.reference}


def expected(weights: Mapping[str, Weights], share: Float[Tensor, " B"]) -> dict[str, Weights]:
    """Returns weights under which a sum over rows is an expectation, and nothing is divided."""
    one = torch.ones((), dtype=share.dtype)

    def of_rows(each: Tensor) -> Tensor:
        return share[:, None] if each.dim() == 2 else share

    return {
        name: Weights(each=weight.each * of_rows(weight.each), total=one)
        for name, weight in weights.items()
    }


def variation(law: Law, goal: Law) -> float:
    """Returns the total variation between two laws, in the problem where it is largest."""
    return float((law.exp() - goal.exp()).abs().sum(-1).amax() / 2)


def all_sequences(world: World, law: Law | None) -> Data:
    """Returns every sequence of every problem once, drawn by a law, or (None) by the policy."""
    problems, sequences = world.reward.shape
    return Data(
        problem=torch.arange(problems).repeat_interleave(sequences),
        sequence=torch.arange(sequences).repeat(problems),
        share=None if law is None else law.exp().flatten(),
    )


def all_pairs(world: World, chance: Float[Tensor, "S N N"]) -> Data:
    """Returns pairs of the first sequence with every other, each both ways round.

    `chance[s, i, j]` is how often the pair of i and j comes with i as the chosen one.
    """
    problems, sequences = world.reward.shape
    others = torch.arange(1, sequences)
    centre = torch.zeros_like(others)
    first, second = torch.cat([centre, others]), torch.cat([others, centre])
    both = torch.stack([first, second], 1).flatten().repeat(problems)
    return Data(
        problem=torch.arange(problems).repeat_interleave(2 * len(first)),
        sequence=both,
        share=chance[:, first, second].repeat_interleave(2, dim=1).flatten(),
        pair=torch.arange(len(both)),
    )
