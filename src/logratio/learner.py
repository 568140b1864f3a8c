"""One update: packs, forward, objective, backward, clip, step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, cast

import torch
from torch import Tensor

from logratio.batch import Batch
from logratio.model.network import Network
from logratio.model.pack import Pack, packs, units_of
from logratio.objective import Objective, total_loss, watched
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
    budget: AtLeastOne = 4096  # tokens of a micro-batch
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


class Learner:
    """A network, its optimiser and an objective; `update` takes one step on one batch."""

    def __init__(self, network: Network, objective: Objective, how: Update) -> None:
        """Makes one optimiser with two rates: the model's, and its heads' and scalars'."""
        self.network, self.objective, self.how = network, objective, how
        self.taken = self.bad = 0
        own = [parameter for parameter in network.model.parameters() if parameter.requires_grad]
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
        self, batch: Batch, rollouts: Sequence[Rollout], *, reference: Network | None = None
    ) -> Learned:
        """Returns what one optimiser step on this batch came to; row i is rollout i."""
        batch = self.objective.prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss, watch = self.backward(batch, rollouts, reference=reference)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )
        finite = bool(norm.isfinite()) and math.isfinite(loss)
        rate = self.rate()
        self.bad = 0 if finite else self.bad + 1
        if finite:
            if self.how.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.how.clip_norm, norm)
            for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = base * rate
            self.optimizer.step()
        elif self.bad >= self.how.patience:
            raise Stopped(f"{self.bad} gradients in a row were not finite: the last loss is {loss}")
        self.taken += 1
        tokens = int(batch.mask.sum())
        return Learned(
            loss=loss,
            grad_norm=float(norm),
            lr=self.how.lr * rate,
            skipped=not finite,
            tokens=tokens,
            watch=watch,
        )

    def backward(
        self, batch: Batch, rollouts: Sequence[Rollout], *, reference: Network | None
    ) -> tuple[float, dict[str, float]]:
        """Returns the loss and what was watched; leaves the gradient of the whole batch."""
        loss, watch = 0.0, dict[str, float]()
        for pack in self.cut(batch, rollouts):
            part, here = batch.rows(pack.rows), pack.to(batch.mask.device)
            policy = self.network(here, reference)
            terms = self.objective(policy, part)
            whole = self.objective.weights(terms, batch, part=part)
            weights = {name: weight.rows(pack.rows) for name, weight in whole.items()}
            share = total_loss(terms, weights, part)
            loss += float(share.detach())
            for name, value in watched(terms, weights, part).items():
                watch[name] = watch.get(name, 0.0) + float(value)
            if share.requires_grad:
                share.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss, watch

    def cut(self, batch: Batch, rollouts: Sequence[Rollout]) -> list[Pack]:
        """Returns the batch's micro-batches: packs within the budget that part no unit."""
        lengths = [len(rollout.ids) for rollout in rollouts]
        if len(rollouts) != len(batch.group) or max(lengths) != batch.mask.shape[1]:
            raise Refused(f"`rollouts` are {len(rollouts)} of up to {max(lengths)} tokens, but "
                          f"the batch {list(batch.mask.shape)} is made of other ones")  # fmt: skip
        pairs = [-1] * len(rollouts)
        if batch.pair is not None:
            pairs = cast(list[int], batch.pair.tolist())
        couples = self.objective.declared().couples
        units = units_of(cast(list[int], batch.group.tolist()), pairs, couples)
        return packs(rollouts, budget=self.how.budget, units=units)

    def rate(self) -> float:
        """Returns the share of the learning rate at this step: rise, then a fall to 0 if any."""
        rise = min(1.0, (self.taken + 1) / self.how.warmup) if self.how.warmup else 1.0
        if self.how.steps is None:
            return rise
        left = (self.how.steps - self.taken) / max(1, self.how.steps - self.how.warmup)
        return rise * min(1.0, max(0.0, left))


def score(
    network: Network, rollouts: Sequence[Rollout], *, budget: int = 4096
) -> dict[str, Tensor]:
    """Returns what a frozen network says of rollouts: `logp`, `logit`, `entropy` and its heads."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for pack in packs(rollouts, budget=budget):
            policy = network(pack)
            streams = {"logp": policy.logp, "logit": policy.logit, "entropy": policy.entropy}
            for name, values in {**streams, **policy.heads}.items():
                if values is None:
                    continue
                if name not in found:
                    found[name] = values.new_zeros(len(rollouts), values.shape[1])
                found[name][pack.rows] = values
    if any(math.isnan(float(values.sum())) for values in found.values()):
        raise ValueError("the model gave a log-probability that is not a number")
    return found
