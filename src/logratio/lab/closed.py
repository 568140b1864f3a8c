"""Where each objective must end, and how its gradients must look, by mathematics alone.

Nothing here imports an objective, a credit, a weight, an average or their arithmetic: a mistake
there can not repeat itself here.
"""

from collections.abc import Mapping
from math import exp, expm1, inf

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logratio.lab.tree import Law, Table, Tree


def normalised(law: Law) -> Law:
    """Returns log-probabilities from logs of any scale."""
    return law - law.logsumexp(-1, keepdim=True)


def exponential_tilt(reference: Law, reward: Law, temperature: float) -> Law:
    """Returns the best law for reward - temperature KL(law, reference): reference e^(r / t) / Z."""
    return normalised(reference + reward / temperature)


def soft_value(reference: Law, reward: Law, temperature: float) -> Float[Tensor, " S"]:
    """Returns t log E e^(r / t) under the reference: what that best law is worth."""
    return temperature * (reference + reward / temperature).logsumexp(-1)


def soft_values(
    tree: Tree, reference: Table, reward: Law, temperature: float
) -> Float[Tensor, "S M"]:
    """Returns every state's soft value: V(s) = t log E e^(V(next) / t), and a leaf's its reward."""
    levels = [reward]
    for depth in reversed(range(tree.length)):
        logp = tree.level(reference, depth).log_softmax(-1)
        after = levels[0].view(logp.shape)
        levels.insert(0, temperature * (logp + after / temperature).logsumexp(-1))
    return torch.cat(levels, 1)


def conditioned(reference: Law, accepted: Bool[Tensor, "S N"]) -> Law:
    """Returns the reference given that its sequence was accepted: what rejection sampling draws."""
    return normalised(reference.masked_fill(~accepted, -torch.inf))


def rational_tilt(reference: Law, reward: Law, strength: float) -> Law:
    """Returns the law that k3 in the loss leads to: reference b / (b + E r - r), E under itself.

    The denominator is x - r for the one x > max r at which the law sums to 1, found by halving.
    """
    weight = reference.exp() * strength
    low = reward.amax(-1, keepdim=True)
    high = low + strength
    for _ in range(200):
        middle = (low + high) / 2
        heavy = (weight / (middle - reward)).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return (weight / (high - reward)).log()


def preference(first: Tensor, second: Tensor) -> Tensor:
    """Returns the Bradley-Terry probability that the first of two rewards is preferred."""
    return 1 / (1 + (second - first).exp())


def odds_tilt(
    tree: Tree,
    reference: Table,
    success: Law,
    *,
    gain: float,
    behaviour: Table | None = None,
    trace: float = 1.0,
    best: bool = False,
) -> tuple[Table, Float[Tensor, "S M"]]:
    """Returns logits reference + gain logit(Q), and the offset that log-probs need in their place.

        Q(s, a) = value(s'),   value(leaf) = its success
        value(s) = (1 - trace) E_policy Q + trace E_behaviour Q,   or max Q (`best`)

    Trace 1 is Q under the behaviour, 0 under the policy itself. The offset is
    log E_reference odds(Q)^gain / gain, the part of logit(Q) that log-probs can not hold.
    """
    levels: list[Tensor] = []
    offsets = [torch.zeros_like(success)]
    value = success
    for depth in reversed(range(tree.length)):
        logp = tree.level(reference, depth).log_softmax(-1)
        ahead = value.view(logp.shape)
        tilted = gain * (ahead / (1 - ahead)).log()
        offsets.insert(0, (logp + tilted).logsumexp(-1) / gain)
        levels.insert(0, tree.level(reference, depth) + tilted)
        value = (levels[0].softmax(-1) * ahead).sum(-1)
        if best:
            value = ahead.amax(-1)
        elif behaviour is not None:
            followed = (tree.level(behaviour, depth).exp() * ahead).sum(-1)
            value = (1 - trace) * value + trace * followed
    return tree.stacked(levels), torch.cat(offsets, 1)


def row_kl(policy: Table, reference: Table) -> Float[Tensor, "S M"]:
    """Returns KL(policy, reference) at every state."""
    logp, ref = policy.log_softmax(-1), reference.log_softmax(-1)
    return (logp.exp() * (logp - ref)).sum(-1)


def row_square(policy: Table, reference: Table) -> Float[Tensor, "S M"]:
    """Returns E_policy (log policy / reference)^2 / 2 at every state: the mean of k2."""
    logp, ref = policy.log_softmax(-1), reference.log_softmax(-1)
    return (logp.exp() * (logp - ref).square()).sum(-1) / 2


