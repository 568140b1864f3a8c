"""Per-token weights of the policy loss: `(batch, *, settings) -> [B, T]`, before any cut."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from logratio.batch import Batch
from logratio.numerics import masked_sum
from logratio.part import Part, needs
from logratio.settings import Fraction, Interval, Share


def uniform(batch: Batch) -> Float[Tensor, "B T"]:
    """Returns 1 for every token."""
    return batch.mask.to(batch.dtype)


def variance(
    batch: Batch,
    *,
    strength: Fraction = 0.5,
    form: Literal["increment", "remaining"] = "increment",
    lowest: Fraction = 0.1,
    highest: Annotated[float, Interval("[1, inf)")] = 5.0,
    over: Literal["row", "batch"] = "row",
) -> Float[Tensor, "B T"]:
    """Returns the soft mask that favours tokens which decide the reward; its mean is 1.

        increment d_t = max(f_t - f_{t-1}, 0), f_0 := 0       remaining d_t = 1 - f_{t-1}
        w_t = (1 - strength) + strength d_t / mean(d), then clipped, then scaled to mean 1

    f_k, the column `importance` (a state stream), is the correlation of two rewards that share
    the first k tokens. Strength 0 is weight 1 to the last bit.
    """
    importance = batch.stream("importance")
    before, after = importance[:, :-1], importance[:, 1:]
    if form == "increment":
        deserved = (after - torch.where(batch.starts(), 0.0, before)).clamp(min=0)
    else:
        deserved = 1 - before
    relative = normalised(deserved, batch, over)
    weight = (1 - strength + strength * relative).clamp(lowest, highest)
    return normalised(weight, batch, over) * batch.mask


def top_entropy(batch: Batch, *, share: Share = 0.2) -> Float[Tensor, "B T"]:
    """Returns 1 for the share of the batch's tokens whose entropy was highest, 0 for the rest."""
    return top(batch.stream("entropy"), batch, share)


def random(batch: Batch, *, share: Share = 0.2, seed: int = 0) -> Float[Tensor, "B T"]:
    """Returns 1 for a random share of the batch's tokens: the control for any other mask.

    One seed gives one mask: whoever trains gives each step its own.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = torch.zeros(batch.mask.shape, dtype=batch.dtype, device=batch.mask.device)
    chosen = torch.rand(int(batch.mask.sum()), generator=generator, dtype=batch.dtype, device="cpu")
    draws[batch.mask] = chosen.to(draws.device)
    return top(draws, batch, share)


def top(values: Float[Tensor, "B T"], batch: Batch, share: float) -> Float[Tensor, "B T"]:
    """Returns 1 at the tokens with the highest values, as many as the share says, and on ties."""
    chosen = values[batch.mask]
    if chosen.numel() == 0:
        return torch.zeros_like(values)
    count = max(1, round(share * chosen.numel()))
    return (batch.mask & (values >= chosen.topk(count).values[-1])).to(values.dtype)


def normalised(
    values: Float[Tensor, "B T"], batch: Batch, over: Literal["row", "batch"]
) -> Float[Tensor, "B T"]:
    """Returns values divided by their mean over the row or batch; 1 where that mean is 0."""
    total, count = masked_sum(values, batch.mask)[:, None], batch.mask.sum(1, keepdim=True)
    if over == "batch":
        total, count = total.sum(), count.sum()
    return torch.where(total > 0, values * count / torch.where(total > 0, total, 1.0), 1.0)


WEIGHTS = {
    "uniform": Part(uniform),
    "variance": Part(variance, needs("importance")),
    "top_entropy": Part(top_entropy, needs("entropy")),
    "random": Part(random),
}
