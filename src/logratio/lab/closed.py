"""Where each objective must end, and how its gradients must look, by mathematics alone.

Nothing here imports an objective, a credit, a weight, an average or their arithmetic: a mistake
there can not repeat itself here.
"""

from collections.abc import Mapping

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
