"""The chunked head: numbers of each row of logits, without ever holding the logits of a batch.

Four of them are differentiable. With p the softmax of the row, q the reference's, y the token:

    log p(y)     dz = e_y - p                      entropy H   dz = -p (log p + H)
    logit z_y    dz = e_y                          KL(p, q)    dz = p (log p - log q - KL)

Autograd runs on the `[N]` vectors; their gradients become dL/dhidden and dL/dW chunk by chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Row = Float[Tensor, " N"]
CHUNK_BYTES = 64 * 2**20  # of float32 logits: a chunk of both passes stays near the cache


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How hidden states become logits: the model's own scale and soft cap, then temperature."""

    temperature: float = 1.0
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the logits of some rows in float32 or wider."""
        raw = torch.nn.functional.linear(hidden, weight, bias)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32)) * self.scale
        if self.cap is not None:
            raw = self.cap * torch.tanh(raw / self.cap)
        return raw / self.temperature

    def back(self, slope: Tensor, logits: Tensor) -> Tensor:
        """Returns the slope in the raw product, given the slope in the logits."""
        if self.cap is not None:
            slope = slope * (1 - (logits * self.temperature / self.cap).square())
        return slope * (self.scale / self.temperature)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to read off each row besides log p(y) and z_y, and the reference's rows if any."""

    entropy: bool = False
    kl: bool = False
    reference: tuple[Tensor, Tensor, Tensor | None] | None = None  # hidden, weight, bias


def chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Gives slices of rows whose logits fit the chunk."""
    step = max(1, min(rows, CHUNK_BYTES // (4 * vocabulary)))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def reference_logp(asked: Asked, readout: Readout, rows: slice) -> Tensor:
    """Returns the log-probabilities of some of the reference's rows."""
    if asked.reference is None:
        raise ValueError("the exact KL needs the reference's hidden states")
    hidden, weight, bias = asked.reference
    return readout.logits(hidden[rows], weight, bias).log_softmax(-1)


class ChunkedHead(torch.autograd.Function):
    """log p(y), z_y, entropy and exact KL of each row, as four vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "N D"],
        weight: Float[Tensor, "V D"],
        bias: Tensor | None,
        how: tuple[Int[Tensor, " N"], Readout, Asked],
    ) -> tuple[Row, Row, Row, Row]:
        """Returns the four vectors; entropy and KL are 0 where they were not asked for."""
        ids, readout, asked = how
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = hidden.new_zeros(4, len(ids), dtype=wide)
        lse = hidden.new_empty(len(ids), dtype=wide)
        for rows in chunks(len(ids), len(weight)):
            logits = readout.logits(hidden[rows], weight, bias)
            lse[rows] = logits.logsumexp(-1)
            out[1, rows] = logits.gather(1, ids[rows, None])[:, 0]
            if asked.entropy or asked.kl:
                logp = logits - lse[rows, None]
                share = logp.exp()
                out[2, rows] = -(share * logp).sum(-1)
                if asked.kl:
                    other = reference_logp(asked, readout, rows)
                    out[3, rows] = (share * (logp - other)).sum(-1)
        out[0] = out[1] - lse
        ctx.save_for_backward(hidden, weight, bias, lse, out[2], out[3])
        ctx.how = how
        return out[0], out[1], out[2], out[3]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, on_logp: Row, on_logit: Row, on_entropy: Row, on_kl: Row
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Returns dL/dhidden, dL/dW and dL/dbias; the logits are made again, chunk by chunk."""
        hidden, weight, bias, lse, entropy, kl = ctx.saved_tensors
        ids, readout, asked = ctx.how
        needed = ctx.needs_input_grad
        down = torch.zeros_like(hidden) if needed[0] else None
        on_weight = weight.new_zeros(weight.shape, dtype=lse.dtype) if needed[1] else None
        on_bias = None if bias is None else bias.new_zeros(bias.shape, dtype=lse.dtype)
        for rows in chunks(len(ids), len(weight)):
            logits = readout.logits(hidden[rows], weight, bias)
            logp = logits - lse[rows, None]
            share = logp.exp()
            slope = share * -on_logp[rows, None]
            if asked.entropy:
                slope -= on_entropy[rows, None] * share * (logp + entropy[rows, None])
            if asked.kl:
                apart = logp - reference_logp(asked, readout, rows) - kl[rows, None]
                slope += on_kl[rows, None] * share * apart
            taken = (on_logp + on_logit)[rows, None]
            slope = readout.back(slope.scatter_add(1, ids[rows, None], taken), logits)
            narrow = slope.to(hidden.dtype)
            if down is not None:
                down[rows] = narrow @ weight
            if on_weight is not None:
                on_weight += narrow.T @ hidden[rows]
            if on_bias is not None:
                on_bias += slope.sum(0)
        return (
            down,
            None if on_weight is None else on_weight.to(weight.dtype),
            None if on_bias is None else on_bias.to(weight.dtype),
            None,
        )
