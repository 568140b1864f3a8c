"""The importance network: how alike two rewards are, given the tokens that two rollouts share.

f_k is the correlation of the rewards of two continuations of the same first k tokens. It is the
share of the reward's variance that those tokens have decided.
"""

from math import log, pi
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms, Unit, Weights
from logratio.credit import CREDITS
from logratio.keep import KEEPS
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part, needs
from logratio.settings import Interval, Refused

Kind = Literal["normal", "product", "bernoulli"]
Link = Literal["sigmoid", "tanh"]


def correlation(
    policy: Policy, batch: Batch, link: Link, bound: float
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Returns f at each pair's split, within the bound, and its slope in the head's number."""
    first, _ = batch.sides()
    return linked(policy.heads["importance"][first, split_state(batch)[first]], link, bound)


def linked(read: Tensor, link: Link, bound: float) -> tuple[Tensor, Tensor]:
    """Returns f of the head's numbers, within the bound, and its slope in them."""
    if link == "tanh":
        value = torch.tanh(read)
        return bound * value, bound * (1 - value.square())
    value = torch.sigmoid(read)
    return bound * value, bound * value * (1 - value)


def split_state(batch: Batch) -> Int[Tensor, " B"]:
    """Returns the column of the state where each row parted from its sister."""
    split, length = batch.stream("split").long(), batch.mask.sum(1)
    wrong = (split < 0) | (split > length)
    if wrong.any():
        raise Refused(f"`split` holds {int(split[wrong][0])} in a row of {int(length[wrong][0])} "
                      "tokens, but it must be at least 0 and at most the length")  # fmt: skip
    after = (batch.mask.cumsum(1) >= split[:, None]).int().argmax(1) + 1
    return torch.where(split > 0, after, batch.starts().int().argmax(1))


def standardised(batch: Batch) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Returns S = a^2 + b^2 and P = a b of each pair's standardised rewards a and b."""
    first, second = batch.sides()
    deviation = batch.stream("reward") - batch.stream("mean")
    variance, shift = batch.stream("variance")[first], batch.stream("shift")[first]
    scale = torch.where(variance > 0, variance, 1.0)
    a, b = deviation[first], deviation[second]
    return (a.square() + b.square() + 2 * shift) / scale, (a * b + shift) / scale


def pair_loss(
    f: Float[Tensor, " P"], batch: Batch, kind: Kind
) -> tuple[Float[Tensor, " P"], Float[Tensor, " P"]]:
    """Returns the loss of each pair at correlation f, and its slope in f.

    normal     log 2 pi v + log(1 - f^2) / 2 + (S - 2 f P) / (2 (1 - f^2))
    product    (f - P)^2
    bernoulli  -log of: both m^2 + f q, neither (1 - m)^2 + f q, one (1 - f) q;   q = m (1 - m)
    """
    first, second = batch.sides()
    squares, product = standardised(batch)
    if kind == "product":
        return (f - product).square(), 2 * (f - product)
    if kind == "normal":
        left = 1 - f.square()
        variance = batch.stream("variance")[first]
        constant = log(2 * pi) + torch.where(variance > 0, variance, 1.0).log()
        value = constant + left.log() / 2 + (squares - 2 * f * product) / (2 * left)
        cubic = f**3 - product * f.square() + (squares - 1) * f - product
        return value, cubic / left.square()
    mean, reward = batch.stream("mean")[first], batch.stream("reward")
    if ((reward != 0) & (reward != 1)).any():
        raise Refused(f"`reward` holds {reward.unique().tolist()}, but `kind` 'bernoulli' is for "
                      "rewards of 0 and 1")  # fmt: skip
    spread = mean * (1 - mean)
    alike = torch.where(reward[first] > 0.5, mean, 1 - mean).square() + f * spread
    same = (reward[first] > 0.5) == (reward[second] > 0.5)
    chance = torch.where(same, alike, (1 - f) * spread)
    safe = torch.where(spread > 0, chance, 1.0)
    return -safe.log(), torch.where(same, -1.0, 1.0) * spread / safe


def loss(
    policy: Policy,
    batch: Batch,
    *,
    kind: Kind = "normal",
    link: Link = "sigmoid",
    bound: Annotated[float, Interval("(0, 1)")] = 0.99,
) -> Terms:
    """Returns the loss of each pair of rollouts that share their first `split` tokens.

    The bound keeps the normal likelihood finite: two equal rewards would send f to 1 without end.
    """
    f, _ = correlation(policy, batch, link, bound)
    value, _ = pair_loss(f, batch, kind)
    return Terms(
        terms={"pair": Term(loss=value, unit="pair")},
        watch={"importance": f, "product": standardised(batch)[1]},
    )


def coefficient(policy: Policy, batch: Batch, *, kind: Kind, link: Link, bound: float) -> Slopes:
    """Returns dloss/df df/dhead at the state where each pair splits, read on its first row."""
    f, inner = correlation(policy, batch, link, bound)
    _, outer = pair_loss(f, batch, kind)
    first, _ = batch.sides()
    slope = torch.zeros_like(policy.heads["importance"])
    slope[first, split_state(batch)[first]] = outer * inner
    return {"pair": {"importance": slope}}


def per_informative_pair(batch: Batch, unit: Unit) -> Weights:
    """Returns weight 1 for every pair of a group whose rewards vary; the others count nowhere."""
    pairs: Weights = AVERAGES["per_pair"](batch, unit)
    each = pairs.each * (batch.stream("variance") > 0)
    return Weights(each=each, total=each.sum())


def reads(**_: object) -> Needs:
    """Returns the head, the split of each row, and the statistics that the credit makes."""
    columns = ["reward", "pair", "split", "mean", "variance", "shift"]
    return needs(*columns, heads=["importance"], couples="pair")


importance = Objective(
    name="importance",
    loss=Part(loss, reads),
    coefficient=coefficient,
    keep=KEEPS["varied_groups"],
    credit=CREDITS["pairs"],
    average=Part(per_informative_pair),
    presets={"as_written": {"bound": 1 - 1e-6, "credit.corrected": False}},
)
