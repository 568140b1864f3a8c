"""The network: one forward from a tree pack to every stream that an objective needs."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from logratio.batch import Policy
from logratio.model.attention import TreePlan, planned
from logratio.model.head import Asked, ChunkedHead, Readout, chunks
from logratio.model.pack import Pack
from logratio.part import Needs, Statistic

States = Float[Tensor, "R S"]  # S = T + 1


class Network(nn.Module):
    """An unmodified causal language model with the heads and scalars that an objective declares."""

    def __init__(self, model: PreTrainedModel, needs: Needs, *, temperature: float = 1.0) -> None:
        """Adds what the needs name: heads start at 0, scalars at their declared value."""
        super().__init__()
        self.model = model
        self.needs = needs
        width = int(model.config.get_text_config().hidden_size)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1) for name in sorted(needs.heads)})
        for head in self.heads.values():
            nn.init.zeros_(cast(nn.Linear, head).weight)
            nn.init.zeros_(cast(nn.Linear, head).bias)
        starts = {name: nn.Parameter(torch.tensor(v)) for name, v in sorted(needs.scalars.items())}
        self.scalars = nn.ParameterDict(starts)
        self.readout = readout_of(model, temperature)

    def hidden(self, pack: Pack) -> Float[Tensor, "N D"]:
        """Returns the last hidden state of every token of a pack."""
        with planned(self.model, TreePlan(pack.trees)):
            found = self.model.base_model(
                input_ids=pack.ids, position_ids=pack.positions, use_cache=False
            )
        return found.last_hidden_state[0]

    def forward(self, pack: Pack, reference: "Network | None" = None) -> Policy:
        """Returns what the model says of the pack's rows, in the order of `pack.rows`."""
        hidden = self.hidden(pack)
        other = None
        if reference is not None:
            with torch.no_grad():
                other = reference.hidden(pack)
        inside = inside_of(pack)
        action = self.action(hidden, pack, inside, reference=rows_of(reference, other))
        heads = {
            name: cast(Tensor, head(hidden.to(head_type(head))))[:, 0][pack.states]
            for name, head in self.heads.items()
        }
        scalars = dict(self.scalars.items())
        return Policy(
            **action,
            heads=heads,
            statistics=self.statistics(
                hidden, pack, reference=rows_of(reference, other), heads=heads
            ),
            scalars=scalars,
        )

    def action(
        self,
        hidden: Float[Tensor, "N D"],
        pack: Pack,
        inside: Bool[Tensor, "R T"],
        *,
        reference: tuple[Tensor, Tensor, Tensor | None] | None,
    ) -> dict[str, Float[Tensor, "R T"]]:
        """Returns log-probs and what else was asked for of every token, 0 past a row's end."""
        wanted = self.needs.policy
        places = pack.states[:, :-1][inside]
        if reference is not None:
            reference = (reference[0][places], *reference[1:])
        asked = Asked(entropy="entropy" in wanted, kl="kl" in wanted, reference=reference)
        weight, bias = output_layer(self.model)
        how = (pack.taken[inside], self.readout, asked)
        found = cast(tuple[Tensor, ...], ChunkedHead.apply(hidden[places], weight, bias, how))
        streams: dict[str, Tensor] = {}
        for name, values in zip(("logp", "logit", "entropy", "kl"), found, strict=True):
            if name == "logp" or name in wanted:
                empty = values.new_zeros(inside.shape)
                streams[name] = empty.masked_scatter(inside, values)
        return streams

    @torch.no_grad()
    def statistics(
        self,
        hidden: Float[Tensor, "N D"],
        pack: Pack,
        *,
        reference: tuple[Tensor, Tensor, Tensor | None] | None,
        heads: Mapping[str, States],
    ) -> dict[str, States]:
        """Returns each declared statistic of the row of logits at every state, chunk by chunk."""
        places = pack.states.flatten()
        weight, bias = output_layer(self.model)
        found = {name: hidden.new_empty(len(places)) for name in self.needs.statistics}
        for rows in chunks(len(places), len(weight)) if found else ():
            row = self.readout.logits(hidden[places[rows]], weight, bias)
            other = None
            if reference is not None:
                other = self.readout.logits(reference[0][places[rows]], *reference[1:])
            for name, statistic in self.needs.statistics.items():
                found[name][rows] = self.statistic(statistic, rows, row, other, heads=heads)
        return {name: values.view(pack.states.shape) for name, values in found.items()}

    def statistic(
        self,
        statistic: Statistic,
        rows: slice,
        row: Tensor,
        other: Tensor | None,
        *,
        heads: Mapping[str, States],
    ) -> Tensor:
        """Returns one statistic of some rows of logits."""
        if statistic.reference and other is None:
            raise ValueError("a statistic reads the reference's rows, but there is no reference")
        state = heads[statistic.state].flatten()[rows] if statistic.state else None
        return statistic.function(row, other, state, dict(self.scalars.items()))


def inside_of(pack: Pack) -> Bool[Tensor, "R T"]:
    """Marks the tokens of each row, where the next state is another place than this one."""
    before, after = pack.states[:, :-1], pack.states[:, 1:]
    return before != after


def rows_of(
    reference: Network | None, hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Returns the reference's hidden states with its output layer."""
    if reference is None or hidden is None:
        return None
    return (hidden, *output_layer(reference.model))


def output_layer(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Returns the weight and bias that turn hidden states into logits."""
    layer = cast(nn.Linear, model.get_output_embeddings())
    return layer.weight, getattr(layer, "bias", None)


def head_type(head: nn.Module) -> torch.dtype:
    """Returns the type that a head works in."""
    return next(head.parameters()).dtype


def readout_of(model: PreTrainedModel, temperature: float) -> Readout:
    """Returns how the model's hidden states become logits, from the names its config uses."""
    config: Any = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    if getattr(config, "logits_scaling", None):
        scale /= float(config.logits_scaling)
    cap = getattr(config, "final_logit_softcapping", None)
    return Readout(temperature=temperature, scale=scale, cap=cap)
