"""Nouns with tensors: Batch, Policy, Term, Terms, Weights.

A row holds one completion and nothing else. *Action* streams are `[B, T]`: column t is about
token t. *State* streams are `[B, T+1]`: column t is about the state before token t, and column
`length` about the state after the last token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from logratio.part import Needs, Part
from logratio.settings import Refused

Unit = Literal["token", "sequence", "pair"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What happened, one row a rollout."""

    mask: Bool[Tensor, "B T"]  # True where the policy chose the token
    group: Int[Tensor, " B"]  # rows with equal ids answer the same prompt
    pair: Int[Tensor, " B"] | None = None  # pair k: chosen or first row 2k, other 2k+1
    reward: Num[Tensor, " B"] | None = None
    advantage: Float[Tensor, "B T"] | None = None
    weight: Float[Tensor, "B T"] | None = None  # None: every token weighs 1
    old: Float[Tensor, "B T"] | None = None  # log-prob under the full softmax that sampled
    ref: Float[Tensor, "B T"] | None = None  # ... under the frozen reference
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        """Refuses streams whose shapes disagree with the mask."""
        if self.mask.dim() != 2 or self.mask.dtype != torch.bool:
            raise Refused(f"`mask` is {described(self.mask)}, but it must be a bool [B, T]")
        rows, tokens = self.mask.shape
        for name in ("group", "pair", "reward"):
            check_shape(name, getattr(self, name), [(rows,)])
        for name in ("advantage", "weight", "old", "ref"):
            check_shape(name, getattr(self, name), [(rows, tokens)])
        for name, stream in self.columns.items():
            check_shape(name, stream, [(rows,), (rows, tokens), (rows, tokens + 1)])
        if self.pair is not None:
            check_pairs(self.pair)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the constants made from this batch: float32, or wider where given."""
        present = (self.reward, self.advantage, self.old, self.ref)
        wide = any(stream is not None and stream.dtype == torch.float64 for stream in present)
        return torch.float64 if wide else torch.float32

    def stream(self, name: str) -> Tensor:
        """Returns a field or a column by its name; a missing one is refused."""
        found = getattr(self, name) if name in STREAMS else self.columns.get(name)
        if found is None:
            present = [key for key in STREAMS if getattr(self, key) is not None]
            raise Refused(
                f"`{name}` is missing from the batch, which has "
                f"{', '.join(sorted([*present, *self.columns]))}"
            )
        return found

    def require(self, needs: Needs) -> None:
        """Refuses a batch in which a stream that is needed is missing or has another shape."""
        rows, tokens = self.mask.shape
        shapes = {"row": (rows,), "token": (rows, tokens), "state": (rows, tokens + 1)}
        for name in sorted(needs.streams):
            check_shape(name, self.stream(name), [shapes[needs.shape(name)]])

    def rows(self, index: Tensor | slice) -> "Batch":
        """Returns some of the rows."""
        present = {name: getattr(self, name) for name in STREAMS}
        cut = {name: value[index] for name, value in present.items() if value is not None}
        columns = {name: column[index] for name, column in self.columns.items()}
        return replace(self, mask=self.mask[index], columns=columns, **cut)

    def clean(self) -> "Batch":
        """Returns the batch with 0 wherever the mask is False, and no float below 32 bits.

        What a batch holds is a constant: no gradient gets through it.
        """
        stream = {
            name: zeroed(getattr(self, name), self.mask).detach()
            for name in ("reward", "advantage", "weight", "old", "ref")
            if getattr(self, name) is not None
        }
        columns = {
            name: zeroed(column, self.mask).detach() for name, column in self.columns.items()
        }
        if self.reward is not None and not self.reward.is_floating_point():
            stream["reward"] = self.reward.to(self.dtype)
        return replace(self, **stream, columns=columns)

    def starts(self) -> Bool[Tensor, "B T"]:
        """Marks the first chosen token of each row; nothing in a row without any."""
        return self.mask & (self.mask.cumsum(1) == 1)

    def sides(self) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Returns the rows of the chosen (first) sides, and of the others, pair by pair."""
        order = self.stream("pair").argsort()
        paired = order[self.stream("pair")[order] >= 0]
        return paired[0::2], paired[1::2]


