"""SPO: soft policy optimisation, off policy. The summed log-ratio is regressed on the reward."""

import warnings
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from logratio.average import AVERAGES
from logratio.batch import Batch, Policy, Term, Terms
from logratio.credit import check_group_size, refuse_outside
from logratio.numerics import group_log_mean_exp, group_mean, masked_sum, soft_cross_entropy, stop
from logratio.objective import Objective, Slopes, only
from logratio.part import Needs, Part, needs
from logratio.settings import Positive

Kind = Literal["squared", "cross_entropy", "pair"]
Start = float | Literal["reference", "vargrad", "learned", "mean", "policy_weighted", "policy"]
Anchor = Literal["ref", "old"]
Rewards = Literal["outcome", "tokens"]
LOGP = (
    "but `kind` 'cross_entropy' reads it as a log-probability: at most 0, so subtract the largest"
)
GROUPED = ("vargrad", "mean", "policy_weighted", "policy")


def loss(
    policy: Policy,
    batch: Batch,
    *,
    kind: Kind = "squared",
    beta: Positive = 0.1,
    q0: Start = "vargrad",
    anchor: Anchor = "ref",
    rewards: Rewards = "outcome",
    edge: Positive = 0.01,
) -> Terms:
    """Returns how far each response's Q at its last token is from its reward.

        Q = Q0 + beta sum_t log(policy / ref)      squared: (Q - r)^2
        cross_entropy: -(p* log p + (1 - p*) log(1 - p)),  p = e^(Q / beta), p* = e^(r / beta)
        pair: ((Q - Q') - (r - r'))^2, in which Q0 cancels

    Past Q / beta = -edge the cross-entropy goes on as a straight line, so that it still pulls back.
    """
    ratio, reward, start, samples = pieces(
        policy, batch, beta=beta, q0=q0, anchor=anchor, rewards=rewards
    )
    end = start + beta * ratio
    if kind == "cross_entropy":
        refuse_outside(reward, reward <= 0, said=LOGP)
    if kind != "cross_entropy" or q0 in ("mean", "vargrad"):
        refuse_outside(reward, reward.isfinite(), said="but it is averaged: it must be finite")
    if kind == "pair":
        first, second = batch.sides()
        gap = (end - reward)[first] - (end - reward)[second]
        term = Term(loss=gap.square(), unit="pair")
    elif kind == "squared":
        term = Term(loss=(end - reward).square(), unit="sequence")
    else:
        value, _ = soft_cross_entropy(end / beta, reward / beta, edge=edge)
        term = Term(loss=value, unit="sequence")
    watch = {"q0": start, "q0_samples": samples, "q_terminal": end}
    return Terms(terms={"soft": term}, watch={**watch, "cumulative_advantage": beta * ratio})


def coefficient(
    policy: Policy, batch: Batch, *, kind: Kind, beta: float, q0: Start, edge: float, **source: Any
) -> Slopes:
    """Returns 2 beta (Q - r), or (p - p*) / (1 - p), on every token of the response."""
    ratio, reward, start, _ = pieces(policy, batch, beta=beta, q0=q0, **source)
    error = (end := start + beta * ratio) - reward
    if kind == "pair":
        first, second = batch.sides()
        row = torch.zeros_like(error)
        row[first] = 2 * (error[first] - error[second])
        row[second] = -row[first]
    elif kind == "squared":
        row = 2 * error
    else:
        row = soft_cross_entropy(end / beta, reward / beta, edge=edge)[1] / beta
    slopes = {"logp": beta * row[:, None] * batch.mask}
    if q0 == "learned":
        slopes["q0"] = torch.nn.functional.pad(row[:, None] * batch.starts(), (0, 1))
    return {"soft": slopes}


def pieces(
    policy: Policy, batch: Batch, *, beta: float, q0: Start, anchor: Anchor, rewards: Rewards
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns each response's summed log-ratio (never a mean), reward, Q0 and Q0's samples.

    reference, policy   beta log mean exp(r / beta), over samples of the reference, or of this
                        group: right only where those were drawn from the anchor
    policy_weighted     beta log mean exp(r / beta - log-ratio)
    vargrad, mean       mean of r - beta log-ratio; mean of r
    """
    ratio = masked_sum(policy.logp - batch.stream(anchor), batch.mask)
    received = batch.stream("reward" if rewards == "outcome" else "token_reward")
    reward = received if rewards == "outcome" else masked_sum(received, batch.mask)
    _, samples = group_log_mean_exp(torch.zeros_like(reward), batch.group)
    if q0 in GROUPED:
        check_group_size(batch.group)
    if not isinstance(q0, str):
        start, samples = torch.full_like(reward, q0), torch.zeros_like(reward)
    elif q0 == "reference":
        start, samples = batch.stream("q0"), batch.stream("q0_samples")
    elif q0 == "learned":
        start = masked_sum(policy.heads["q0"][:, :-1], batch.starts())
    elif q0 in ("mean", "vargrad"):
        start = group_mean(reward - (beta * stop(ratio) if q0 == "vargrad" else 0.0), batch.group)
    else:
        weighted = stop(ratio) if q0 == "policy_weighted" else 0.0
        start, samples = group_log_mean_exp(reward / beta - weighted, batch.group)
        start = beta * start
    return ratio, reward, start, samples


def reads(*, kind: Kind, q0: Start, anchor: Anchor, rewards: Rewards, **_: object) -> Needs:
    """Returns the anchor, the reward, and what Q0 is made from; group means couple the group."""
    columns = [anchor, "token_reward" if rewards == "tokens" else "reward"]
    columns += ["q0", "q0_samples"] * (q0 == "reference") + ["pair"] * (kind == "pair")
    couples = "group" if q0 in GROUPED else "pair" if kind == "pair" else "row"
    return needs(*columns, heads=["q0"] * (q0 == "learned"), couples=couples)


def check(objective: Objective) -> None:
    """Refuses an edge that no loss has; warns where Q0 comes from the policy that moves."""
    given = objective.loss.resolved()
    only(objective, "edge", when=given["kind"] == "cross_entropy", reads="`cross_entropy`")
    if given["q0"] == "policy":
        warnings.warn("`q0` is 'policy', the document's own: off policy it is not the soft value "
                      "of the reference, and moves the optimum", stacklevel=3)  # fmt: skip


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
