"""GRPO: a clipped policy step whose baseline is the group's own mean reward."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.credit import CREDITS
from logratio.numerics import Estimator, clipped_surrogate, kl_estimate, masked_mean, stop
from logratio.objective import Objective, Slopes, only
from logratio.part import Needs, Part, needs
from logratio.settings import AboveOne, AtLeastZero, Positive, Refused, Share


def loss(
    policy: Policy,
    batch: Batch,
    *,
    clip: Share = 0.2,
    clip_high: Positive | None = None,
    dual: AboveOne | None = None,
    ratio: Literal["token", "sequence"] = "token",
    surrogate: Literal["clip", "cispo"] = "clip",
    behaviour_cap: Positive | None = None,
    beta: AtLeastZero = 0.0,
    estimator: Estimator = "k3",
    corrected: bool = False,
) -> Terms:
    """Returns the clipped surrogate and, if asked, the KL to the reference, of every token.

        loss_t = -w_t min(r A, clip(r, 1 - clip, 1 + clip_high) A) + beta KL_t,  r = exp(logp - old)

    `ratio="sequence"` takes the mean log-ratio of the row (GSPO); `surrogate="cispo"` caps r under
    stop-gradient and lets log p learn everywhere. `behaviour_cap` multiplies by min(old /
    behaviour, cap) where truncated sampling drew from another law. `corrected` weighs the KL by r.
    """
    high = clip if clip_high is None else clip_high
    log_ratio = ratios(policy, batch, ratio)
    advantage = batch.stream("advantage")
    value, _ = clipped_surrogate(log_ratio, advantage, low=clip, high=high, dual=dual)
    if surrogate == "cispo":
        value = stop(log_ratio.exp().clamp(max=1 + high)) * advantage * policy.logp
    terms = {"policy": Term(loss=-importance(batch, behaviour_cap) * value)}
    apart = log_ratio.exp()
    outside = {"clip_high": (apart > 1 + high) & (advantage > 0)}
    if surrogate == "clip":
        outside["clip_low"] = (apart < 1 - clip) & (advantage < 0)
    if dual is not None:
        outside["clip_dual"] = (apart > dual) & (advantage < 0)
    watch = {"ratio": apart, **{name: at.to(apart.dtype) for name, at in outside.items()}}
    if beta:
        penalty, _ = divergence(policy, batch, estimator, corrected=corrected)
        terms["kl"] = Term(loss=penalty, coefficient=beta)
        watch["kl"] = penalty
    return Terms(terms=terms, watch=watch)


def coefficient(
    policy: Policy, batch: Batch, *, clip: float, clip_high: float | None, beta: float, **rest: Any
) -> Slopes:
    """Returns -w r A where the surrogate follows r, and beta (1 - ref / policy) for k3."""
    high = clip if clip_high is None else clip_high
    log_ratio, advantage = ratios(policy, batch, rest["ratio"]), batch.stream("advantage")
    _, slope = clipped_surrogate(log_ratio, advantage, low=clip, high=high, dual=rest["dual"])
    if rest["surrogate"] == "cispo":
        slope = log_ratio.exp().clamp(max=1 + high) * advantage
    slopes = {"policy": {"logp": -importance(batch, rest["behaviour_cap"]) * slope}}
    if beta:
        stream = "kl" if rest["estimator"] == "exact" else "logp"
        _, pull = divergence(policy, batch, rest["estimator"], corrected=rest["corrected"])
        slopes["kl"] = {stream: pull}
    return slopes


def ratios(
    policy: Policy, batch: Batch, ratio: Literal["token", "sequence"]
) -> Float[Tensor, "B T"]:
    """Returns log r of each token, or of its whole row with the slope left to each token."""
    log_ratio = policy.logp - batch.stream("old")
    if ratio == "token":
        return log_ratio
    return stop(masked_mean(log_ratio, batch.mask))[:, None] + policy.logp - stop(policy.logp)


def importance(batch: Batch, cap: float | None) -> Float[Tensor, "B T"]:
    """Returns each token's weight, times its truncated ratio old / behaviour if asked."""
    weight = batch.stream("weight")
    if cap is None:
        return weight
    return weight * (batch.stream("old") - batch.stream("behaviour")).exp().clamp(max=cap)


def divergence(
    policy: Policy, batch: Batch, estimator: Estimator, *, corrected: bool
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Returns the KL to the reference at each token, and its slope."""
    if estimator == "exact":
        return policy.stream("kl"), torch.ones_like(policy.logp)
    log_ratio = policy.logp - batch.stream("old") if corrected else None
    ref = batch.stream("ref")
    return kl_estimate(policy.logp, ref, estimator=estimator, log_ratio=log_ratio)


def reads(*, beta: float, estimator: Estimator, behaviour_cap: float | None, **_: object) -> Needs:
    """Returns old log-probs and advantages, and the reference's or the sampler's where asked."""
    reference = ["ref"] if beta and estimator != "exact" else []
    sampler = ["behaviour"] if behaviour_cap is not None else []
    exact = ["kl"] if beta and estimator == "exact" else []
    return needs("old", "advantage", "weight", *reference, *sampler, policy=exact)


def check(objective: Objective) -> None:
    """Refuses a KL in loss and reward at once, and settings of a KL or clip that is not there."""
    settings, credit = objective.loss.resolved(), objective.credit.resolved()
    if settings["beta"] and credit.get("kl"):
        raise Refused(f"`beta` is {settings['beta']} and `credit.kl` is {credit['kl']}: the KL "
                      "goes into the loss or the reward, so set one of them to 0")  # fmt: skip
    sampled = settings["beta"] > 0 and settings["estimator"] != "exact"
    only(objective, "estimator", when=settings["beta"] > 0, reads="a `beta` above 0")
    only(objective, "corrected", when=sampled, reads="a `beta` with a sampled `estimator`")
    only(objective, "dual", when=settings["surrogate"] == "clip", reads="`surrogate` 'clip'")


PRESETS = {
    "as_written": {"beta": 1.0, "estimator": "k3", "average": "per_sequence"},
    "deepseek_math": {"beta": 0.04, "estimator": "k3", "average": "per_sequence"},
    "process": {"credit": "process"},
    "dr_grpo": {"credit.spread": "none", "average": "fixed_length"},
    "rloo": {"credit.center": "leave_one_out", "credit.spread": "none", "average": "summed"},
    "gspo": {"ratio": "sequence", "clip": 3e-4, "clip_high": 4e-4},
    "cispo": {"surrogate": "cispo", "clip_high": 4.0, "average": "per_token"},
    "top_entropy": {"weight": "top_entropy"},
}

grpo = Objective(
    name="grpo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    credit=CREDITS["group"],
    average=AVERAGES["per_sequence"],
    presets=PRESETS,
    check=check,
)