STREAMS = ("group", "pair", "reward", "advantage", "weight", "old", "ref")


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """What the model says of the batch's tokens; only `logp` is always there."""

    logp: Float[Tensor, "B T"]
    logit: Float[Tensor, "B T"] | None = None  # of the token that was taken
    entropy: Float[Tensor, "B T"] | None = None
    kl: Float[Tensor, "B T"] | None = None  # of the whole row to the reference's, exact
    heads: Mapping[str, Float[Tensor, "B T+1"]] = field(default_factory=dict[str, Tensor])
    statistics: Mapping[str, Float[Tensor, "B T+1"]] = field(default_factory=dict[str, Tensor])
    scalars: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict[str, Tensor])

    def stream(self, name: str) -> Tensor:
        """Returns an action stream by its name; a missing one is refused."""
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise Refused(f"`{name}` is missing from the policy: the head was not asked for it")
        return found

    def clean(self, mask: Bool[Tensor, "B T"]) -> "Policy":
        """Returns the policy with 0 wherever the mask is False, and no float below 32 bits."""
        rows, tokens = mask.shape
        for name in ("logp", "logit", "entropy", "kl"):
            check_shape(name, getattr(self, name), [(rows, tokens)])
        for name, stream in (*self.heads.items(), *self.statistics.items()):
            check_shape(name, stream, [(rows, tokens + 1)])
        action = {
            name: zeroed(getattr(self, name), mask)
            for name in ("logp", "logit", "entropy", "kl")
            if getattr(self, name) is not None
        }
        heads = {name: zeroed(stream, mask) for name, stream in self.heads.items()}
        statistics = {n: zeroed(stream, mask).detach() for n, stream in self.statistics.items()}
        return replace(self, **action, heads=heads, statistics=statistics)


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """One loss per item, not divided by anything; `average` None is the objective's own."""

    loss: Tensor  # [B, T] for tokens, [B] for sequences, [P] for pairs
    unit: Unit = "token"
    coefficient: float = 1.0
    average: Part | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """What an objective returns: named losses per item, and named quantities worth watching."""

    terms: Mapping[str, Term]
    watch: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What each item of an optimisation batch weighs, and what the sum is divided by.

    `each` has one row per row of the batch: `[B, T]` for tokens, `[B]` otherwise (a pair's weight
    stands on its first row). Made before the batch is cut.
    """

    each: Tensor
    total: Float[Tensor, ""]

    def rows(self, index: Tensor | slice) -> "Weights":
        """Returns the weights of some rows, under the whole batch's total."""
        return replace(self, each=self.each[index])


def zeroed(stream: Tensor, mask: Bool[Tensor, "B T"]) -> Tensor:
    """Returns a stream with exactly 0, and no gradient, where no chosen token gives it meaning.

    A state counts when the token after it or before it was chosen.
    """
    if stream.dtype in (torch.float16, torch.bfloat16):
        stream = stream.float()
    if stream.dim() < 2:
        return stream
    if stream.shape[1] == mask.shape[1] + 1:
        no = mask.new_zeros(mask.shape[0], 1)
        mask = torch.cat([mask, no], 1) | torch.cat([no, mask], 1)
    return torch.where(mask, stream, torch.zeros((), dtype=stream.dtype, device=stream.device))


def check_shape(name: str, stream: Tensor | None, shapes: list[tuple[int, ...]]) -> None:
    """Refuses a stream that has none of these shapes."""
    if stream is not None and tuple(stream.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise Refused(f"`{name}` has shape {list(stream.shape)}, but it must be {wanted}")


def check_pairs(pair: Int[Tensor, " B"]) -> None:
    """Refuses pairs that are not whole: every 2k must have its 2k + 1, once each."""
    present = pair[pair >= 0].sort().values
    if len(present) % 2 or not (
        (present[0::2] % 2 == 0).all() and (present[1::2] == present[0::2] + 1).all()
    ):
        raise Refused(
            f"`pair` holds {present.tolist()}, but each pair k must have one row 2k (chosen or "
            "first) and one row 2k + 1 (rejected or second); -1 marks a row without a pair"
        )


def described(tensor: Tensor) -> str:
    """Returns dtype and shape in words, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
