"""The network: one forward from a tree pack to every stream that an objective needs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from logratio.batch import Policy
from logratio.model.backbone import Route, hidden_states, output_layer, readout_of
from logratio.model.head import CHUNK_BYTES, Asked, ChunkedHead, How, Readout, chunks
from logratio.model.matmul import quicken
from logratio.model.onepass import Cut, OnePass, Work, cuts_of
from logratio.model.pack import Pack
from logratio.model.probe import route_of
from logratio.part import Needs, Statistic
from logratio.settings import Refused

Rows = tuple[Tensor, Tensor, Tensor | None]  # hidden states, weight and bias of the output layer
States = Float[Tensor, "R S"]  # S = T + 1


@runtime_checkable
class Reference(Protocol):
    """What gives a reference's rows on the policy's own pack."""

    @property
    def model(self) -> PreTrainedModel:
        """The model, whose output layer turns hidden states into logits."""
        ...

    @property
    def readout(self) -> Readout:
        """How it does."""
        ...

    def hidden(self, pack: Pack) -> Float[Tensor, "N D"]:
        """Returns the last hidden state of every token of a pack."""
        ...


@runtime_checkable
class Loss(Protocol):
    """The loss of some rows of a pack."""

    by_row: bool  # whether it couples no rows, so that any few of them can be asked for

    def __call__(self, policy: Policy, rows: slice) -> Tensor:
        """Returns what these rows add to the loss of the pack."""
        ...


class Network(nn.Module):
    """An unmodified causal language model with the heads and scalars that an objective declares."""

    def __init__(
        self,
        model: PreTrainedModel,
        needs: Needs,
        *,
        temperature: float = 1.0,
        route: Route | None = None,
    ) -> None:
        """Adds what the needs name: heads start at 0, scalars at their declared value.

        The route says how the model is run; None probes which one is exact for it.
        """
        super().__init__()
        self.model = model
        quicken(model)
        self.route = route_of(model) if route is None else route
        self.needs = needs
        width = int(model.config.get_text_config().hidden_size)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in sorted(needs.heads)})
        for head in self.heads.values():
            nn.init.zeros_(cast(nn.Linear, head).weight)
            nn.init.zeros_(cast(nn.Linear, head).bias)
        self.scalars = Scalars(needs.scalars)
        self.readout = readout_of(model, temperature)
        self.train(model.training)  # else whoever restores this mode turns the model's dropout on

    def hidden(self, pack: Pack) -> Float[Tensor, "N D"]:
        """Returns the last hidden state of every token of a pack."""
        return hidden_states(self.model, pack, self.route.name)

    def forward(
        self,
        pack: Pack,
        reference: "Reference | None" = None,
        needs: Needs | None = None,
        loss: "Loss | None" = None,
    ) -> Policy | Tensor:
        """Returns what the model says of the pack's rows, in the order of `pack.rows`.

        `needs` is what to read instead of the network's own; the reference runs where it counts.
        With a `loss` it returns that instead: in one pass where the loss couples no rows.
        """
        needs = needs or self.needs
        hidden = self.hidden(pack)
        rows = reference_rows(needs, reference, pack)
        heads = {
            name: cast(Tensor, head(hidden.to(head_type(head))))[:, 0][pack.states]
            for name, head in self.heads.items()
        }
        scalars = cast(dict[str, Tensor], self.scalars())
        found = self.statistics(
            hidden, pack, needs.statistics, reference=rows, heads=heads, scalars=scalars
        )
        inside = inside_of(pack)
        places = pack.states[:, :-1][inside]
        how = self.how(needs, pack.taken[inside], reference=rows, places=places)
        taken = (hidden[places], *output_layer(self.model))
        whole = Policy(logp=inside.float(), heads=heads, statistics=found, scalars=scalars)
        cuts = cuts_within(inside, taken[1]) if loss is not None and loss.by_row else None
        if loss is not None and cuts is not None:

            def part(some: slice, numbers: Tensor, others: Sequence[Tensor]) -> Tensor:
                moved = with_others(rows_of(whole, some), others, some)
                return loss(with_streams(moved, numbers, inside[some], needs.policy), some)

            work = Work(how=how, cuts=cuts, loss=part)
            others = (*heads.values(), *scalars.values())
            return cast(Tensor, OnePass.apply(*taken, work, *others))
        numbers = cast(tuple[Tensor, ...], ChunkedHead.apply(*taken, how))
        policy = with_streams(whole, numbers, inside, needs.policy)
        return policy if loss is None else loss(policy, slice(0, len(inside)))

    def how(self, needs: Needs, ids: Tensor, *, reference: Rows | None, places: Tensor) -> How:
        """Returns how the rows of logits are read."""
        if reference is not None:
            reference = (reference[0][places], *reference[1:])
        wanted = needs.policy
        asked = Asked(entropy="entropy" in wanted, kl="kl" in wanted, reference=reference)
        return How(ids=ids, readout=self.readout, asked=asked)

    @torch.no_grad()
    def statistics(
        self,
        hidden: Float[Tensor, "N D"],
        pack: Pack,
        asked: Mapping[str, Statistic],
        *,
        reference: Rows | None,
        heads: Mapping[str, States],
        scalars: Mapping[str, Tensor],
    ) -> dict[str, States]:
        """Returns each declared statistic of the row of logits at every state, chunk by chunk."""
        places = pack.states.flatten()
        weight, bias = output_layer(self.model)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = {name: hidden.new_empty(len(places), dtype=wide) for name in asked}
        for rows in chunks(len(places), len(weight)) if found else ():
            row = self.readout.logits(hidden[places[rows]], weight, bias)
            other = None
            if reference is not None:
                other = self.readout.logits(reference[0][places[rows]], *reference[1:])
            for name, statistic in asked.items():
                state = heads[statistic.state].flatten()[rows] if statistic.state else None
                found[name][rows] = statistic.function(row, other, state, scalars)
        return {name: values.view(pack.states.shape) for name, values in found.items()}


class Scalars(nn.Module):
    """Learned numbers by name, of one entry each: what has no dimension can not be sharded."""

    def __init__(self, starts: Mapping[str, float]) -> None:
        """Starts each at its declared value."""
        super().__init__()
        for name, start in sorted(starts.items()):
            self.register_parameter(name, nn.Parameter(torch.tensor([float(start)])))

    def forward(self) -> dict[str, Float[Tensor, ""]]:
        """Returns each number as it is now, with its gradient."""
        return {name: entry[0].clone() for name, entry in self.named_parameters()}


def with_streams(
    policy: Policy, numbers: Sequence[Tensor] | Tensor, inside: Tensor, wanted: frozenset[str]
) -> Policy:
    """Returns the policy with what was read of each token, 0 past a row's end."""
    streams = {
        name: values.new_zeros(inside.shape).masked_scatter(inside, values)
        for name, values in zip(("logp", "logit", "entropy", "kl"), numbers, strict=True)
        if name == "logp" or name in wanted
    }
    return replace(policy, **streams)


