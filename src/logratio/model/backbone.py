"""The unmodified model's forward over a pack, by either route, and how its hidden states are read.

A tree pack holds each prompt once. A model that our attention can not serve is given the same pack
as right-padded rows, a prompt with one completion each, through its own attention: what stands to
the right of a token changes nothing in a causal model, so no mask and no positions are passed.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from logratio.model.attention import TreePlan, planned
from logratio.model.head import Readout
from logratio.model.pack import Pack, Tree
from logratio.settings import Refused

SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
SHARES = ("logits_scaling", "logits_mup_width_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap")
STRETCHED = ("dynamic", "longrope")  # rotary tables that change with the longest text of a batch

Name = Literal["tree", "rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a model is served: tree packs through our attention, or padded rows through its own."""

    name: Name
    why: str  # one sentence

    @property
    def engine(self) -> str:
        """The name of the engine that samples from such a model."""
        return "local" if self.name == "tree" else "transformers"


def hidden_states(model: PreTrainedModel, pack: Pack, route: Name) -> Float[Tensor, "N D"]:
    """Returns the last hidden state of every token of a pack.

    A prompt that rows repeat is read in the first of them: it is the same in each.
    """
    check_room(model, pack.trees)
    body = backbone_of(model)
    if route == "tree":
        with planned(model, TreePlan(pack.trees)):
            found = body(input_ids=pack.ids, position_ids=pack.positions, use_cache=False)
        return found.last_hidden_state[0]
    rows = rows_of(pack)
    # padded with a row's own first token: a pad token would have the library warn of its mask
    ids = pack.ids[0][torch.where(rows < 0, rows[:, :1], rows)]
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    # some keep them wider than their output layer
    hidden = hidden.to(output_layer(model)[0].dtype)
    return hidden.flatten(0, 1)[found_in(rows, pack.ids.shape[1])]


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """Returns the part of a model that ends in hidden states."""
    inner = model.base_model
    return model.get_submodule("model") if inner is model else inner


def rows_of(pack: Pack) -> Int[Tensor, "R L"]:
    """Returns the places of a pack's sequences as right-padded rows, with -1 past the end."""
    return pad_sequence(spans(pack), batch_first=True, padding_value=-1).to(pack.ids.device)


def spans(pack: Pack) -> list[Int[Tensor, " L"]]:
    """Returns the places of every sequence of a pack, its prompt's first."""
    found: list[Tensor] = []
    for tree in pack.trees:
        prompt, start = torch.arange(tree.start, tree.suffix), tree.suffix
        for length in tree.lengths or (0,):
            found.append(torch.cat([prompt, torch.arange(start, start + length)]))
            start += length
    return found


def found_in(rows: Int[Tensor, "R L"], size: int) -> Int[Tensor, " N"]:
    """Returns where each of the pack's places stands in the flattened rows, the first time."""
    places, order = rows.flatten(), torch.arange(rows.numel(), device=rows.device)
    here = places >= 0
    nowhere = torch.full((size,), rows.numel(), device=rows.device)
    return nowhere.scatter_reduce(0, places[here], order[here], "amin")


def room_of(model: PreTrainedModel) -> int | None:
    """Returns how many tokens a text may have; None where the model sets no limit.

    Rotary tables that change with the longest text of a batch make a text depend on its company
    and a token on what came after it, so only the part before the change is served.
    """
    config: Any = model.config.get_text_config()
    rope = cast(dict[str, Any], getattr(config, "rope_parameters", None) or {})
    # one table, or one for each kind of layer
    tables = [rope, *(cast(dict[str, Any], one) for one in rope.values() if isinstance(one, dict))]
    rooms: list[int | None] = [
        table.get("original_max_position_embeddings")
        for table in tables
        if table.get("rope_type") in STRETCHED
    ]
    rooms.append(getattr(config, "max_position_embeddings", None))
    return min((room for room in rooms if room is not None), default=None)


def check_room(model: PreTrainedModel, trees: Iterable[Tree]) -> None:
    """Refuses a text that is longer than the model allows."""
    room = room_of(model)
    longest = max(tree.prompt + max(tree.lengths, default=0) for tree in trees)
    if room is not None and longest > room:
        raise Refused(f"a prompt with its completion has {longest} tokens, but the model holds "
                      f"{room}")  # fmt: skip


def output_layer(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Returns the weight and bias that turn hidden states into logits."""
    layer = cast(nn.Linear, model.get_output_embeddings())
    return layer.weight, getattr(layer, "bias", None)


def readout_of(model: PreTrainedModel, temperature: float) -> Readout:
    """Returns how the model's hidden states become logits, from the names its config uses."""
    config: Any = model.config.get_text_config()
    scale = 1.0
    for name in SCALES:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in SHARES:
        scale /= float(getattr(config, name, None) or 1.0)
    caps = [float(getattr(config, name)) for name in CAPS if getattr(config, name, None)]
    return Readout(temperature=temperature, scale=scale, cap=caps[0] if caps else None)


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Turns dropout off, which would make another model of this one, for as long as it lasts."""
    before = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in before:
            part.training = True
