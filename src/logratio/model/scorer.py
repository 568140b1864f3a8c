"""The scorer: frozen models turn rollouts into named streams, once a rollout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from logratio.batch import Batch, Policy
from logratio.model.adapter import Unadapted
from logratio.model.backbone import evaluating, output_layer
from logratio.model.network import Network, Reference
from logratio.model.pack import packs, units_of
from logratio.part import Needs
from logratio.ranks import ALONE, Ranks
from logratio.records import Rollout
from logratio.settings import Refused

Reader = Network | Unadapted
ACTIONS = ("logp", "logit", "entropy", "kl")

# a stream of the batch: whose it is, and what is read of that model
GIVEN = {
    "ref": ("reference", "logp"),
    "ref_logit": ("reference", "logit"),
    "value": ("policy", "value"),
    "entropy": ("policy", "entropy"),
    "old_kl": ("policy", "kl"),
    "importance": ("importance", "importance"),
}


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The models that only read, as they are now; a run that has no such model leaves it None."""

    policy: Network  # as it sampled
    reference: Reader | None = None
    lagged: Network | None = None  # an older copy of the policy
    importance: Network | None = None
    correlation: Callable[[Tensor], Tensor] | None = None  # of the importance head's numbers

    def __post_init__(self) -> None:
        """Refuses models read at two temperatures, and an importance head that nothing reads."""
        if (self.importance is None) != (self.correlation is None):
            raise Refused("`importance` and `correlation` must be given together: the one reads "
                          "the other's head")  # fmt: skip
        expected = self.policy.readout.temperature
        for name in ("reference", "lagged"):
            model: Reader | None = getattr(self, name)
            if model is not None and model.readout.temperature != expected:
                found = model.readout.temperature
                raise Refused(f"`{name}` is read at temperature {found}, but it must be "
                              f"{expected}, as the policy is")  # fmt: skip


def scored(
    batch: Batch,
    rollouts: Sequence[Rollout],
    needs: Needs,
    models: Frozen,
    *,
    budget: int = 4096,
    ranks: Ranks = ALONE,
) -> Batch:
    """Returns the batch with what it lacks of the needs, as the frozen models say; row i is i.

    What no model can say, as `old` or a column of the data, must have come with the rollouts.
    """
    made: dict[str, Tensor] = {}
    for owner, streams in lacking(batch, needs).items():
        model: Reader | None = getattr(models, owner)
        if model is None:
            name = next(iter(streams))
            raise Refused(f"`{name}` is read off the rollouts by the model `{owner}`, but that is "
                          "None")  # fmt: skip
        asked = asked_of(model, owner, streams, needs)
        said = score(model, rollouts, asked, reference=models.reference, budget=budget, ranks=ranks)
        made |= {name: said[read].to(batch.mask.device) for name, read in streams.items()}
    if models.correlation is not None and "importance" in made:
        made["importance"] = models.correlation(made["importance"])
    fields = {name: made.pop(name) for name in ("ref",) if name in made}
    return replace(batch, **fields, columns={**batch.columns, **made})


def lacking(batch: Batch, needs: Needs) -> dict[str, dict[str, str]]:
    """Returns, for each model, the streams that the batch lacks and what to read for each."""
    given = {**GIVEN, **{name: ("lagged", name) for name in needs.lagged}}
    found: dict[str, dict[str, str]] = {}
    for name in sorted(needs.streams):
        if getattr(batch, name, None) is not None or name in batch.columns:
            continue
        if name not in given:
            raise Refused(f"`{name}` is missing from the batch, and no model can say it: it must "
                          "come with the rollouts")  # fmt: skip
        owner, read = given[name]
        found.setdefault(owner, {})[name] = read
    return found


def asked_of(model: Reader, owner: str, streams: Mapping[str, str], needs: Needs) -> Needs:
    """Returns what a model must be asked for these streams; a head it does not have is refused."""
    wanted = set(streams.values())
    statistics = {name: one for name, one in needs.lagged.items() if name in wanted}
    states = {one.state for one in statistics.values() if one.state}
    heads = (wanted - {*ACTIONS, *statistics}) | states
    network = model.network if isinstance(model, Unadapted) else model
    for name in sorted(heads):
        if name not in network.heads:
            raise Refused(f"`{owner}` has no head `{name}`, but {', '.join(streams)} needs it")
    return Needs(policy=frozenset(wanted & {*ACTIONS}), statistics=statistics)


def score(
    model: Reader,
    rollouts: Sequence[Rollout],
    needs: Needs | None = None,
    *,
    reference: Reference | None = None,
    budget: int = 4096,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Returns what a model says of rollouts, row i of rollout i, without dropout or gradient.

    `logp`, what else the needs (the model's own if None) name of `logit`, `entropy` and `kl`, their
    statistics, and every head, each under its name.
    """
    network = model.network if isinstance(model, Unadapted) else model
    device = output_layer(network.model)[0].device
    units = units_of([rollout.group for rollout in rollouts], [], "row")
    found: dict[str, Tensor] = {}
    with torch.no_grad(), evaluating(network):
        for pack, counts in ranks.turns(packs(rollouts, budget=budget, units=units)):
            here = pack.to(device)
            for name, values in streams_of(model(here, reference, needs)).items():
                if name not in found:
                    found[name] = values.new_zeros(len(rollouts), values.shape[1])
                if counts:
                    found[name][here.rows] = values
    found = {name: ranks.total(values) for name, values in found.items()}
    for name, values in found.items():
        if values.isnan().any():
            row = rollouts[int(values.isnan().any(1).int().argmax())]
            raise ValueError(f"the model's `{name}` is not a number in rollout {row.index} of "
                             f"`{row.problem}`")  # fmt: skip
    return found


def streams_of(policy: Policy) -> dict[str, Tensor]:
    """Returns every stream of a policy under its name."""
    action = {name: getattr(policy, name) for name in ACTIONS if getattr(policy, name) is not None}
    return {**action, **policy.heads, **policy.statistics}
