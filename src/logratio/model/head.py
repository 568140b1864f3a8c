"""The chunked head: numbers of each row of logits, without ever holding the logits of a batch.

Four of them are differentiable. With p the softmax of the row, q the reference's, y the token:

    log p(y)     dz = e_y - p                      entropy H   dz = -p (log p + H)
    logit z_y    dz = e_y                          KL(p, q)    dz = p (log p - log q - KL)

Autograd runs on the `[N]` vectors; their gradients become dL/dhidden and dL/dW chunk by chunk. The
matrix products take large chunks; what is done to each logit takes small blocks, in the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

Row = Float[Tensor, " N"]
Numbers = Float[Tensor, "4 N"]  # log p(y), z_y, entropy, KL
CHUNK_BYTES = 64 * 2**20  # of logits as the matrix product gives them
BLOCK_BYTES = 4 * 2**20  # of float32 logits


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How hidden states become logits: the model's own scale and soft cap, then temperature."""

    temperature: float = 1.0
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the logits of some rows in float32 or wider."""
        return self.finished(linear(hidden, weight, bias))

    def finished(self, raw: Tensor) -> Tensor:
        """Returns the logits that a matrix product becomes."""
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1:
            logits = logits * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits if self.temperature == 1 else logits / self.temperature

    def back(self, slope: Tensor, logits: Tensor) -> Tensor:
        """Returns the slope in the raw product, given the slope in the logits; changes it."""
        if self.cap is not None:
            slope *= 1 - (logits * self.temperature / self.cap).square()
        factor = self.scale / self.temperature
        return slope if factor == 1 else slope.mul_(factor)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to read off each row besides log p(y) and z_y, and the reference's rows if any."""

    entropy: bool = False
    kl: bool = False
    reference: tuple[Tensor, Tensor, Tensor | None] | None = None  # hidden, weight, bias

    def rows(self, some: slice) -> Tensor | None:
        """Returns the reference's raw logits of some rows, if they are read."""
        if not self.kl:
            return None
        if self.reference is None:
            raise ValueError("the exact KL needs the reference's hidden states")
        hidden, weight, bias = self.reference
        return linear(hidden[some], weight, bias)


@dataclass(frozen=True, kw_only=True)
class How:
    """The tokens taken, how their logits are read, and what of them."""

    ids: Int[Tensor, " N"]
    readout: Readout
    asked: Asked