def rows_of(policy: Policy, some: slice) -> Policy:
    """Returns what was said of the states of some rows."""
    return replace(
        policy,
        logp=policy.logp[some],
        heads={name: values[some] for name, values in policy.heads.items()},
        statistics={name: values[some] for name, values in policy.statistics.items()},
    )


def with_others(policy: Policy, others: Sequence[Tensor], some: slice) -> Policy:
    """Returns the policy with other tensors for its heads, cut to some rows, and its scalars."""
    given = iter(others)
    heads = {name: next(given)[some] for name in policy.heads}
    return replace(policy, heads=heads, scalars={name: next(given) for name in policy.scalars})


def cuts_within(inside: Bool[Tensor, "R T"], weight: Tensor) -> list[Cut] | None:
    """Returns rows whose logits fit a chunk together; None where those of one row do not."""
    counts = cast(list[int], inside.sum(1).tolist())
    most = CHUNK_BYTES // (weight.element_size() * len(weight))
    return cuts_of(counts, most) if max(counts) <= most else None


def inside_of(pack: Pack) -> Bool[Tensor, "R T"]:
    """Marks the tokens of each row, where the next state is another place than this one."""
    before, after = pack.states[:, :-1], pack.states[:, 1:]
    return before != after


def reference_rows(needs: Needs, reference: Reference | None, pack: Pack) -> Rows | None:
    """Returns the reference's hidden states on the pack with its output layer, if they are read."""
    readers = [name for name, one in needs.statistics.items() if one.reference]
    readers += ["kl"] * ("kl" in needs.policy)
    if not readers:
        return None
    if reference is None:
        raise Refused(f"`{readers[0]}` is read off the reference's rows, but `reference` is None")
    with torch.no_grad():
        return (reference.hidden(pack), *output_layer(reference.model))


def head_type(head: nn.Module) -> torch.dtype:
    """Returns the type that a head works in."""
    return next(head.parameters()).dtype
