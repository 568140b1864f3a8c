"""Ours on the inputs that TRL got: one function per objective, `(inputs, settings) -> Result`."""

from collections.abc import Mapping
from typing import Any

import torch
from parity_inputs import Groups, Pairs, Result
from torch import Tensor

from logratio.batch import Batch, Policy
from logratio.objective import Objective, total_loss
from logratio.objectives import find


def reduced(objective: Objective, policy: Policy, batch: Batch, leaf: Tensor) -> Result:
    """Returns the loss of the whole batch and its gradient with respect to the leaf."""
    prepared = objective.prepare(batch)
    terms = objective(policy, prepared)
    loss = total_loss(terms, objective.weights(terms, prepared), prepared)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return Result(loss=loss.item(), gradient=gradient)


def group_batch(groups: Groups) -> Batch:
    """Returns the rollouts as a batch."""
    columns = {"truncated": groups.truncated.float(), "entropy": groups.entropy}
    return Batch(
        mask=groups.mask, group=groups.group, reward=groups.reward,
        old=groups.old, ref=groups.ref, columns=columns,
    )  # fmt: skip


def grpo(groups: Groups, settings: Mapping[str, Any], *, name: str = "grpo") -> Result:
    """Returns the loss of `grpo`, or of an objective made of it, in the log-probs."""
    leaf = groups.logp.clone().requires_grad_()
    objective = find(name).using(**settings)
    return reduced(objective, Policy(logp=leaf), group_batch(groups), leaf)


def dapo(groups: Groups, settings: Mapping[str, Any]) -> Result:
    """Returns the loss of `dapo` in the log-probs."""
    return grpo(groups, settings, name="dapo")


def pair_batch(pairs: Pairs) -> Batch:
    """Returns the pairs as a batch: the chosen row of pair k is numbered 2k, the other 2k + 1."""
    count = len(pairs.mask) // 2
    number = torch.arange(count)
    return Batch(
        mask=pairs.mask,
        group=torch.cat([number, number]),
        pair=torch.cat([2 * number, 2 * number + 1]),
        ref=pairs.ref,
        columns={"margin": torch.cat([pairs.margin, pairs.margin])},
    )


def dpo(pairs: Pairs, settings: Mapping[str, Any]) -> Result:
    """Returns the loss of `dpo` in the log-probs."""
    leaf = pairs.logp.clone().requires_grad_()
    return reduced(find("dpo").using(**settings), Policy(logp=leaf), pair_batch(pairs), leaf)


def reward_model(pairs: Pairs, settings: Mapping[str, Any]) -> Result:
    """Returns the loss of `reward_model` in the scores, read at the state after the last token."""
    leaf = pairs.score.clone().requires_grad_()
    rows = torch.arange(len(leaf))
    states = torch.zeros(len(leaf), pairs.mask.shape[1] + 1)
    states = states.index_put((rows, pairs.mask.sum(1)), leaf)
    policy = Policy(logp=pairs.logp, heads={"score": states})
    objective = find("reward_model").using(**{"pooling": "last", **settings})
    return reduced(objective, policy, pair_batch(pairs), leaf)


LOSSES = {"grpo": grpo, "rloo": grpo, "dapo": dapo, "dpo": dpo, "reward_model": reward_model}
