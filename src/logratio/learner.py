"""One update: packs, forward, objective, backward, clip, step."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, cast

import torch
from torch import Tensor

from logratio.batch import Batch, Policy
from logratio.model.masters import Masters, Precision
from logratio.model.memory import keep_freed
from logratio.model.network import Network, Reference
from logratio.model.pack import Pack, even, fitting, packs, units_of
from logratio.model.shard import full, shard
from logratio.objective import Objective, total_loss, watched
from logratio.ranks import ALONE, Ranks
from logratio.records import Rollout
from logratio.settings import AtLeastOne, AtLeastZero, Interval, Positive, Refused

Decay = Annotated[float, Interval("[0, 1)")]


@dataclass(frozen=True, kw_only=True)
class Update:
    """How an optimiser step is made."""

    lr: Positive = 1e-4
    head_lr: Positive = 1e-2  # of named heads and learned scalars, which have no weight decay
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    decay: AtLeastZero = 0.0
    clip_norm: Positive | None = 1.0
    warmup: int = 0  # steps of linear rise
    steps: int | None = None  # where the linear fall to 0 ends; None: the rate stays
    budget: AtLeastOne | None = None  # tokens of a micro-batch; None: what suits the batch
    precision: Precision = "fp32"  # fp32 computes in the type that the model was loaded in
    patience: AtLeastOne = 5  # non-finite gradients in a row before the run stops


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What one update came to."""

    loss: float
    grad_norm: float
    lr: float
    skipped: bool
    tokens: int
    watch: Mapping[str, float] = field(default_factory=dict[str, float])


class Stopped(RuntimeError):
    """Too many gradients in a row were not finite."""


class Part:
    """The loss of a micro-batch, of any of its rows, and what was watched of those."""

    def __init__(self, objective: Objective, batch: Batch, rows: Tensor) -> None:
        """Keeps the whole batch, whose totals count, and the rows of the micro-batch."""
        self.objective, self.batch, self.rows = objective, batch, rows
        self.by_row = objective.declared().couples == "row"
        self.watch: dict[str, float] = {}

    def __call__(self, policy: Policy, rows: slice) -> Tensor:
        """Returns what some rows of the micro-batch add to the loss of the batch."""
        index = self.rows[rows]
        part = self.batch.rows(index)
        terms = self.objective(policy, part)
        whole = self.objective.weights(terms, self.batch, part=part)
        weights = {name: weight.rows(index) for name, weight in whole.items()}
        for name, value in watched(terms, weights, part).items():
            self.watch[name] = self.watch.get(name, 0.0) + float(value)
        return total_loss(terms, weights, part)


