"""The head and the loss in one pass: each row of logits is made once, and its gradient at once.

Where a loss couples no rows, dL/dlogits of some rows is known as soon as their logits are. They
need not be made again in a backward pass: three matrix products a row instead of four.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logratio.model.head import How, Product, Slopes, read, turn

Cut = tuple[slice, slice]  # rows of the batch, and their tokens
Loss = Callable[[slice, Tensor, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done: how logits are read, where the rows are cut, and the loss of some rows.

    The loss is given the rows, their four numbers a token, and everything else it differentiates.
    """

    how: How
    cuts: Sequence[Cut]
    loss: Loss


def cuts_of(counts: Sequence[int], most: int) -> list[Cut]:
    """Returns consecutive rows of at most `most` tokens together, or of one row that has more."""
    found: list[Cut] = []
    row = token = held = 0
    for place, count in enumerate(counts):
        if held and held + count > most:
            found.append((slice(row, place), slice(token, token + held)))
            row, token, held = place, token + held, 0
        held += count
    if row < len(counts):
        found.append((slice(row, len(counts)), slice(token, token + held)))
    return found


class OnePass(torch.autograd.Function):
    """The loss of a pack, with the gradients that its backward will hand out."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: Work, *others: Tensor
    ) -> Tensor:
        """Returns the loss; `others` are what it differentiates besides the rows of logits."""
        slopes = Slopes(hidden, weight, bias, ctx.needs_input_grad)
        wanted = ctx.needs_input_grad[4:]
        pairs = list(zip(others, wanted, strict=True))
        leaves = [one.detach().requires_grad_(need) for one, need in pairs]
        on_others = [torch.zeros_like(one) for one in others]
        total = hidden.new_zeros((), dtype=slopes.wide)
        product = Product(weight, bias)
        for rows, tokens in work.cuts:
            raw = product(hidden[tokens])
            numbers, level = read(raw, work.how, tokens)
            with torch.enable_grad():
                share = work.loss(rows, numbers.requires_grad_(), leaves)
            down, *parts = slopes_of(share, [numbers, *leaves])
            total += share.detach()
            found = numbers.detach(), level
            slopes.add(turn(raw, work.how, tokens, found=found, down=tuple(down)), tokens)
            on_others = [one + part for one, part in zip(on_others, parts, strict=True)]
        given = [one if need else None for one, need in zip(on_others, wanted, strict=True)]
        ctx.found = [*slopes.found(), *given]
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Returns what forward found, times the gradient of the loss."""
        found: list[Tensor | None] = ctx.found
        ctx.found = None
        if float(gradient) != 1:
            found = [None if one is None else one.mul_(gradient) for one in found]
        return *found[:3], None, *found[3:]


def slopes_of(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradient of each leaf, 0 where the loss does not depend on it."""
    open_ = [leaf for leaf in leaves if leaf.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(open_)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, open_, allow_unused=True)
    given = iter(found)
    parts = [next(given) if leaf.requires_grad else None for leaf in leaves]
    return [torch.zeros_like(leaf) if part is None else part
            for leaf, part in zip(leaves, parts, strict=True)]  # fmt: skip
