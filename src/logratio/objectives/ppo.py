"""PPO: a clipped policy step against a learned value, the KL to the reference in the reward."""

import torch

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.credit import CREDITS
from logratio.numerics import clipped_surrogate
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part, needs
from logratio.settings import AboveOne, AtLeastZero, Positive, Refused, Share


def loss(
    policy: Policy,
    batch: Batch,
    *,
    clip: Share = 0.2,
    clip_high: Positive | None = None,
    dual: AboveOne | None = None,
    value: AtLeastZero = 0.1,
    value_clip: Positive | None = 0.2,
    entropy: float = 0.0,
) -> Terms:
    """Returns the clipped surrogate, the value error and the entropy of every token.

        policy_t = -min(r A, clip(r) A)     value_t = max((V - G)^2, (clip(V, V_old) - G)^2) / 2

    `value` and `entropy` are coefficients; A and G come from the credit, made once a rollout.
    """
    log_ratio = policy.logp - batch.stream("old")
    advantage = batch.stream("advantage")
    high = clip if clip_high is None else clip_high
    surrogate, slope = clipped_surrogate(log_ratio, advantage, low=clip, high=high, dual=dual)
    error, held = value_error(policy, batch, value_clip)
    terms = {
        "policy": Term(loss=-batch.stream("weight") * surrogate),
        "value": Term(loss=error, coefficient=value),
    }
    watch = {
        "ratio": log_ratio.exp(),
        "clipped": ((slope == 0) & (advantage != 0)).to(slope.dtype),
        "value_clipped": held.to(slope.dtype),
        "kl_old": torch.expm1(log_ratio) - log_ratio,
    }
    if entropy:
        terms["entropy"] = Term(loss=-policy.stream("entropy"), coefficient=entropy)
        watch["entropy"] = policy.stream("entropy")
    return Terms(terms=terms, watch=watch)


def value_error(
    policy: Policy, batch: Batch, value_clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns half the larger squared error of the value and of the value held near the old one.

    The second result says where the held one is larger; there the value gets no gradient.
    """
    now, target = policy.heads["value"][:, :-1], batch.stream("returns")
    error = (now - target).square()
    if value_clip is None:
        return error / 2, torch.zeros_like(error, dtype=torch.bool)
    before = batch.stream("value")[:, :-1]
    step = (now - before).clamp(-value_clip, value_clip)
    held = (before + step - target).square()
    return torch.maximum(error, held) / 2, (held > error) & ((now - before).abs() > value_clip)


def coefficient(
    policy: Policy,
    batch: Batch,
    *,
    clip: float,
    clip_high: float | None,
    dual: float | None,
    value: float,
    value_clip: float | None,
    entropy: float,
) -> Slopes:
    """Returns -r A where the surrogate follows the ratio, V - G where the value is not held."""
    del value
    high = clip if clip_high is None else clip_high
    _, slope = clipped_surrogate(
        policy.logp - batch.stream("old"), batch.stream("advantage"), low=clip, high=high, dual=dual
    )
    _, held = value_error(policy, batch, value_clip)
    off = policy.heads["value"][:, :-1] - batch.stream("returns")
    slopes = {
        "policy": {"logp": -batch.stream("weight") * slope},
        "value": {"value": torch.where(held, 0.0, off)},
    }
    if entropy:
        slopes["entropy"] = {"entropy": -torch.ones_like(slope)}
    return slopes


def reads(*, value_clip: float | None, entropy: float, **_: object) -> Needs:
    """Returns the value head, the old log-probs and values, and what the credit makes of them."""
    before = ["value"] if value_clip is not None else []
    asked = ["entropy"] if entropy else []
    return needs("old", "advantage", "returns", "weight", *before, policy=asked, heads=["value"])


def check(objective: Objective) -> None:
    """Refuses a credit that makes no value targets."""
    if "returns" not in objective.credit.declared().makes:
        raise Refused(f"`credit` is `{objective.credit.name}`, but ppo needs one that makes "
                      "`returns`, as `gae` does")  # fmt: skip


ppo = Objective(
    name="ppo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    credit=CREDITS["gae"],
    average=AVERAGES["per_token"],
    presets={
        "as_written": {"average": "per_sequence", "credit.whiten": False},
    },
    check=check,
)
