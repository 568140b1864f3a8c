"""What an objective is: one pure function with its keep, credit, weight and average.

`loss(policy, batch, *, settings) -> Terms` calls no model, reads no config and divides nothing
across items. `coefficient(policy, batch, *, settings)` gives its slopes in closed form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms, Unit, Weights
from logratio.credit import CREDITS
from logratio.keep import KEEPS
from logratio.part import Needs, Part, needs
from logratio.settings import Refused, defaults, unknown
from logratio.weight import WEIGHTS

Slopes = Mapping[str, Mapping[str, Tensor]]  # term -> stream, head or scalar -> slope per item
TABLES = {"keep": KEEPS, "credit": CREDITS, "weight": WEIGHTS, "average": AVERAGES}
WATCH_UNITS: dict[Unit, str] = {
    "token": "per_token",
    "sequence": "per_sequence",
    "pair": "per_pair",
}


def agree(objective: "Objective") -> None:
    """Finds nothing wrong between the settings of an objective."""
    del objective


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss and its four parts; calling it gives the loss terms of a batch.

    `check` refuses settings that contradict each other and warns of those that rarely make sense.
    `presets` are settings with a name; `as_written` is the one of the source document.
    """

    name: str
    loss: Part
    coefficient: Callable[..., Slopes] | None = None
    keep: Part = KEEPS["everything"]
    credit: Part = CREDITS["none"]
    weight: Part = WEIGHTS["uniform"]
    average: Part = AVERAGES["per_token"]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    check: Callable[["Objective"], None] = agree

    def using(self, **settings: object) -> "Objective":
        """Returns this objective under more settings; an unknown one is refused.

        `clip=0.3` sets the loss, `credit="gae"` chooses a part, `credit.trace=0.9` (through
        `**{"credit.trace": 0.9}`) sets one, `preset="as_written"` comes before all others.
        """
        if "preset" in settings:
            name = str(settings["preset"])
            if name not in self.presets:
                raise Refused(unknown("preset", name, self.presets, owner=self.name))
            settings = {
                **self.presets[name],
                **{k: v for k, v in settings.items() if k != "preset"},
            }
        changed = self
        for key, value in sorted(settings.items(), key=lambda item: "." in item[0]):
            changed = changed.setting(key, value)
        changed.check_parts()
        changed.check(changed)
        return changed

    def check_parts(self) -> None:
        """Refuses a weight or a credit whose result the loss does not read."""
        read, made = self.loss.declared().streams, self.credit.declared().makes
        if self.weight.function is not WEIGHTS["uniform"].function and "weight" not in read:
            raise Refused(f"`weight` is `{self.weight.name}`, but `{self.name}` weighs no tokens")
        if made and not made & read:
            raise Refused(f"`credit` is `{self.credit.name}`, but `{self.name}` does not read "
                          f"{', '.join(sorted(made))}")  # fmt: skip

    def setting(self, key: str, value: object) -> "Objective":
        """Returns this objective with one setting changed, unchecked against the others."""
        slot, _, name = key.partition(".")
        if slot in TABLES and name:
            part: Part = getattr(self, slot)
            return replace(self, **{slot: part.using(**{name: value})})
        if slot in TABLES:
            return replace(self, **{slot: chosen(slot, value, self.name)})
        if key not in defaults(self.loss.function):
            known = [*defaults(self.loss.function), *TABLES, "preset"]
            raise Refused(unknown("setting", key, known, owner=self.name))
        return replace(self, loss=self.loss.using(**{key: value}))

    def declared(self) -> Needs:
        """Returns what must be computed before this objective can run, under its settings."""
        parts = (self.loss, self.credit, self.weight, self.average)
        joined = Needs()
        for part in parts:
            joined = joined | part.declared()
        return replace(joined, streams=joined.streams - joined.makes - {"weight"})

    def prepare(self, batch: Batch) -> Batch:
        """Returns the whole optimisation batch with its advantages and weights, ready to be cut."""
        batch = batch.clean()
        batch.require(self.declared())
        for name in sorted(self.declared().streams):
            if batch.stream(name).isnan().any():
                raise Refused(f"`{name}` holds nan, but it must be numbers: a rollout or a reward "
                              "that failed takes its group out of the batch")  # fmt: skip
        made = dict(self.credit(batch))
        advantage = made.pop("advantage", batch.advantage)
        batch = replace(batch, advantage=advantage, columns={**batch.columns, **made})
        return replace(batch, weight=self.weight(batch))

    def __call__(self, policy: Policy, batch: Batch) -> Terms:
        """Returns the terms of a prepared batch, or of a part of one."""
        policy, batch = self.admitted(policy, batch)
        return self.loss(policy, batch)

    def admitted(self, policy: Policy, batch: Batch) -> tuple[Policy, Batch]:
        """Returns both with every masked position at 0; refuses what the loss needs and misses."""
        wanted = self.loss.declared()
        if batch.weight is None:
            batch = replace(batch, weight=batch.mask.to(batch.dtype))
        batch.require(wanted)
        for name in sorted(wanted.policy):
            policy.stream(name)
        for kind in ("heads", "statistics", "scalars"):
            for name in sorted(getattr(wanted, kind)):
                if name not in getattr(policy, kind):
                    raise Refused(f"`{name}` is missing from the policy's {kind}: `{self.name}` "
                                  "declares it and the model must give it")  # fmt: skip
        return policy.clean(batch.mask), batch.clean()

    def weights(
        self, terms: Terms, batch: Batch, *, part: Batch | None = None
    ) -> dict[str, Weights]:
        """Returns the weights of every term, and of every watched quantity, over a whole batch.

        The terms may be those of a part of it: they only say what there is to be averaged.
        """
        found = {
            name: (term.average or self.average)(batch, term.unit)
            for name, term in terms.terms.items()
        }
        for name, values in terms.watch.items():
            unit = unit_of(values, part or batch)
            average = AVERAGES[WATCH_UNITS[unit]]
            found[f"watch.{name}"] = average(batch, unit)
        return found

    def slopes(self, policy: Policy, batch: Batch) -> dict[str, Tensor]:
        """Returns the closed-form gradient of the whole batch's loss, stream by stream."""
        if self.coefficient is None:
            raise Refused(f"`{self.name}` gives no closed-form `coefficient`")
        policy, batch = self.admitted(policy, batch)
        terms: Terms = self.loss(policy, batch)
        weights = self.weights(terms, batch)
        total: dict[str, Tensor] = {}
        for name, slopes in self.coefficient(policy, batch, **self.loss.resolved()).items():
            term, weight = terms.terms[name], weights[name]
            for stream, slope in slopes.items():
                scalar = stream in policy.scalars
                part = weighted(slope, term, weight, batch, scalar=scalar)
                if stream in policy.heads and part.shape[1] == batch.mask.shape[1]:
                    part = torch.nn.functional.pad(part, (0, 1))
                total[stream] = total[stream] + part if stream in total else part
        return total


