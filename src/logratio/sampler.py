"""How a token is drawn: one uniform number for each row, found in the row's own distribution.

The uniform is a function of a rollout's key and the position, so a token depends on nothing else
that happens to be sampled beside it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logratio.settings import AtLeastOne, AtLeastZero, Fraction, Refused, Share, check_settings

Columns = Sequence[int] | Int[Tensor, " E"]

BLOCK = 256  # entries summed together before the one block that holds the draw is opened
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64, as signed 64-bit numbers
MIXERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a rollout is sampled with."""

    temperature: AtLeastZero = 1.0  # 0 takes the most likely token
    top_k: AtLeastOne | None = None
    top_p: Share = 1.0
    min_p: Fraction = 0.0
    max_tokens: AtLeastOne = 128
    min_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuses a value outside its range."""
        check_settings(Sampling, {name: getattr(self, name) for name in self.__annotations__})
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise Refused(f"`min_tokens` is {self.min_tokens}, but it must be at least 0 and at "
                          f"most `max_tokens`, {self.max_tokens}")  # fmt: skip

    @property
    def truncated(self) -> bool:
        """Whether some tokens that the softmax allows are never drawn."""
        cut = self.top_k is not None or self.top_p < 1 or self.min_p > 0
        return cut or self.min_tokens > 0


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Tokens with their log-probs: under the whole softmax, and under what was drawn from."""

    ids: Int[Tensor, " N"]
    old: Float[Tensor, " N"]
    behaviour: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"]


def key_of(*parts: object) -> int:
    """Returns a 64-bit key from (seed, purpose, step, draw, problem, index) or any other parts."""
    text = "\x1f".join(repr(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def uniforms(keys: Int[Tensor, " N"], positions: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Returns a number in [0, 1) from each key and position: splitmix64, 53 bits of it."""
    mixed = keys + (positions + 1) * GOLDEN
    for shift, factor in zip((30, 27), MIXERS, strict=True):
        mixed = (mixed ^ shifted(mixed, shift)) * factor
    mixed = mixed ^ shifted(mixed, 31)
    return shifted(mixed, 11).to(torch.float64) * 2.0**-53


def shifted(bits: Int[Tensor, " N"], places: int) -> Int[Tensor, " N"]:
    """Returns bits moved right with zeros coming in: torch keeps the sign of an int64."""
    return (bits >> places) & (2 ** (64 - places) - 1)


def draw(
    logits: Float[Tensor, "N V"],
    uniform: Float[Tensor, " N"],
    sampling: Sampling,
    *,
    banned: Columns = (),
    where: Bool[Tensor, " N"] | None = None,
) -> Drawn:
    """Returns a token of each row of raw logits, by inverting the row's cumulative distribution.

    Banned tokens are not drawn, in the rows named or in all, but stand in the softmax that `old`
    is a log-prob of.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature not in (0, 1):
        wide = wide / sampling.temperature
    level = wide.logsumexp(-1)
    if sampling.temperature == 0:
        ids = without(wide, banned, where, -torch.inf).argmax(-1)
        zero = torch.zeros_like(level)
        old = wide.gather(1, ids[:, None])[:, 0] - level
        return Drawn(ids=ids, old=old, behaviour=zero, entropy=zero)
    share = (wide - level[:, None]).exp_()
    finite = wide.clamp(min=torch.finfo(wide.dtype).min)  # 0 x -inf is not a number
    entropy = level - torch.einsum("nv,nv->n", share, finite)
    kept = share if not sampling.truncated else share * allowed(share, sampling)
    kept = without(kept, banned, where, 0.0)
    ids = inverted(kept, uniform)
    old = wide.gather(1, ids[:, None])[:, 0] - level
    cut = sampling.truncated or len(banned) > 0
    behaviour = old - kept.sum(-1).log() if cut else old
    return Drawn(ids=ids, old=old, behaviour=behaviour, entropy=entropy)


def without(
    rows: Float[Tensor, "N V"], ids: Columns, where: Bool[Tensor, " N"] | None, value: float
) -> Float[Tensor, "N V"]:
    """Returns rows with a value in the columns `ids`, in the rows named or in all."""
    here = rows.device.type == "cpu"  # elsewhere a look costs more than the copy
    if not len(ids) or (here and where is not None and not bool(where.any())):
        return rows
    columns = torch.as_tensor(ids, device=rows.device)
    if where is None:
        return rows.index_fill(1, columns, value)
    return rows.index_copy(1, columns, rows[:, columns].masked_fill(where[:, None], value))


def inverted(share: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Returns each row's first entry at which the running sum exceeds uniform times the sum."""
    rows, size = share.shape
    padded = torch.nn.functional.pad(share, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    blocks = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    goal = uniform * blocks[:, -1]
    block = torch.searchsorted(blocks, goal[:, None], right=True)[:, 0].clamp(
        max=blocks.shape[1] - 1
    )
    before = torch.where(block > 0, blocks.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = padded[torch.arange(rows, device=share.device), block].to(torch.float64).cumsum(-1)
    place = torch.searchsorted(inside, (goal - before)[:, None], right=True)[:, 0]
    last = (padded[torch.arange(rows, device=share.device), block] > 0).long()
    last = last.shape[1] - 1 - last.flip(1).argmax(1)  # rounding must not leave the support
    return block * BLOCK + torch.minimum(place, last)


def allowed(share: Float[Tensor, "N V"], sampling: Sampling) -> Float[Tensor, "N V"]:
    """Returns 1 for the tokens that top-k, top-p and min-p leave, 0 for the others.

    Each looks at the whole softmax. Top-p keeps the fewest most likely tokens that reach it; ties
    go to the lower id, so that the count is exact.
    """
    keep = torch.ones_like(share)
    if sampling.min_p:
        keep = keep * (share >= sampling.min_p * share.amax(-1, keepdim=True))
    if sampling.top_k is not None or sampling.top_p < 1:
        ordered, order = share.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        inside = before < sampling.top_p if sampling.top_p < 1 else torch.ones_like(before) > 0
        if sampling.top_k is not None:
            inside = inside & (torch.arange(share.shape[1], device=share.device) < sampling.top_k)
        keep = keep * torch.zeros_like(share).scatter(1, order, inside.to(share.dtype))
    return keep
