"""Who divides: turns the mask into a weight for each item and one total for the whole batch.

An average is `(batch, unit, *, settings) -> Weights`, made of the whole optimisation batch. The
loss is sum(each * loss) / total, so how a batch is cut can not change a gradient. Every average
takes `truncated="leave_out"`: rows that ran out of tokens then train nothing and count for
nothing, though they stood in their group's statistics (DAPO's overlong filtering).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from logratio.batch import Batch, Unit, Weights
from logratio.numerics import group_sum
from logratio.part import Needs, Part, needs
from logratio.settings import AtLeastOne, Refused

Truncated = Literal["count", "leave_out"]
Count = Literal["kept", "drawn"]


def per_token(batch: Batch, unit: Unit, *, truncated: Truncated = "count") -> Weights:
    """Returns weight 1 for every token: sum of losses / number of tokens in the whole batch."""
    each = token_mask(batch, unit, truncated, "per_token")
    return Weights(each=each, total=each.sum())


def per_sequence(
    batch: Batch, unit: Unit, *, truncated: Truncated = "count", count: Count = "kept"
) -> Weights:
    """Returns weights that give each row the mean of its tokens, and all rows the same say.

    `count="drawn"` divides by the rows that were sampled rather than by those that were kept.
    """
    mask = counted(batch, truncated)
    total = rows_of(batch, mask, count)
    if unit == "sequence":
        return Weights(each=mask.any(1).to(batch.dtype), total=total)
    check_unit(unit, ("token", "sequence"), "per_sequence")
    tokens = mask.sum(1, keepdim=True).clamp(min=1)
    return Weights(each=mask.to(batch.dtype) / tokens, total=total)


def per_pair(batch: Batch, unit: Unit, *, truncated: Truncated = "count") -> Weights:
    """Returns weight 1 for every pair: sum of losses / number of pairs."""
    check_unit(unit, ("pair",), "per_pair")
    first, second = batch.sides()
    present = counted(batch, truncated).any(1)
    each = torch.zeros_like(present, dtype=batch.dtype)
    each[first] = (present[first] & present[second]).to(batch.dtype)
    return Weights(each=each, total=each.sum())


def fixed_length(
    batch: Batch, unit: Unit, *, length: AtLeastOne, truncated: Truncated = "count"
) -> Weights:
    """Returns weight 1 / length for every token, divided by the number of rows (Dr.GRPO)."""
    mask = token_mask(batch, unit, truncated, "fixed_length")
    return Weights(each=mask / length, total=rows_of(batch, mask, "kept"))


def per_group_token(batch: Batch, unit: Unit, *, truncated: Truncated = "count") -> Weights:
    """Returns weights that give each prompt the mean over all its tokens (DAPO, as written)."""
    mask = token_mask(batch, unit, truncated, "per_group_token")
    tokens = group_sum(mask.sum(1), batch.group)
    each = mask / tokens[:, None].clamp(min=1)
    return Weights(each=each, total=each.sum().round())


def summed(
    batch: Batch, unit: Unit, *, truncated: Truncated = "count", count: Count = "kept"
) -> Weights:
    """Returns weight 1 for every token, divided by the number of rows (REINFORCE as derived)."""
    mask = token_mask(batch, unit, truncated, "summed")
    return Weights(each=mask, total=rows_of(batch, mask, count))


def rows_of(batch: Batch, mask: Tensor, count: Count) -> Float[Tensor, ""]:
    """Returns how many rows train, or how many were drawn to get them."""
    present = mask.any(1).to(batch.dtype)
    return (present * batch.stream("drawn")).sum() if count == "drawn" else present.sum()


def counted(batch: Batch, truncated: Truncated) -> Bool[Tensor, "B T"]:
    """Returns the mask, without the rows that ran out of tokens where those are left out."""
    if truncated == "count":
        return batch.mask
    return batch.mask & ~batch.stream("truncated").bool()[:, None]


def token_mask(batch: Batch, unit: Unit, truncated: Truncated, owner: str) -> Tensor:
    """Returns the counted tokens as 0.0 and 1.0, for an average that is about tokens only."""
    check_unit(unit, ("token",), owner)
    return counted(batch, truncated).to(batch.dtype)


def check_unit(unit: Unit, wanted: tuple[Unit, ...], owner: str) -> None:
    """Refuses to average one kind of item with weights made for another."""
    if unit not in wanted:
        raise Refused(f"`average` is `{owner}`, which averages the losses of a "
                      f"{' or a '.join(wanted)}, not of a {unit}")  # fmt: skip


def average_needs(*, truncated: Truncated = "count", count: str = "kept", length: int = 0) -> Needs:
    """Returns the columns that an average reads under its settings."""
    del length
    names = [("truncated", truncated == "leave_out"), ("drawn", count == "drawn")]
    return needs(*(name for name, wanted in names if wanted))


AVERAGES = {
    function.__name__: Part(function, average_needs)
    for function in (per_token, per_sequence, per_pair, fixed_length, per_group_token, summed)
}
