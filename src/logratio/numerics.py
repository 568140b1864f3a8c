"""Arithmetic that losses share: ratios, clipping, KL estimators, stable sums, scans, `stop`."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "exact"]
LARGEST_LOG_RATIO = 20.0  # e^20 is 5e8; past it a k3 value carries no gradient

_stopped: list[list[Tensor]] = []  # the innermost recording comes last
_replayed: list[Iterator[Tensor]] = []


def stop(value: Tensor) -> Tensor:
    """Returns the value without its gradient.

    Every stop-gradient of the library goes through here, so that a test can record the stopped
    values once, replay them, and let finite differences hold fixed what autograd holds fixed.
    """
    if _replayed:
        return next(_replayed[-1])
    if _stopped:
        _stopped[-1].append(value.detach())
    return value.detach()


@contextmanager
def recorded() -> Generator[list[Tensor]]:
    """Keeps every value that `stop` sees in the list that it gives."""
    _stopped.append([])
    try:
        yield _stopped[-1]
    finally:
        _stopped.pop()


@contextmanager
def replayed(values: list[Tensor]) -> Generator[None]:
    """Makes `stop` return these values, in order, whatever it is given."""
    _replayed.append(iter(values))
    try:
        yield
    finally:
        _replayed.pop()


def masked_sum(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Returns each row's sum over its chosen tokens."""
    return torch.where(mask, values, 0.0).sum(1)


def masked_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Returns each row's mean over its chosen tokens; 0 for a row without any."""
    return masked_sum(values, mask) / mask.sum(1).clamp(min=1)


