"""DPO: the log-ratio to the reference is the reward, fitted to preferences."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.numerics import masked_sum
from logratio.objective import Objective, Slopes, only
from logratio.part import Needs, Part, needs
from logratio.settings import AtLeastZero, Interval, Positive

Kind = Literal["sigmoid", "ipo", "hinge", "robust"]
Normalise = Literal["sum", "length"]


def implicit_reward(
    policy: Policy, batch: Batch, normalise: Normalise
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B T"]]:
    """Returns each row's log-ratio to the reference, summed or per token, and its slope."""
    share = batch.mask.to(policy.logp.dtype)
    if normalise == "length":
        share = share / batch.mask.sum(1, keepdim=True).clamp(min=1)
    return ((policy.logp - batch.stream("ref")) * share).sum(1), share


def margin_loss(
    margin: Float[Tensor, " P"], kind: Kind, beta: float, smoothing: float
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Returns the loss of each pair as a function of h = beta (D+ - D-), and its slope in h.

    sigmoid  -(1 - s) log sigmoid(h) - s log sigmoid(-h)    ipo    (h / beta - 1 / (2 beta))^2
    robust   (that with -s on the second) / (1 - 2 s)       hinge  max(0, 1 - h)
    """
    if kind == "ipo":
        off = margin / beta - 1 / (2 * beta)
        return off.square(), 2 * off / beta
    if kind == "hinge":
        short = 1 - margin
        return short.clamp(min=0), torch.where(short >= 0, -1.0, 0.0).to(margin.dtype)
    right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
    up, down = torch.sigmoid(margin), torch.sigmoid(-margin)
    if kind == "robust":
        scale = 1 / (1 - 2 * smoothing)
        value = (1 - smoothing) * right - smoothing * wrong
        return scale * value, -scale * ((1 - smoothing) * down + smoothing * up)
    value = (1 - smoothing) * right + smoothing * wrong
    return value, smoothing * up - (1 - smoothing) * down


def loss(
    policy: Policy,
    batch: Batch,
    *,
    beta: Positive = 0.1,
    kind: Kind = "sigmoid",
    normalise: Normalise = "sum",
    smoothing: Annotated[float, Interval("[0, 0.5)")] = 0.0,
    sft: AtLeastZero = 0.0,
) -> Terms:
    """Returns the preference loss of each pair, and the chosen answer's mean -log p if asked.

    h = beta (D+ - D-),   D = sum log(policy / ref), or its mean over the tokens ("length")
    """
    ratio, _ = implicit_reward(policy, batch, normalise)
    first, second = batch.sides()
    margin = beta * (ratio[first] - ratio[second])
    value, _ = margin_loss(margin, kind, beta, smoothing)
    terms = {"preference": Term(loss=value, unit="pair")}
    if sft:
        tokens = batch.mask.sum(1).clamp(min=1)
        nll = -masked_sum(policy.logp, batch.mask) / tokens
        terms["sft"] = Term(loss=nll[first], unit="pair", coefficient=sft)
    rewards = beta * ratio
    return Terms(
        terms=terms,
        watch={
            "chosen": rewards[first],
            "rejected": rewards[second],
            "margin": margin,
            "accuracy": (margin > 0).to(margin.dtype),
        },
    )


def coefficient(
    policy: Policy,
    batch: Batch,
    *,
    beta: float,
    kind: Kind,
    normalise: Normalise,
    smoothing: float,
    sft: float,
) -> Slopes:
    """Returns +- beta dloss/dh on every token (over the length where that normalises)."""
    ratio, share = implicit_reward(policy, batch, normalise)
    first, second = batch.sides()
    _, slope = margin_loss(beta * (ratio[first] - ratio[second]), kind, beta, smoothing)
    rows = torch.zeros_like(ratio)
    rows[first], rows[second] = beta * slope, -beta * slope
    slopes = {"preference": {"logp": rows[:, None] * share}}
    if sft:
        on_chosen = torch.zeros_like(ratio)
        on_chosen[first] = -1.0
        tokens = batch.mask.sum(1, keepdim=True).clamp(min=1)
        slopes["sft"] = {"logp": on_chosen[:, None] * batch.mask / tokens}
    return slopes


def reads(**_: object) -> Needs:
    """Returns the pairs and the reference's log-probs."""
    return needs("pair", "ref", couples="pair")


def check(objective: Objective) -> None:
    """Refuses a smoothing that the kind of loss does not have."""
    smoothed = objective.loss.resolved()["kind"] in ("sigmoid", "robust")
    only(objective, "smoothing", when=smoothed, reads="`kind` 'sigmoid' or 'robust'")


dpo = Objective(
    name="dpo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_pair"],
    presets={"as_written": {"normalise": "length"}, "rpo": {"sft": 1.0}},
    check=check,
)