def chunks(rows: int, vocabulary: int, width: int = 4) -> Iterator[slice]:
    """Gives slices of rows whose logits, of `width` bytes each, fit the chunk."""
    yield from slices(rows, max(1, CHUNK_BYTES // (width * vocabulary)))


def slices(rows: int, step: int) -> Iterator[slice]:
    """Gives slices of at most `step` rows that cover them all."""
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def blocks(raw: Tensor) -> Iterator[slice]:
    """Gives slices of rows small enough that what is done to them stays in the cache."""
    yield from slices(len(raw), max(1, BLOCK_BYTES // (4 * raw.shape[1])))


def read(raw: Tensor, how: How, some: slice) -> tuple[Numbers, Row]:
    """Returns the numbers of some rows from their raw logits, and each row's log-sum-exp."""
    wide = torch.promote_types(raw.dtype, torch.float32)
    out, level = raw.new_zeros(4, len(raw), dtype=wide), raw.new_empty(len(raw), dtype=wide)
    ids, other = how.ids[some], how.asked.rows(some)
    for rows in blocks(raw):
        logits = how.readout.finished(raw[rows])
        level[rows] = logits.logsumexp(-1)
        out[1, rows] = logits.gather(1, ids[rows, None])[:, 0]
        if how.asked.entropy or other is not None:
            logp = logits - level[rows, None]
            share = logp.exp()
            out[2, rows] = -(share * logp).sum(-1)
            if other is not None:
                apart = logp - how.readout.finished(other[rows]).log_softmax(-1)
                out[3, rows] = (share * apart).sum(-1)
    out[0] = out[1] - level
    return out, level


def turn(
    raw: Tensor, how: How, some: slice, *, found: tuple[Numbers, Row], down: tuple[Row, ...]
) -> Tensor:
    """Returns dL/d(raw logits) of some rows, written over them; `down` is dL/d(each number)."""
    (_, _, entropy, kl), level = found
    on_logp, on_logit, on_entropy, on_kl = down
    ids, other = how.ids[some], how.asked.rows(some)
    for rows in blocks(raw):
        logits = how.readout.finished(raw[rows])
        logp = logits - level[rows, None]
        share = logp.exp()
        slope = share * -on_logp[rows, None]
        if how.asked.entropy:
            slope -= on_entropy[rows, None] * share * (logp + entropy[rows, None])
        if other is not None:
            apart = logp - how.readout.finished(other[rows]).log_softmax(-1) - kl[rows, None]
            slope += on_kl[rows, None] * share * apart
        slope.scatter_add_(1, ids[rows, None], (on_logp + on_logit)[rows, None])
        raw[rows] = how.readout.back(slope, logits)
    return raw


class Product:
    """Raw logits of chunk after chunk in one buffer: a fresh one would be paid for page by page."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Keeps the output layer."""
        self.weight, self.bias = weight.T, bias
        self.buffer = weight.new_empty(0, len(weight))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the raw logits of some rows, until the next call."""
        if len(hidden) > len(self.buffer):
            self.buffer = self.buffer.new_empty(len(hidden), self.buffer.shape[1])
        out = self.buffer[: len(hidden)]
        if self.bias is None:
            return torch.mm(hidden, self.weight, out=out)
        return torch.addmm(self.bias, hidden, self.weight, out=out)


class Slopes:
    """dL/dhidden, dL/dW and dL/dbias, as the chunks come; nothing for what needs none."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Any) -> None:
        """Makes room for what is wanted of the three."""
        self.hidden, self.weight = hidden, weight
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.on_hidden = torch.empty_like(hidden) if wanted[0] else None
        self.wanted = wanted[1], bias is not None and wanted[2]
        self.on_weight: Tensor | None = None
        self.on_bias: Tensor | None = None

    def add(self, slope: Tensor, some: slice) -> None:
        """Adds what some rows' slopes in their raw logits come to."""
        if self.on_hidden is not None:
            torch.mm(slope, self.weight, out=self.on_hidden[some])
        if self.wanted[0] and self.on_weight is not None and slope.dtype == self.wide:
            self.on_weight.addmm_(slope.T, self.hidden[some])  # and no second [V, D] beside it
        elif self.wanted[0]:
            self.on_weight = added(self.on_weight, slope.T @ self.hidden[some], self.wide)
        if self.wanted[1]:
            self.on_bias = added(self.on_bias, slope.sum(0, dtype=self.wide), self.wide)

    def found(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the three; those of weights in the type that their gradients are kept in."""
        kept = getattr(self.weight, "grad_dtype", None) or self.weight.dtype
        weights = [
            None if part is None else part.to(kept) for part in (self.on_weight, self.on_bias)
        ]
        return self.on_hidden, weights[0], weights[1]


def added(total: Tensor | None, part: Tensor, wide: torch.dtype) -> Tensor:
    """Returns the sum in a wide type; the first part as it is."""
    if total is None:
        return part
    total = total.to(wide)
    return total.add_(part)


class ChunkedHead(torch.autograd.Function):
    """log p(y), z_y, entropy and exact KL of each row, as four vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "N D"],
        weight: Float[Tensor, "V D"],
        bias: Tensor | None,
        how: How,
    ) -> tuple[Row, Row, Row, Row]:
        """Returns the four vectors; entropy and KL are 0 where they were not asked for."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = hidden.new_zeros(4, len(hidden), dtype=wide)
        level = hidden.new_empty(len(hidden), dtype=wide)
        product = Product(weight, bias)
        for rows in chunks(len(hidden), len(weight), hidden.element_size()):
            out[:, rows], level[rows] = read(product(hidden[rows]), how, rows)
        ctx.save_for_backward(hidden, weight, bias, out, level)
        ctx.how = how
        return out[0], out[1], out[2], out[3]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *down: Row
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Returns dL/dhidden, dL/dW and dL/dbias; the logits are made again, chunk by chunk."""
        hidden, weight, bias, out, level = ctx.saved_tensors
        slopes = Slopes(hidden, weight, bias, ctx.needs_input_grad)
        product = Product(weight, bias)
        for rows in chunks(len(hidden), len(weight), hidden.element_size()):
            found, parts = (out[:, rows], level[rows]), tuple(part[rows] for part in down)
            raw = product(hidden[rows])
            slopes.add(turn(raw, ctx.how, rows, found=found, down=parts), rows)
        return *slopes.found(), None