class Learner:
    """A network, its optimiser and an objective; `update` takes one step on one batch.

    On several ranks each holds its part of the network and the whole batch, and does its share of
    the micro-batches; what comes back is about the whole batch.
    """

    def __init__(
        self, network: Network, objective: Objective, how: Update, *, ranks: Ranks = ALONE
    ) -> None:
        """Makes one optimiser with two rates: the model's, and its heads' and scalars'."""
        self.network, self.objective, self.how, self.ranks = network, objective, how, ranks
        if ranks.size > 1:
            shard(network, ranks, dtype=torch.bfloat16 if how.precision == "bf16" else None)
        keep_freed()
        self.taken = self.bad = 0
        self.seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}  # of the last update
        self.masters = Masters(network.model, how.precision if ranks.size == 1 else "fp32")
        own = self.masters.weights()
        added = [*network.heads.parameters(), *network.scalars.parameters()]
        if not own and not added:
            raise Refused("`model` has no parameter that can be trained")
        matrices = [parameter for parameter in own if parameter.dim() > 1]
        vectors = [parameter for parameter in own if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "lr": how.lr, "weight_decay": how.decay},
            {"params": vectors, "lr": how.lr, "weight_decay": 0.0},
            {"params": added, "lr": how.head_lr, "weight_decay": 0.0},
        ]
        present = [group for group in groups if group["params"]]
        self.rates = [float(str(group["lr"])) for group in present]
        self.parameters = [*own, *added]
        self.optimizer = torch.optim.AdamW(present, betas=how.betas, fused=True)

    def update(
        self, batch: Batch, rollouts: Sequence[Rollout], *, reference: Reference | None = None
    ) -> Learned:
        """Returns what one optimiser step on this batch came to; row i is rollout i."""
        batch = self.objective.prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        loss, watch = self.backward(batch, rollouts, reference=reference)
        with self.timed("optimizer"):
            length, finite = self.step(loss)
        rate = self.rate()
        self.taken += 1
        tokens = int(batch.mask.sum())
        return Learned(
            loss=loss,
            grad_norm=length,
            lr=self.how.lr * rate,
            skipped=not finite,
            tokens=tokens,
            watch=watch,
        )

    def step(self, loss: float) -> tuple[float, bool]:
        """Takes the step, unless loss or gradient is not finite; returns its norm and whether."""
        self.masters.gather()
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )
        length = float(full(norm))
        finite = math.isfinite(length) and math.isfinite(loss)
        self.bad = 0 if finite else self.bad + 1
        if finite:
            if self.how.clip_norm is not None and length > self.how.clip_norm:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.how.clip_norm, norm)
            for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = base * self.rate()
            self.optimizer.step()
            self.masters.refresh()
        elif self.bad >= self.how.patience:
            raise Stopped(f"{self.bad} gradients in a row were not finite: the last loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)  # sampling comes next, and needs the memory
        return length, finite

    @contextmanager
    def timed(self, phase: str) -> Generator[None]:
        """Adds the seconds that something takes to those of a phase of the update."""
        before = perf_counter()
        yield
        self.seconds[phase] += perf_counter() - before

    def backward(
        self, batch: Batch, rollouts: Sequence[Rollout], *, reference: Reference | None
    ) -> tuple[float, dict[str, float]]:
        """Returns the loss and what was watched; leaves the gradient of the whole batch.

        A micro-batch that does not count keeps this rank in step with the others.
        """
        self.ranks.check_same("rollouts", tuple((one.prompt_ids, one.ids) for one in rollouts))
        loss, watch = 0.0, dict[str, float]()
        for pack, counts in self.ranks.turns(self.cut(batch, rollouts)):
            with self.timed("forward"):
                part = Part(self.objective, batch, pack.rows)
                share = self.network(pack.to(batch.mask.device), reference, loss=part)
                loss += counts * float(share.detach())
            for name, value in part.watch.items():
                watch[name] = watch.get(name, 0.0) + counts * value
            if share.requires_grad:
                # sharding averages gradients over the ranks, but the loss is their sum
                slope = share * (counts * self.ranks.size)
                with self.timed("backward"):
                    slope.backward()  # pyright: ignore[reportUnknownMemberType]
        loss, *values = self.ranks.added([loss, *watch.values()])
        return loss, dict(zip(watch, values, strict=True))

    def cut(self, batch: Batch, rollouts: Sequence[Rollout]) -> list[Pack]:
        """Returns the batch's micro-batches, longest first: packs that part no unit.

        Within the budget; for several ranks as even as fills their turns.
        """
        lengths = [len(rollout.ids) for rollout in rollouts]
        if len(rollouts) != len(batch.group) or max(lengths) != batch.mask.shape[1]:
            raise Refused(f"`rollouts` are {len(rollouts)} of up to {max(lengths)} tokens, but "
                          f"the batch {list(batch.mask.shape)} is made of other ones")  # fmt: skip
        pairs = [-1] * len(rollouts)
        if batch.pair is not None:
            pairs = cast(list[int], batch.pair.tolist())
        couples = self.objective.declared().couples
        units = units_of(cast(list[int], batch.group.tolist()), pairs, couples)
        budget = self.how.budget or fitting(rollouts, units)
        if self.ranks.size > 1:
            budget = even(rollouts, units, budget=budget, ranks=self.ranks.size)
        made = packs(rollouts, budget=budget, units=units)
        return sorted(made, key=lambda pack: pack.ids.shape[1], reverse=True)

    def rate(self) -> float:
        """Returns the share of the learning rate at this step: rise, then a fall to 0 if any."""
        rise = min(1.0, (self.taken + 1) / self.how.warmup) if self.how.warmup else 1.0
        if self.how.steps is None:
            return rise
        left = (self.how.steps - self.taken) / max(1, self.how.steps - self.how.warmup)
        return rise * min(1.0, max(0.0, left))
