"""Bradley-Terry reward model: the chosen answer should score above the rejected one."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.numerics import last_token
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part, needs
from logratio.settings import AtLeastZero

Pooling = Literal["mean", "last"]


def score(policy: Policy, batch: Batch, pooling: Pooling) -> Float[Tensor, " B"]:
    """Returns each answer's score, pooled over its own tokens.

    The head's value after token t has seen token t, so nothing is shifted as labels are. For a
    linear head the mean of the scores is the score of the mean hidden state.
    """
    return (policy.heads["score"] * shares(batch, pooling)).sum(1)


def shares(batch: Batch, pooling: Pooling) -> Float[Tensor, "B S"]:
    """Returns how much each state counts in its row's score."""
    chosen = batch.mask if pooling == "mean" else last_token(batch.mask)
    share = chosen.to(batch.dtype) / chosen.sum(1, keepdim=True).clamp(min=1)
    return pad(share, (1, 0))


def loss(
    policy: Policy,
    batch: Batch,
    *,
    pooling: Pooling = "mean",
    margin: float | Literal["column"] = 0.0,
    centering: AtLeastZero = 0.0,
) -> Terms:
    """Returns the Bradley-Terry loss of each pair.

        loss = -log sigmoid(R+ - R- - margin) + centering (R+ + R-)^2

    `margin="column"` reads it from the chosen row of the column `margin`.
    """
    scores = score(policy, batch, pooling)
    first, second = batch.sides()
    gap = scores[first] - scores[second]
    behind = batch.stream("margin")[first] if margin == "column" else margin
    pulled = centering * (scores[first] + scores[second]).square()
    return Terms(
        terms={"preference": Term(loss=-logsigmoid(gap - behind) + pulled, unit="pair")},
        watch={"accuracy": (gap > 0).to(gap.dtype), "gap": gap, "score": scores},
    )


def coefficient(
    policy: Policy,
    batch: Batch,
    *,
    pooling: Pooling,
    margin: float | Literal["column"],
    centering: float,
) -> Slopes:
    """Returns -+ sigmoid(-(R+ - R- - margin)) + 2 centering (R+ + R-), times each state's share."""
    scores = score(policy, batch, pooling)
    first, second = batch.sides()
    behind = batch.stream("margin")[first] if margin == "column" else margin
    push = torch.sigmoid(scores[second] - scores[first] + behind)
    pull = 2 * centering * (scores[first] + scores[second])
    slope = torch.zeros_like(scores)
    slope[first], slope[second] = pull - push, pull + push
    return {"preference": {"score": slope[:, None] * shares(batch, pooling)}}


def reads(*, margin: float | str, **_: object) -> Needs:
    """Returns the score head, and the margin where it is a column."""
    columns = ["margin"] if margin == "column" else []
    return needs("pair", *columns, heads=["score"], couples="pair")


reward_model = Objective(
    name="reward_model",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_pair"],
    presets={
        "as_written": {"pooling": "mean", "margin": 0.0, "centering": 0.0},
        "centred": {"centering": 0.01},
        "last_token": {"pooling": "last"},
    },
)
