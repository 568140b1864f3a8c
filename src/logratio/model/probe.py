"""The probe at load: is a model exact under our attention, and if not, why not.

A pack of two prompts and ragged completions is read by our attention and, each sequence alone, by
the model's own eager one. Logits and gradients must be equal: on the real weights, then on a small
twin of the architecture whose windows and chunks are shorter than the sequences. The pack is also
read with every token as a row of its own, which is what decoding does: where that is the same, no
layer mixes tokens, or keeps a state of them, except through our attention.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from logratio.model.attention import How, TreePlan, planned
from logratio.model.backbone import (
    Route,
    backbone_of,
    check_room,
    evaluating,
    found_in,
    hidden_states,
    output_layer,
    readout_of,
    rows_of,
    spans,
)
from logratio.model.pack import Pack, pack
from logratio.model.twin import twin
from logratio.records import Rollout
from logratio.settings import Refused

SHAPES = ((0, 11, 9), (0, 11, 5), (1, 3, 4))  # prompt, its length, its completion's
CLOSE = 1e-2  # of the largest; a window wider by one moves a sixth of it, rounding 2e-5


@dataclass
class Watched:
    """A plan that notes what each layer said of its attention."""

    plan: TreePlan
    calls: int = 0
    layers: list[How] = field(default_factory=list[How])

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns the attention of the pack, in one row or with every token as a row of its own."""
        self.layers.append(how)
        if len(states[0]) == 1:
            return self.plan.attend(states, how)
        query, key, value = (state.transpose(0, 2) for state in states)
        return self.plan.attend((query, key, value), how).transpose(0, 2)


@dataclass(frozen=True)
class Read:
    """The logits at every state of a pack's rows, and the slope in every embedded token."""

    logits: Float[Tensor, "R S V"]
    slope: Float[Tensor, "N E"]

    def is_near(self, other: "Read") -> bool:
        """Says whether both are the same."""
        return near(self.logits, other.logits) and near(self.slope, other.slope)


@dataclass(frozen=True)
class Truth:
    """A text, and what is true of it."""

    text: Pack
    read: Read


_known = WeakKeyDictionary[PreTrainedModel, Route]()


def route_of(model: PreTrainedModel) -> Route:
    """Returns how the model is served exactly; it is probed the first time."""
    if model not in _known:
        _known[model] = probe(model)
    return _known[model]


def probe(model: PreTrainedModel) -> Route:
    """Returns how the model is served exactly; refuses one for which neither route is."""
    windows, why = probed(model, truth_of(model))
    if why is None:
        try:
            small = twin(model)
            truth = truth_of(small)
        except Exception as error:
            # an architecture that is not known can fail in any way: then it takes the rows
            why = f"it can not be made small for a probe beyond its windows: {said(error)}"
        else:
            seen, why = probed(small, truth)
            if why is None and not windows <= seen:
                why = "its windows can not be probed: its small twin has none"
    if why is None:
        return Route(name="tree", why="exact in a pack and token by token")
    return Route(name="rows", why=why)


def truth_of(model: PreTrainedModel) -> Truth:
    """Returns a text and what the model's own eager forward says of it, each sequence alone."""
    text = sample(model)
    check_room(model, text.trees)
    with evaluating(model):
        check_readout(model, text)
        return Truth(text, read(model, text, lambda leaf: alone(model, text, leaf)))


@torch.no_grad()
def check_readout(model: PreTrainedModel, text: Pack) -> None:
    """Refuses a model whose logits are not what its head is taken to be."""
    with eager(model):
        logits = model(input_ids=text.ids, use_cache=False).logits[0]
        hidden = backbone_of(model)(input_ids=text.ids, use_cache=False).last_hidden_state[0]
    weight, bias = output_layer(model)
    if not near(readout_of(model, 1.0).logits(hidden.to(weight.dtype), weight, bias), logits):
        raise Refused(f"`model` is a {type(model).__name__}, whose logits are not its last hidden "
                      "states through its output layer with the scale and cap of its config: it "
                      "can not be trained exactly")  # fmt: skip


def probed(model: PreTrainedModel, truth: Truth) -> tuple[set[bool], str | None]:
    """Returns whether layers with and without windows were seen, and why trees are not exact."""
    text = truth.text
    with evaluating(model):
        rows = read(model, text, lambda leaf: in_rows(model, text, leaf))
        if not rounded(model) and not rows.is_near(truth.read):
            raise Refused(f"`model` is a {type(model).__name__}, for which a row depends on what "
                          "stands behind or beside it: it is no causal language model")  # fmt: skip
        return in_trees(model, text, truth.read)


def rounded(model: PreTrainedModel) -> bool:
    """Says whether a model is in 16 bits, where two exact ways can be far apart.

    Its calls are watched, but only its twin's numbers are compared.
    """
    return output_layer(model)[0].dtype.itemsize < 4


def near(one: Tensor, other: Tensor) -> bool:
    """Says whether two tensors are the same, up to a share of the largest."""
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())


