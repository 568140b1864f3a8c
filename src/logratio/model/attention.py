"""Exact attention over a tree pack: prompt and completion apart, merged by log-sum-exp.

Each completion attends to its prompt (one matrix product for all completions of the prompt, its
keys never copied) and to itself. With l the log-sum-exp of a segment and o its output,

    l = log(e^l1 + e^l2),   o = e^(l1 - l) o1 + e^(l2 - l) o2

and each segment's stock backward is exact when it is given the merged o and l: probabilities and
the row correction depend on nothing else.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from logratio.model.pack import Tree
from logratio.model.segment import backward, forward
from logratio.settings import Refused

NAME = "logratio"
Heads = Float[Tensor, "1 H N D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What a layer says of its attention."""

    layer: int
    scale: float
    window: int | None


@runtime_checkable
class Plan(Protocol):
    """What the attention of every layer does with its query, key and value, `[n, H, N, D]`."""

    calls: int

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns the attention's output, `[n, H, N, D]`."""
        ...


class Seen(TypedDict):
    """What the queries of a segment see of its keys."""

    causal: bool
    mask: Tensor | None


@dataclass
class TreePlan:
    """Attention over the trees of a pack; `keep` is given each layer's keys and values, if any."""

    trees: tuple[Tree, ...]
    keep: Callable[[int, Tensor, Tensor], None] | None = None
    calls: int = 0

    windows: dict[tuple[int, int], list[Seen]] = field(
        default_factory=dict[tuple[int, int], list[Seen]]
    )

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns the attention of every token to its prompt and its own completion."""
        if self.keep is not None:
            self.keep(how.layer, states[1], states[2])
        return cast(Tensor, TreeAttention.apply(*states, (self, how.scale, how.window)))

    def masks_of(self, number: int, window: int | None, like: Tensor) -> list[Seen]:
        """Returns what each segment of a tree sees: all before it, or a sliding window of that."""
        tree = self.trees[number]
        longest = max(tree.lengths, default=0)
        if window is None or tree.prompt + longest <= window:
            return [{"causal": c, "mask": None} for c in (True, False, True)]
        key = (number, window)
        if key not in self.windows:
            prompt, own = torch.arange(tree.prompt), torch.arange(longest)
            places = [tree.prompt + place for length in tree.lengths for place in range(length)]
            blocks = [(prompt, prompt), (torch.tensor(places), prompt), (own, own)]
            self.windows[key] = [
                {"causal": False, "mask": seen(queries, keys, window).to(like)}
                for queries, keys in blocks
            ]
        return self.windows[key]


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


def seen(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """Returns 0 where a position sees another, no later and within the window, else -inf."""
    apart = queries[:, None] - keys[None, :]
    return torch.where((apart >= 0) & (apart < window), 0.0, -torch.inf)


@contextmanager
def planned(model: PreTrainedModel, plan: Plan) -> Generator[Plan]:
    """Makes the model's attention ours, with this plan, for as long as the context lasts."""
    before = str(model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
    if before != NAME:
        model.set_attn_implementation(NAME)
    token = _plan.set(plan)
    try:
        yield plan
    finally:
        _plan.reset(token)
        if before != NAME:
            model.set_attn_implementation(before)


def attend(
    module: torch.nn.Module, *states: Tensor | None, **settings: Any
) -> tuple[Float[Tensor, "n N H D"], None]:
    """Returns the attention of a packed row; the registered function, called once a layer.

    `states` are query, key, value and the model's own mask, which must be None.
    """
    query, key, value = states[:3]
    mask = states[3] if len(states) > 3 else settings.get("attention_mask")  # some name it
    plan = _plan.get()
    if plan is None:
        raise Refused("logratio's attention was called outside its plan: use it through the model")
    if mask is not None or query is None or key is None or value is None:
        raise Refused("`attention_mask` was given to logratio's attention, which has its own plan")
    unread = [
        name for name in ("softcap", "s_aux", "position_bias") if settings.get(name) is not None
    ]
    if unread or settings.get("dropout"):
        raise Refused(f"`{(unread or ['dropout'])[0]}` is set, but tree attention has none")
    plan.calls += 1
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    layer = cast(int, getattr(module, "layer_idx", 0))
    how = How(layer=layer, scale=float(scale), window=settings.get("sliding_window"))
    width = value.shape[-1]
    query, key, value = widened(query, key, value)
    return plan.attend((query, key, value), how)[..., :width].transpose(1, 2), None


def widened(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the three in one width: the columns of 0 that it takes change no product."""
    widest = max(key.shape[-1], value.shape[-1])
    if key.shape[-1] == value.shape[-1]:
        return query, key, value
    parts = [torch.nn.functional.pad(one, (0, widest - one.shape[-1]))
             for one in (query, key, value)]  # fmt: skip
    return parts[0], parts[1], parts[2]


AttentionInterface.register(NAME, attend)


class TreeAttention(torch.autograd.Function):
    """The attention of every tree of a pack, forward and backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, how: Any) -> Tensor:
        """Returns the merged output; keeps it and its log-sum-exp."""
        plan, scale, window = how
        out = torch.empty_like(query)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = query.new_empty(query.shape[:3], dtype=wide)
        for number, tree in enumerate(plan.trees):
            prompt, suffix = slice(tree.start, tree.suffix), slice(tree.suffix, tree.end)
            masks = plan.masks_of(number, window, query)
            parts = [part[:, :, prompt] for part in (query, key, value)]
            out[:, :, prompt], lse[:, :, prompt] = forward(*parts, **masks[0], scale=scale)
            if not tree.lengths:
                continue
            after = [part[:, :, suffix] for part in (query, key, value)]
            out2, lse2 = forward(after[0], *parts[1:], **masks[1], scale=scale)
            apart = [unpacked(part, tree.lengths) for part in after]
            out3, lse3 = forward(*apart, **masks[2], scale=scale)
            out3 = packed(out3, tree.lengths)
            lse3 = packed(lse3[..., None], tree.lengths)[..., 0]
            merged = torch.logaddexp(lse2, lse3)
            share2, share3 = (lse2 - merged).exp(), (lse3 - merged).exp()
            out[:, :, suffix] = out2 * share2[..., None] + out3 * share3[..., None]
            lse[:, :, suffix] = merged
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.how = how
        return out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """Returns the gradients of query, key and value."""
        *inputs, out, lse = ctx.saved_tensors
        plan, scale, window = ctx.how
        slopes = [torch.zeros_like(part) for part in inputs]
        for number, tree in enumerate(plan.trees):
            prompt, suffix = slice(tree.start, tree.suffix), slice(tree.suffix, tree.end)
            masks = plan.masks_of(number, window, inputs[0])
            parts = [part[:, :, prompt] for part in inputs]
            merged = out[:, :, prompt], lse[:, :, prompt]
            found = backward(gradient[:, :, prompt], parts, merged, **masks[0], scale=scale)
            for slope, part in zip(slopes, found, strict=True):
                slope[:, :, prompt] += part
            if not tree.lengths:
                continue
            after, down = [part[:, :, suffix] for part in inputs], gradient[:, :, suffix]
            merged = out[:, :, suffix], lse[:, :, suffix]
            on_query, on_key, on_value = backward(
                down, (after[0], *parts[1:]), merged, **masks[1], scale=scale
            )
            slopes[0][:, :, suffix] += on_query
            slopes[1][:, :, prompt] += on_key
            slopes[2][:, :, prompt] += on_value
            apart = [unpacked(part, tree.lengths) for part in after]
            held = unpacked(merged[0], tree.lengths)
            levels = unpacked(merged[1][..., None], tree.lengths)[..., 0]
            own = backward(
                unpacked(down, tree.lengths), apart, (held, levels), **masks[2], scale=scale
            )
            for slope, part in zip(slopes, own, strict=True):
                slope[:, :, suffix] += packed(part, tree.lengths)
        return slopes[0], slopes[1], slopes[2], None


def unpacked(part: Float[Tensor, "1 H N D"], lengths: tuple[int, ...]) -> Float[Tensor, "n H C D"]:
    """Returns each completion as a row of its own; past its end, of what causality hides, 0."""
    heads, _, width = part[0].shape
    if len(set(lengths)) == 1:
        return part[0].view(heads, len(lengths), -1, width).transpose(0, 1)
    rows = torch.split(part[0].transpose(0, 1), list(lengths))
    return pad_sequence(list(rows), batch_first=True).transpose(1, 2)


def packed(rows: Float[Tensor, "n H C D"], lengths: tuple[int, ...]) -> Float[Tensor, "1 H N D"]:
    """Returns the completions one behind the other."""
    if len(set(lengths)) == 1:
        return rows.transpose(0, 1).flatten(1, 2)[None]
    return torch.cat([row[:, :n] for row, n in zip(rows, lengths, strict=True)], 1)[None]