def last_token(mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Marks the last chosen token of each row; nothing in a row without any."""
    left = mask.flip(1).cumsum(1).flip(1)
    return mask & (left == 1)


def backward_scan(
    values: Float[Tensor, "B T"], factors: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Returns x with x_t = values_t + factors_t x_{t+1}, in log2(T) passes.

    >>> backward_scan(torch.tensor([[1.0, 2.0, 3.0]]), torch.full((1, 3), 0.5)).tolist()
    [[2.75, 3.5, 3.0]]
    """
    reach = 1
    while reach < values.shape[1]:
        ahead = torch.nn.functional.pad(values[:, reach:], (0, reach))
        further = torch.nn.functional.pad(factors[:, reach:], (0, reach))
        values, factors = values + factors * ahead, factors * further
        reach *= 2
    return values


def at_next_state(
    states: Float[Tensor, "B S"], mask: Bool[Tensor, "B T"], last: Float[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """Returns, at each chosen token, the state stream (S = T + 1) where the policy chooses next.

    Tokens between that the policy did not choose are skipped; after the last it is `last`.
    """
    ends = last_token(mask)
    no = mask.new_zeros(mask.shape[0], 1)
    after_last = torch.cat([no, ends], 1)
    chosen = torch.cat([mask, no], 1)
    values = torch.where(after_last, last[:, None], torch.where(chosen, states, 0.0))
    carried = backward_scan(values, (~(chosen | after_last)).to(states.dtype))
    return torch.where(mask, carried[:, 1:], 0.0)


def trace_return(
    states: Float[Tensor, "B S"],
    mask: Bool[Tensor, "B T"],
    last: Float[Tensor, " B"],
    *,
    trace: float,
) -> Float[Tensor, "B T"]:
    """Returns the lambda-return of state values: x_t = (1 - trace) V_{t+1} + trace x_{t+1}.

    It ends in `last` at the last chosen token. Trace 0 looks one state ahead, trace 1 to the end.
    """
    ends = last_token(mask)
    ahead = at_next_state(states, mask, last)
    mixed = torch.where(ends, ahead, (1 - trace) * ahead)
    factors = torch.full_like(mixed, trace).masked_fill(~mask, 1.0)
    return backward_scan(mixed, factors) * mask


def group_index(group: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Returns each item's group as 0, 1, 2, ... and the size of the group that it is in."""
    index = cast(Tensor, torch.unique(group, return_inverse=True)[1])
    return index, index.bincount()[index]


def group_sum(values: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Returns, at each item, the sum over the items of its group."""
    index, _ = group_index(group)
    return torch.zeros_like(values).index_add(0, index, values)[index]


def group_mean(values: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Returns, at each item, the mean over the items of its group."""
    return group_sum(values, group) / group_index(group)[1]


def group_extreme(
    values: Float[Tensor, " N"], group: Int[Tensor, " N"], *, largest: bool
) -> Float[Tensor, " N"]:
    """Returns, at each item, the largest (or smallest) value in its group."""
    index, _ = group_index(group)
    reduce = "amax" if largest else "amin"
    return values.scatter_reduce(0, index, values, reduce, include_self=False)[index]


def group_log_mean_exp(
    values: Float[Tensor, " N"], group: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Returns log mean exp over each item's group, and how many samples carry that mean.

    The second is the effective sample size (sum w)^2 / sum w^2 of the weights exp(values).

    >>> value, size = group_log_mean_exp(torch.tensor([0.0, -1e9]), torch.tensor([0, 0]))
    >>> round(value[0].exp().item(), 6), size[0].item()
    (0.5, 1.0)
    """
    peak = group_extreme(values, group, largest=True).nan_to_num(neginf=0.0)
    weights = (values - peak).exp()
    total = group_sum(weights, group)
    size = total.square() / group_sum(weights.square(), group).clamp(min=1e-30)
    return peak + (total / group_index(group)[1]).log(), size


def clipped_surrogate(
    log_ratio: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Returns the surrogate S and its slope dS / d log-ratio.

        S = min(r A, clip(r, 1 - low, 1 + high) A);   A < 0 and dual: max(S, dual A)

    The slope is r A while S follows r, else 0; past r = e^20 the ratio is held.
    """
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    plain = ratio * advantage
    surrogate = torch.minimum(plain, ratio.clamp(1 - low, 1 + high) * advantage)
    released = torch.where(advantage >= 0, ratio > 1 + high, ratio < 1 - low)
    released = released | (log_ratio > LARGEST_LOG_RATIO)
    if dual is not None:
        floor = torch.where(advantage < 0, dual * advantage, -torch.inf)
        released = released | (surrogate < floor)
        surrogate = torch.maximum(surrogate, floor)
    return surrogate, torch.where(released, 0.0, plain)


def kl_estimate(
    logp: Float[Tensor, "B T"],
    ref: Float[Tensor, "B T"],
    *,
    estimator: Estimator,
    log_ratio: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Returns an estimate of KL(policy, reference) at each sampled token, and its slope in logp.

        x = ref / policy:   k1 = -log x   k2 = (log x)^2 / 2   k3 = x - 1 - log x

    `log_ratio` to the policy that sampled weighs the estimate, and its slope, by the ratio.
    """
    log_x = ref - logp
    if estimator == "k1":
        value, slope = -log_x, torch.ones_like(log_x)
    elif estimator == "k2":
        value, slope = log_x.square() / 2, -log_x
    elif estimator == "k3":
        within = log_x.clamp(max=LARGEST_LOG_RATIO)
        value = torch.expm1(within) - within
        slope = torch.where(log_x > LARGEST_LOG_RATIO, 0.0, -torch.expm1(within))
    else:
        raise ValueError("the exact KL is read from the head, it is not estimated from a sample")
    if log_ratio is None:
        return value, slope
    ratio = log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()
    follows = torch.where(log_ratio > LARGEST_LOG_RATIO, 0.0, value)
    return ratio * value, ratio * (follows + slope)


def soft_cross_entropy(
    x: Float[Tensor, " B"], target: Float[Tensor, " B"], *, edge: float
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns -(p* log p + (1 - p*) log(1 - p)) at p = e^x, p* = e^target <= 1, and its slope in x.

    The slope is (p - p*) / (1 - p). Past x = -edge the loss goes on as a straight line.
    """
    success, inside = target.exp(), x.clamp(-1e30, -edge)  # -inf times 0 is no number
    value = -(success * inside + (1 - success) * log1mexp(inside))
    slope = (inside.exp() - success) / -torch.expm1(inside)
    return value + slope * torch.where(x > -edge, x + edge, 0.0), slope


def nucleus(logp: Float[Tensor, "N V"], *, top_p: float, top_k: int | None) -> Bool[Tensor, "N V"]:
    """Marks the fewest likeliest tokens that hold `top_p`, the `top_k` first of them, and ties."""
    ordered = logp.sort(1, descending=True).values
    before = ordered.exp().cumsum(1) - ordered.exp()
    count = ((before < top_p) | (top_p == 1)).sum(1, keepdim=True)
    count = count if top_k is None else count.clamp(max=top_k)
    return logp >= ordered.gather(1, count - 1)


def log1mexp(x: Tensor) -> Tensor:
    """Returns log(1 - exp(x)) for x < 0, accurate at both ends."""
    half = -0.6931471805599453  # log 1/2, where the two ways are equally good
    near = torch.log(-torch.expm1(x.clamp(min=half)))
    far = torch.log1p(-torch.exp(x.clamp(max=half)))
    return torch.where(x > half, near, far)
