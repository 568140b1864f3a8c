"""Objectives that must be one another: the same loss and gradient on the same batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from logratio.lab.draw import Draw, draw
from logratio.lab.rows import Row, attempted
from logratio.lab.slopes import by_autograd, size
from logratio.objective import Objective
from logratio.objectives import find

PART = "identities"
ROUNDING = {"loss": 1e-15, "gradient": 1e-15}  # the same sum, divided in another order
BITS = {"loss": 0.0, "gradient": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """That two objectives are one on every batch, or on batches whose rows are equally long."""

    case: str
    one: Objective
    other: Objective
    full: bool = False
    bits: bool = False

    def row(self) -> Row:
        """Returns how far loss and gradient are apart, at worst over a few draws."""
        apart = [self.apart(seed) for seed in range(3)]
        return Row(
            part=PART,
            subject=self.one.name,
            case=self.case,
            measured={
                "loss": max(loss for loss, _ in apart),
                "gradient": max(gradient for _, gradient in apart),
            },
            limits=BITS if self.bits else ROUNDING,
        )

    def apart(self, seed: int) -> tuple[float, float]:
        """Returns the differences in loss and gradient on one draw."""
        first = draw(self.one, seed)
        if self.full:
            batch = replace(first.batch, mask=torch.ones_like(first.batch.mask))
            first = replace(first, batch=self.one.prepare(batch))
        second = replace(first, objective=self.other, batch=self.other.prepare(first.batch))
        (loss, slope), (other, other_slope) = measured(first), measured(second)
        return size(loss - other), size(slope - other_slope)


def measured(one: Draw) -> tuple[Tensor, Tensor]:
    """Returns the loss of a draw and its gradient in the logits."""
    leaves = {name: leaf.requires_grad_() for name, leaf in one.leaves.items()}
    loss = one.loss(leaves)
    return loss.detach(), by_autograd(loss, leaves)["logits"]


def identities() -> Iterator[Identity]:
    """Yields each of them."""
    grpo = find("grpo")
    yield Identity(
        case="equal clips, equal lengths: grpo",
        one=find("dapo").using(clip_high=0.2),
        other=grpo,
        full=True,
    )
    yield Identity(
        case="strength 0: grpo, bit for bit",
        one=find("variance_grpo").using(preset="off"),
        other=grpo,
        bits=True,
    )
    yield Identity(
        case="everything kept: sft",
        one=find("rft").using(preset="offline"),
        other=find("sft").using(average="per_sequence"),
        bits=True,
    )


def rows() -> Iterator[Row]:
    """Yields a row for each identity."""
    for identity in identities():
        subject = identity.one.name
        yield attempted(identity.row, part=PART, subject=subject, case=identity.case)
