"""Reward -> per-token advantage: `(batch, *, settings) -> columns`, one of them `advantage`.

A credit sees the whole optimisation batch and every token in it, so what it takes a mean over does
not depend on how the batch is cut later. Its results are constants of the loss.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logratio.batch import Batch
from logratio.numerics import (
    Estimator,
    at_next_state,
    backward_scan,
    group_extreme,
    group_index,
    group_mean,
    group_sum,
    kl_estimate,
    last_token,
    masked_sum,
)
from logratio.part import Needs, Part, needs
from logratio.settings import AtLeastOne, AtLeastZero, Fraction, Refused

Columns = Mapping[str, Tensor]
FINITE = "but a baseline of rewards needs them finite"
Spread = Literal["population", "sample", "batch", "none"]


def none(batch: Batch) -> Columns:
    """Returns no advantage at all: the objective reads rewards, or none."""
    del batch
    return {}


def plain(batch: Batch) -> Columns:
    """Returns the reward itself as the advantage of every token (REINFORCE)."""
    refuse_outside(batch.stream("reward"), batch.stream("reward").isfinite(), said=FINITE)
    return {"advantage": on_tokens(batch.stream("reward"), batch)}


def group(
    batch: Batch,
    *,
    center: Literal["mean", "leave_one_out"] = "mean",
    spread: Spread = "population",
    kl: AtLeastZero = 0.0,
    estimator: Estimator = "k1",
    signed: bool = False,
    overlong_limit: AtLeastOne | None = None,
    overlong_cache: AtLeastOne | None = None,
) -> Columns:
    """Returns each rollout's reward against its group's, on all its tokens (outcome supervision).

        A_i = (r_i - mean r) / deviation r;   leave_one_out: A_i = r_i - mean of the others

    A group whose rewards are equal teaches nothing and gets exactly 0. `kl` takes that much of the
    sampled KL to the reference off the reward (only k1 then follows the KL's gradient); `signed`
    reads 0 / 1 as -1 / +1.
    """
    reward = batch.stream("reward")
    check_group_size(batch.group)
    refuse_outside(reward, reward.isfinite(), said=FINITE)
    reward = 2 * reward - 1 if signed else reward
    reward = reward + overlong_penalty(batch, limit=overlong_limit, cache=overlong_cache)
    if kl:
        reward = reward - kl * masked_sum(sampled_kl(batch, estimator), batch.mask)
    advantage = centred(reward, batch.group, spread=spread)
    if center == "leave_one_out":
        _, size = group_index(batch.group)
        advantage = advantage * size / (size - 1)
    return {"advantage": on_tokens(advantage, batch)}


def process(batch: Batch, *, spread: Spread = "population") -> Columns:
    """Returns the sum of the standardised rewards of the steps that end at or after each token.

    Columns `step_end` marks the last token of each step, `step_reward` holds its reward. Mean and
    deviation are those of all steps of the prompt, pooled. The last step reaches the last token;
    a row without steps is one step with the row's reward.
    """
    check_group_size(batch.group)
    ends, rewards = whole_steps(batch)
    owners = batch.group[:, None].expand_as(ends)[ends]
    steps = torch.zeros_like(rewards)
    steps[ends] = centred(rewards[ends], owners, spread=spread)
    ahead = backward_scan(steps, torch.ones_like(steps))
    return {"advantage": torch.where(batch.mask, ahead, 0.0)}


def gae(
    batch: Batch,
    *,
    discount: Fraction = 1.0,
    trace: Fraction = 0.95,
    kl: AtLeastZero = 0.05,
    estimator: Estimator = "k1",
    rewards: Literal["outcome", "steps"] = "outcome",
    truncated: Literal["end", "bootstrap"] = "end",
    whiten: bool = True,
) -> Columns:
    """Returns generalised advantages and the value targets `returns` (PPO).

        d_t = r_t + discount V_{t+1} - V_t,   A_t = d_t + discount trace A_{t+1},   G_t = A_t + V_t
        r_t = R at the last token (or step rewards at step ends) - kl (old_t - ref_t)

    The KL is under the policy that sampled. After a stop token the value is 0; after a truncation
    too, or it is read from the state after the last token (`bootstrap`). `whiten` makes the
    advantages of the batch's tokens mean 0 and deviation 1.
    """
    mask, values = batch.mask, batch.stream("value")
    if rewards == "steps":
        received = batch.stream("step_reward")
    else:
        refuse_outside(batch.stream("reward"), batch.stream("reward").isfinite(), said=FINITE)
        received = last_token(mask) * batch.stream("reward")[:, None]
    if kl:
        received = received - kl * sampled_kl(batch, estimator)
    beyond = torch.zeros_like(values[:, 0])
    if truncated == "bootstrap":
        beyond = masked_sum(values[:, 1:], last_token(mask)) * batch.stream("truncated")
    ahead = at_next_state(values, mask, beyond)
    now = values[:, :-1]
    delta = torch.where(mask, received + discount * ahead - now, 0.0)
    factors = torch.where(mask, torch.full_like(delta, discount * trace), 1.0)
    advantage = backward_scan(delta, factors)
    returns = torch.where(mask, advantage + now, 0.0)
    return {"advantage": whitened(advantage, mask, enabled=whiten), "returns": returns}


def pairs(batch: Batch, *, corrected: bool = True) -> Columns:
    """Returns each group's `mean`, `variance` and `shift` for pairs that share a stub.

    Statistics of a group that holds the pair make it look less alike than it is: with correlation
    c, E v' = v - s and E product' = v c - s, s = v (1 + c) / G. `shift` estimates that s from the
    group, (v' + mean product') / (G - 2), and the variance has it added back.
    """
    reward, mean = batch.stream("reward"), group_mean(batch.stream("reward"), batch.group)
    refuse_outside(reward, reward.isfinite(), said=FINITE)
    variance = group_mean((reward - mean).square(), batch.group)
    first, second = batch.sides()
    shift = torch.zeros_like(variance)
    if corrected:
        check_group_size(batch.group, least=3)
        product = torch.zeros_like(variance)
        product[first] = (reward - mean)[first] * (reward - mean)[second]
        paired = torch.zeros_like(variance)
        paired[first] = 1.0
        together = group_sum(product, batch.group) / group_sum(paired, batch.group).clamp(min=1)
        _, size = group_index(batch.group)
        shift = (variance + together).clamp(min=0) / (size - 2)
    equal = degenerate(reward, batch.group)
    return {
        "mean": mean,
        "variance": torch.where(equal, 0.0, variance + shift),
        "shift": torch.where(equal, 0.0, shift),
    }


def overlong_penalty(batch: Batch, *, limit: int | None, cache: int | None) -> Float[Tensor, " B"]:
    """Returns DAPO's length reward: 0 up to limit - cache, falling to -1 at the limit."""
    length = batch.mask.sum(1).to(batch.dtype)
    if limit is None and cache is None:
        return torch.zeros_like(length)
    if limit is None or cache is None or cache > limit:
        raise Refused(
            f"`overlong_limit` is {limit} and `overlong_cache` is {cache}, but both must be given, "
            "with cache at most limit"
        )
    return ((limit - cache - length) / cache).clamp(-1, 0)


def centred(
    reward: Float[Tensor, " N"], owner: Int[Tensor, " N"], *, spread: Spread
) -> Float[Tensor, " N"]:
    """Returns rewards less their group's mean, over a deviation; exactly 0 where all are equal."""
    centre = reward - group_mean(reward, owner)
    if spread == "none":
        deviation = torch.ones_like(centre)
    elif spread == "batch":
        deviation = (reward - reward.mean()).square().mean().sqrt().expand_as(centre)
    else:
        _, size = group_index(owner)
        size = (size - int(spread == "sample")).clamp(min=1)
        deviation = (group_sum(centre.square(), owner) / size).sqrt()
    equal = degenerate(reward, owner)
    return torch.where(equal, 0.0, centre / torch.where(equal, 1.0, deviation))


def degenerate(reward: Float[Tensor, " N"], owner: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Says where a group's rewards are all equal, by their range: an epsilon lets noise through.

    Seven float32 rewards of 0.7 have deviation 6e-8, and an epsilon of 1e-8 makes that 0.86 each.
    """
    high = group_extreme(reward, owner, largest=True)
    low = group_extreme(reward, owner, largest=False)
    return high - low <= 1e-6 * torch.maximum(high.abs(), low.abs()).clamp(min=1)


def whole_steps(batch: Batch) -> tuple[Bool[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Returns step ends and step rewards with the last step of each row moved to its last token."""
    ends = batch.stream("step_end").bool() & batch.mask
    rewards = torch.where(ends, batch.stream("step_reward"), 0.0)
    final, last = last_token(ends), last_token(batch.mask)
    reward = torch.where(ends.any(1), masked_sum(rewards, final), batch.stream("reward"))
    return (ends & ~final) | last, torch.where(last, reward[:, None], rewards * ~final)


def sampled_kl(batch: Batch, estimator: Estimator) -> Float[Tensor, "B T"]:
    """Returns the KL of the policy that sampled to the reference, token by token, a constant."""
    if estimator == "exact":
        return batch.stream("old_kl")
    return kl_estimate(batch.stream("old"), batch.stream("ref"), estimator=estimator)[0]


def on_tokens(values: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, "B T"]:
    """Returns one value a row as a stream: on every chosen token, 0 elsewhere."""
    return torch.where(batch.mask, values[:, None], 0.0)


def whitened(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, enabled: bool
) -> Float[Tensor, "B T"]:
    """Returns values with mean 0 and deviation 1 over the chosen tokens, if enabled."""
    chosen = values[mask]
    if enabled and chosen.numel() > 1:
        together = torch.zeros(chosen.shape, dtype=torch.long, device=chosen.device)
        values = torch.zeros_like(values)
        values[mask] = centred(chosen, together, spread="population")
    return torch.where(mask, values, 0.0)


def check_group_size(owner: Int[Tensor, " B"], *, least: int = 2) -> None:
    """Refuses a group too small to be its own baseline."""
    _, size = group_index(owner)
    small = size < least
    if small.any():
        raise Refused(
            f"`group` {int(owner[small][0])} has {int(size[small][0])} rollout(s), but a group "
            f"baseline needs at least {least} for each prompt"
        )


def refuse_outside(reward: Float[Tensor, " B"], inside: Bool[Tensor, " B"], *, said: str) -> None:
    """Refuses rewards that a loss can not read: the first that is not inside, and what is."""
    if not inside.all():
        raise Refused(f"`reward` holds {reward[~inside][0].item():g}, {said}")


def kl_needs(kl: float, estimator: Estimator) -> Needs:
    """Returns the streams that a KL in the reward reads."""
    if not kl:
        return needs()
    return needs("old_kl") if estimator == "exact" else needs("old", "ref")


def group_needs(*, kl: float, estimator: Estimator, **_: object) -> Needs:
    """Returns the streams that `group` reads under its settings."""
    return needs("reward", makes=["advantage"]) | kl_needs(kl, estimator)


def gae_needs(
    *, kl: float, estimator: Estimator, rewards: str, truncated: str, **_: object
) -> Needs:
    """Returns the streams that `gae` reads under its settings."""
    source = "step_reward" if rewards == "steps" else "reward"
    received = needs("value", source, makes=["advantage", "returns"])
    bootstrap = needs("truncated") if truncated == "bootstrap" else needs()
    return received | bootstrap | kl_needs(kl, estimator)


CREDITS = {
    "none": Part(none),
    "plain": Part(plain, needs("reward", makes=["advantage"])),
    "group": Part(group, group_needs),
    "process": Part(process, needs("reward", "step_reward", "step_end", makes=["advantage"])),
    "gae": Part(gae, gae_needs),
    "pairs": Part(pairs, needs("reward", "pair", makes=["mean", "variance", "shift"])),
}