def in_trees(model: PreTrainedModel, text: Pack, truth: Read) -> tuple[set[bool], str | None]:
    """Returns whether layers with and without windows were seen, and why trees are not exact."""
    if not model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
        return set(), "its attention is its own and can not be exchanged"
    plans = [Watched(TreePlan(text.trees)) for _ in range(2)]
    try:
        packed = read(model, text, lambda leaf: in_one_row(model, text, plans[0], leaf))
        apart = read(model, text, lambda leaf: token_by_token(model, text, plans[1], leaf))
    except Exception as error:
        return set(), f"tree attention does not serve it: {said(error)}"
    count = model.config.get_text_config().num_hidden_layers
    for plan in plans:
        if sorted(how.layer for how in plan.layers) != list(range(count)):
            called = len(plan.layers)
            return set(), f"{count} layers call our attention {called} times, not once each"
    seen = {how.window is not None for how in plans[0].layers}
    ways = {} if rounded(model) else {"in a pack": packed, "decoded": apart}
    for way, found in ways.items():
        if not found.is_near(truth):
            return seen, f"{way}, its logits or gradients are not those of each sequence alone"
    return seen, None


def read(model: PreTrainedModel, text: Pack, run: Callable[[Tensor], Tensor]) -> Read:
    """Returns the logits of one way of running the pack, and how they move with each token.

    `run` adds the leaf, a row for each place of the pack, to what is embedded there.
    """
    width = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[-1]
    weight, _ = output_layer(model)
    with torch.enable_grad():
        leaf = weight.new_zeros(text.ids.shape[1], width, requires_grad=True)
        logits = run(leaf)
        generator = torch.Generator().manual_seed(0)
        down = torch.randn(logits.shape, generator=generator).to(logits)
        (slope,) = torch.autograd.grad((logits * down).sum(), leaf)
    return Read(logits.detach().float(), slope.float())


def alone(model: PreTrainedModel, text: Pack, leaf: Tensor) -> Float[Tensor, "R S V"]:
    """Returns the logits of the model's own eager forward of each sequence by itself."""
    found: list[Tensor] = []
    for span, states in zip(spans(text), text.states, strict=True):
        here = span.to(text.ids.device)
        with eager(model), nudged(model, here, leaf):
            logits = model(input_ids=text.ids[:, here], use_cache=False).logits[0]
        found.append(logits[found_in(here[None], len(leaf))[states]])
    return torch.stack(found)


def in_rows(model: PreTrainedModel, text: Pack, leaf: Tensor) -> Float[Tensor, "R S V"]:
    """Returns the logits of right-padded rows through the model's own attention."""
    with nudged(model, rows_of(text), leaf):
        hidden = hidden_states(model, text, "rows")
    return logits_of(model, text, hidden)


def in_one_row(
    model: PreTrainedModel, text: Pack, plan: Watched, leaf: Tensor
) -> Float[Tensor, "R S V"]:
    """Returns the logits of the pack, read as the learner reads it."""
    places = torch.arange(len(leaf), device=leaf.device)
    with nudged(model, places, leaf), planned(model, plan):
        found = backbone_of(model)(input_ids=text.ids, position_ids=text.positions, use_cache=False)
    return logits_of(model, text, found.last_hidden_state[0])


def token_by_token(
    model: PreTrainedModel, text: Pack, plan: Watched, leaf: Tensor
) -> Float[Tensor, "R S V"]:
    """Returns the logits of the pack, with every token a row of its own, as in decoding."""
    places = torch.arange(len(leaf), device=leaf.device)
    with nudged(model, places, leaf), planned(model, plan):
        found = backbone_of(model)(
            input_ids=text.ids.T, position_ids=text.positions.T, use_cache=False
        )
    return logits_of(model, text, found.last_hidden_state[:, 0])


def logits_of(model: PreTrainedModel, text: Pack, hidden: Tensor) -> Float[Tensor, "R S V"]:
    """Returns the logits at the states of a pack's rows, as the head reads them."""
    return readout_of(model, 1.0).logits(hidden, *output_layer(model))[text.states]


@contextmanager
def nudged(model: PreTrainedModel, places: Int[Tensor, "..."], leaf: Tensor) -> Generator[None]:
    """Adds to every embedded token the leaf's row of its place: copies then share a slope."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        del module, inputs
        return output + leaf[places].view_as(output)

    handle = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eager(model: PreTrainedModel) -> Generator[None]:
    """Makes the model's attention its own plain one, where it has others."""
    before = str(model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
    if model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if model._can_set_attn_implementation():  # pyright: ignore[reportPrivateUsage]
            model.set_attn_implementation(before)


def sample(model: PreTrainedModel) -> Pack:
    """Returns a pack of random tokens: two prompts, one of them with ragged completions."""
    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size

    def drawn(count: int) -> tuple[int, ...]:
        ids = torch.randint(1, words, (count,), generator=generator)
        return tuple(cast(list[int], ids.tolist()))

    prompts = {number: drawn(length) for number, length, _ in SHAPES}
    made = [
        Rollout(problem="probe", group=number, prompt_ids=prompts[number], ids=drawn(length))
        for number, _, length in SHAPES
    ]
    longest = max(length for *_, length in SHAPES)
    return pack(made, range(len(made)), longest=longest).to(output_layer(model)[0].device)


def said(error: Exception) -> str:
    """Returns the first line of an error, short enough for a table."""
    line = str(error).strip().split("\n")[0]
    return line[:120] if isinstance(error, Refused) else f"{type(error).__name__}: {line[:120]}"