def visits(tree: Tree, policy: Table) -> Float[Tensor, "S M"]:
    """Returns the probability that a sequence of the policy passes each state."""
    levels = [torch.ones_like(policy[:, :1, 0])]
    for depth in range(tree.length):
        step = tree.level(policy, depth).softmax(-1)
        levels.append((levels[-1][:, :, None] * step).flatten(1))
    return torch.cat(levels, 1)


def head_gradient(
    logits: Float[Tensor, "B S V"],
    reference: Float[Tensor, "B S V"],
    ids: Int[Tensor, "B T"],
    slopes: Mapping[str, Float[Tensor, "B T"]],
) -> Float[Tensor, "B S V"]:
    """Returns dL / dlogits from the slopes in the four numbers that a head hands out.

    dz = g1 (e_y - p) + g2 e_y - g3 p (log p + H) + g4 p (log p - log q - KL),
    for g1 on log p(y), g2 on the logit, g3 on the entropy, g4 on the KL to the reference q.
    """
    logp, logq = logits[:, :-1].log_softmax(-1), reference[:, :-1].log_softmax(-1)
    p = logp.exp()
    taken = torch.nn.functional.one_hot(ids, logits.shape[-1]).to(logits.dtype)
    none = torch.zeros_like(p[..., 0])
    g1, g2, g3, g4 = (slopes.get(k, none)[..., None] for k in ("logp", "logit", "entropy", "kl"))
    entropy = -(p * logp).sum(-1, keepdim=True)
    kl = (p * (logp - logq)).sum(-1, keepdim=True)
    rows = g1 * (taken - p) + g2 * taken - g3 * p * (logp + entropy) + g4 * p * (logp - logq - kl)
    return torch.nn.functional.pad(rows, (0, 0, 0, 1))


# Slopes of one item's loss, in plain numbers: what the report's tables say, case by case.


def sigmoid(x: float) -> float:
    """Returns 1 / (1 + e^-x)."""
    return 1 / (1 + exp(-x)) if x > 0 else exp(x) / (1 + exp(x))


def surrogate_slope(
    ratio: float, advantage: float, *, low: float, high: float, dual: float = inf
) -> float:
    """Returns the slope of the clipped surrogate in log p: r A while it may still move, else 0.

    A good token may be raised up to 1 + high; a bad one lowered down to 1 - low, and left alone
    where it is already dual times as likely.
    """
    moves = ratio < 1 + high if advantage > 0 else 1 - low < ratio < dual
    return ratio * advantage if moves else 0.0


def kl_slope(estimator: str, apart: float, ratio: float | None = None) -> float:
    """Returns the slope in log p of k1, k2 or k3 at log policy / reference = apart.

    Weighed by a ratio of the policy to the one that sampled, the ratio has a slope as well.
    """
    value = {"k1": apart, "k2": apart**2 / 2, "k3": expm1(-apart) + apart}[estimator]
    slope = {"k1": 1.0, "k2": apart, "k3": -expm1(-apart)}[estimator]
    return slope if ratio is None else ratio * (value + slope)


def value_slope(value: float, target: float, *, before: float, clip: float = inf) -> float:
    """Returns the slope of half the larger squared error: 0 where the value held back is worse."""
    held = min(max(value, before - clip), before + clip)
    return 0.0 if abs(held - target) > abs(value - target) else value - target


def preference_slope(kind: str, h: float, *, beta: float, wrong: float = 0.0) -> float:
    """Returns the slope in h of a preference loss; `wrong` is the share of labels that are."""
    right, left = -sigmoid(-h), sigmoid(h)
    return {
        "sigmoid": (1 - wrong) * right + wrong * left,
        "robust": ((1 - wrong) * right - wrong * left) / (1 - 2 * wrong),
        "ipo": 2 * (h / beta - 1 / (2 * beta)) / beta,
        "hinge": -1.0 if h < 1 else 0.0,
    }[kind]


def soft_slope(kind: str, q: float, reward: float, *, beta: float, edge: float) -> float:
    """Returns the slope in Q of (Q - r)^2, or of the cross-entropy of e^(Q / beta)."""
    if kind == "squared":
        return 2 * (q - reward)
    p, wanted = exp(min(q / beta, -edge)), exp(reward / beta)
    return (p - wanted) / (1 - p) / beta


def pair_slope(f: float, squares: float, product: float) -> float:
    """Returns the slope in f of the negative normal log-likelihood of standardised rewards a, b.

    It sees them only as a^2 + b^2 and a b.
    """
    cubic = f**3 - product * f**2 + (squares - 1) * f - product
    return cubic / (1 - f**2) ** 2


def outcome_slope(f: float, mean: float, first: bool, second: bool) -> float:
    """Returns the same of two outcomes that are each right with this mean, and alike with f."""
    spread = mean * (1 - mean)
    alike = (mean**2 if first else (1 - mean) ** 2) + f * spread
    return -spread / alike if first == second else 1 / (1 - f)
