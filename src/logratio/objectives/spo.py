"""SPO: soft policy optimisation, off policy. The summed log-ratio is regressed on the reward."""

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.numerics import (
    group_log_mean_exp,
    group_mean,
    group_sum,
    masked_sum,
    soft_cross_entropy,
    stop,
)
from logratio.objective import Objective, Slopes
from logratio.part import Needs, Part, Refused, needs

Kind = Literal["squared", "cross_entropy", "pair"]
Start = float | Literal["reference", "vargrad", "learned", "mean", "policy_weighted", "policy"]
Anchor = Literal["ref", "old"]
Rewards = Literal["outcome", "tokens"]


def loss(
    policy: Policy,
    batch: Batch,
    *,
    kind: Kind = "squared",
    beta: float = 0.1,
    q0: Start = "vargrad",
    anchor: Anchor = "ref",
    rewards: Rewards = "outcome",
    edge: float = 0.01,
) -> Terms:
    """Returns how far each response's Q at its last token is from its reward.

        Q = Q0 + beta sum_t log(policy / ref)      squared: (Q - r)^2
        cross_entropy: -(p* log p + (1 - p*) log(1 - p)),  p = e^(Q / beta), p* = e^(r / beta)
        pair: ((Q - Q') - (r - r'))^2, in which Q0 cancels

    Past Q / beta = -edge the cross-entropy goes on as a straight line, so that it still pulls back.
    """
    ratio, reward = log_ratio(policy, batch, anchor), received(batch, rewards)
    start, size = initial(policy, batch, beta=beta, q0=q0, anchor=anchor, rewards=rewards)
    end = start + beta * ratio
    if kind == "pair":
        first, second = batch.sides()
        gap = (end - reward)[first] - (end - reward)[second]
        term = Term(loss=gap.square(), unit="pair")
    elif kind == "squared":
        term = Term(loss=(end - reward).square(), unit="sequence")
    else:
        value, _ = soft_cross_entropy(end / beta, reward / beta, edge=edge)
        term = Term(loss=value, unit="sequence")
    watch = {
        "q0": start,
        "q_terminal": end,
        "cumulative_advantage": beta * ratio,
        "q0_samples": size,
    }
    return Terms(terms={"soft": term}, watch=watch)


def coefficient(
    policy: Policy,
    batch: Batch,
    *,
    kind: Kind,
    beta: float,
    q0: Start,
    anchor: Anchor,
    rewards: Rewards,
    edge: float,
) -> Slopes:
    """Returns 2 beta (Q - r), or (p - p*) / (1 - p), on every token of the response."""
    ratio, reward = log_ratio(policy, batch, anchor), received(batch, rewards)
    start, _ = initial(policy, batch, beta=beta, q0=q0, anchor=anchor, rewards=rewards)
    error = start + beta * ratio - reward
    if kind == "pair":
        first, second = batch.sides()
        row = torch.zeros_like(error)
        row[first] = 2 * (error[first] - error[second])
        row[second] = -row[first]
    elif kind == "squared":
        row = 2 * error
    else:
        row = soft_cross_entropy((error + reward) / beta, reward / beta, edge=edge)[1] / beta
    slopes = {"logp": beta * row[:, None] * batch.mask}
    if q0 == "learned":
        at_prompt = torch.zeros_like(policy.heads["q0"])
        at_prompt[:, 0] = 1.0
        slopes["q0"] = row[:, None] * at_prompt
    return {"soft": slopes}


def log_ratio(policy: Policy, batch: Batch, anchor: Anchor) -> Float[Tensor, " B"]:
    """Returns the sum over the response of log policy / anchor: a sum, never a mean."""
    return masked_sum(policy.logp - batch.stream(anchor), batch.mask)


def received(batch: Batch, rewards: Rewards) -> Float[Tensor, " B"]:
    """Returns each response's whole reward, which token rewards add up to."""
    if rewards == "outcome":
        return batch.stream("reward")
    return masked_sum(batch.stream("token_reward"), batch.mask)


def initial(
    policy: Policy, batch: Batch, *, beta: float, q0: Start, anchor: Anchor, rewards: Rewards
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns Q0, the soft value of the prompt, and how many samples effectively stand behind it.

    reference, policy   beta log mean exp(r / beta), over samples of the reference, or of this
                        group: right only where those were drawn from the anchor
    policy_weighted     beta log mean exp(r / beta - sum log policy / ref)
    vargrad, mean       mean of r - beta sum log policy / ref; mean of r
    """
    reward = received(batch, rewards)
    size = group_sum(torch.ones_like(reward), batch.group)
    if isinstance(q0, float | int):
        return torch.full_like(reward, q0), torch.zeros_like(reward)
    if q0 == "reference":
        return batch.stream("q0"), batch.stream("q0_samples")
    if q0 == "learned":
        return policy.heads["q0"][:, 0], size
    if q0 == "mean":
        return group_mean(reward, batch.group), size
    off = stop(log_ratio(policy, batch, anchor))
    if q0 == "vargrad":
        return group_mean(reward - beta * off, batch.group), size
    exponent = reward / beta - off if q0 == "policy_weighted" else reward / beta
    value, size = group_log_mean_exp(exponent, batch.group)
    return beta * value, size


def reads(*, kind: Kind, q0: Start, anchor: Anchor, rewards: Rewards, **_: object) -> Needs:
    """Returns the anchor, the reward, and what Q0 is made from; group means couple the group."""
    columns = [anchor, "token_reward" if rewards == "tokens" else "reward"]
    columns += ["q0", "q0_samples"] * (q0 == "reference") + ["pair"] * (kind == "pair")
    grouped = q0 in ("vargrad", "mean", "policy_weighted", "policy")
    couples = "group" if grouped else "pair" if kind == "pair" else "row"
    return needs(*columns, heads=["q0"] * (q0 == "learned"), couples=couples)


def check(objective: Objective) -> None:
    """Refuses a temperature of 0; warns where Q0 comes from the policy that moves."""
    settings = objective.loss.resolved()
    if settings["beta"] <= 0 or settings["edge"] <= 0:
        raise Refused(f"`beta` is {settings['beta']} and `edge` {settings['edge']}, but both must "
                      "be above 0")  # fmt: skip
    if settings["q0"] == "policy":
        warnings.warn("`q0` is 'policy', the document's own: off policy it is not the reference's "
                      "soft value and moves the optimum", stacklevel=3)  # fmt: skip


spo = Objective(
    name="spo",
    loss=Part(loss, reads),
    coefficient=coefficient,
    average=AVERAGES["per_sequence"],
    presets={
        "as_written": {"kind": "squared", "beta": 0.01, "q0": "policy"},
        "agro": {"kind": "squared", "q0": "vargrad"},
        "a_star_po": {"kind": "squared", "q0": "reference", "beta": 1e-3},
        "rebel": {"kind": "pair", "anchor": "old", "q0": 0.0, "average": "per_pair"},
        "kimi": {"kind": "squared", "anchor": "old", "q0": "mean"},
    },
    check=check,
)
