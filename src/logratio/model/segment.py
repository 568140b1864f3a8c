"""One block of attention with its log-sum-exp, forward and backward, by the device's stock kernel.

The backward takes the output and log-sum-exp that the block was merged into.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Masks = Tensor | None  # 0 where a key is seen, -inf where not


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, mask: Masks, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the output `[n, H, Q, D]` and the log-sum-exp `[n, H, Q]` of a block.

    A query that sees no key has output 0 and log-sum-exp -inf.
    """
    if query.device.type != "cpu":
        if flashes(query, mask):
            return flash_forward(query, key, value, causal=causal, scale=scale)
        return plain_forward(query, key, value, causal=causal, mask=mask, scale=scale)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    if mask is None:
        return out, lse
    blind = (mask == -torch.inf).all(-1)
    return out.masked_fill(blind[..., None], 0.0), lse.masked_fill(blind, -torch.inf)


def backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    merged: tuple[Tensor, Tensor],
    *,
    causal: bool,
    mask: Masks,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of query, key and value, from the merged output and log-sum-exp."""
    query, key, value = inputs
    out, lse = merged
    if query.device.type != "cpu":
        if flashes(query, mask):
            return flash_backward(gradient, inputs, merged, causal=causal, scale=scale)
        return plain_backward(gradient, inputs, merged, causal=causal, mask=mask, scale=scale)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    parts = [gradient, query, key, value, out]
    if causal and query.dtype == torch.bfloat16:
        # half the time where blocks are small, and sums over the queries that are not rounded
        parts = [part.float() for part in parts]
    found: Any = kernel(*parts, lse, 0.0, causal, attn_mask=mask, scale=scale)
    return tuple(part.to(query.dtype) for part in found)


def flashes(query: Tensor, mask: Masks) -> bool:
    """Says whether a GPU's flash kernel serves a block: 16 bits, no mask, heads that it has."""
    half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[3]
    served = mask is None and half and width % 8 == 0 and width <= 256
    return served and query.is_cuda and torch.cuda.get_device_capability(query.device) >= (8, 0)


def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns what `forward` does, by a GPU's flash kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    found: Any = kernel(query, key, value, 0.0, causal, scale=scale)
    return found[0], found[1]


def flash_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    merged: tuple[Tensor, Tensor],
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `backward` does, by a GPU's flash kernel."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
    query, key, _ = inputs
    out, lse = merged[0], merged[1].contiguous()  # the kernel reads it as if it were
    sizes = None, None, query.shape[2], key.shape[2]  # no sequences of different lengths
    unread = torch.empty(2, dtype=torch.uint64, device=query.device)  # the state of a dropout of 0
    found: Any = kernel(
        gradient, *inputs, out, lse, *sizes, 0.0, causal, unread, unread, scale=scale
    )
    return found


def plain_forward(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, mask: Masks, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns what `forward` does, in plain tensor operations, on any device and in any type."""
    scores = block_scores(query, key, causal=causal, mask=mask, scale=scale)
    lse = scores.logsumexp(-1)
    share = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (share.to(value.dtype) @ spread(value, query)).to(query.dtype), lse


def plain_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    merged: tuple[Tensor, Tensor],
    *,
    causal: bool,
    mask: Masks,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `backward` does, in plain tensor operations."""
    query, key, value = inputs
    out, lse = merged
    scores = block_scores(query, key, causal=causal, mask=mask, scale=scale)
    share = (scores - lse[..., None]).exp()
    wide = gradient.to(share.dtype)
    inner = wide @ spread(value, query).to(share.dtype).transpose(-1, -2)
    rows = (wide * out.to(share.dtype)).sum(-1, keepdim=True)
    slope = share * (inner - rows) * scale
    on_key = slope.transpose(-1, -2) @ query.to(share.dtype)
    on_value = share.transpose(-1, -2) @ wide
    return (
        (slope @ spread(key, query).to(share.dtype)).to(query.dtype),
        gathered(on_key, key).to(key.dtype),
        gathered(on_value, value).to(value.dtype),
    )


def block_scores(query: Tensor, key: Tensor, *, causal: bool, mask: Masks, scale: float) -> Tensor:
    """Returns scaled scores with -inf where a key is not seen, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ spread(key, query).transpose(-1, -2)).to(wide) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores if mask is None else scores + mask


def spread(heads: Tensor, query: Tensor) -> Tensor:
    """Returns key or value heads repeated so that there is one for each query head."""
    return heads.repeat_interleave(query.shape[1] // heads.shape[1], dim=1)


def gathered(slope: Tensor, heads: Tensor) -> Tensor:
    """Returns the sum over the query heads that share a key or value head."""
    return slope.view(len(slope), heads.shape[1], -1, *slope.shape[2:]).sum(2)