def only(objective: Objective, name: str, *, when: bool, reads: str) -> None:
    """Refuses a setting of the loss that was changed but that nothing would read."""
    value = objective.loss.resolved()[name]
    if not when and value != defaults(objective.loss.function)[name]:
        raise Refused(f"`{name}` is {value!r}, but only {reads} reads it")


def chosen(slot: str, value: object, owner: str) -> Part:
    """Returns a part from its name, or a user's own function as one."""
    if isinstance(value, Part):
        return value
    if callable(value):
        return Part(value, needs(makes=["advantage"] if slot == "credit" else []))
    if str(value) not in TABLES[slot]:
        raise Refused(unknown(slot, str(value), TABLES[slot], owner=owner))
    return TABLES[slot][str(value)]


def unit_of(values: Tensor, batch: Batch) -> Unit:
    """Returns what a watched quantity is about, by its shape."""
    if values.dim() == 2:
        return "token"
    return "sequence" if values.shape[0] == batch.mask.shape[0] else "pair"


def safe(total: Tensor) -> Tensor:
    """Returns the total, or 1 where nothing counts: the sum above it is then exactly 0."""
    return torch.where(total > 0, total, 1.0)


def items(weight: Weights, unit: Unit, batch: Batch) -> Tensor:
    """Returns each item's weight in the shape of its loss."""
    return weight.each[batch.sides()[0]] if unit == "pair" else weight.each


def total_loss(terms: Terms, weights: Mapping[str, Weights], batch: Batch) -> Tensor:
    """Returns the one number to differentiate; the numbers of a batch's parts add up.

    `weights` are those of the whole batch, cut to the rows of this part.
    """
    total = torch.zeros((), dtype=batch.dtype, device=batch.mask.device)
    for name, term in terms.terms.items():
        each = items(weights[name], term.unit, batch)
        if each.shape != term.loss.shape:
            raise Refused(f"the weights of `{name}` have shape {list(each.shape)}, but its loss "
                          f"has {list(term.loss.shape)}: cut them as the batch was")  # fmt: skip
        total = total + term.coefficient * (each * term.loss).sum() / safe(weights[name].total)
    return total


def watched(terms: Terms, weights: Mapping[str, Weights], batch: Batch) -> dict[str, Tensor]:
    """Returns the mean of each watched quantity; the numbers of a batch's parts add up."""
    found: dict[str, Tensor] = {}
    for name, values in terms.watch.items():
        weight = weights[f"watch.{name}"]
        each = items(weight, unit_of(values, batch), batch)
        found[name] = (each * values.detach()).sum() / safe(weight.total)
    return found


def weighted(slope: Tensor, term: Term, weight: Weights, batch: Batch, *, scalar: bool) -> Tensor:
    """Returns a term's slope times what its items weigh, on the rows that the items stand on."""
    each = items(weight, term.unit, batch) * (term.coefficient / safe(weight.total))
    if scalar:
        return (each * slope).sum()
    if term.unit == "pair":
        first, second = batch.sides()
        on_rows = weight.each.new_zeros(batch.mask.shape[0])
        on_rows[first], on_rows[second] = each, each
        each = on_rows
    return (each if term.unit == "token" else each[:, None]) * slope
