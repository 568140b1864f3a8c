"""Small batches and rollouts for tests: every function names only what its test is about."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logratio.batch import STREAMS, Batch, Policy
from logratio.objective import Objective, total_loss
from logratio.records import Graded, Rollout, Verdict


def ragged(*lengths: int, longest: int | None = None) -> Tensor:
    """Returns the mask of rows of these lengths, padded on the right."""
    return torch.arange(longest or max(lengths)) < torch.tensor(lengths)[:, None]


def marks(*rows: str) -> Tensor:
    """Returns a mask written down: `x` is a chosen token, anything else is not."""
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def batch(mask: Tensor, *, dtype: torch.dtype = torch.float64, **streams: Any) -> Batch:
    """Returns a batch of streams given as lists; what is no field is a column."""
    found = {name: tensor(value, dtype) for name, value in streams.items()}
    group = found.pop("group", torch.zeros(len(mask), dtype=torch.long))
    fields = {name: found.pop(name) for name in STREAMS if name in found}
    return Batch(mask=mask, group=group, **fields, columns=found)


def rewarded(*rewards: float, group: list[int] | None = None, **streams: Any) -> Batch:
    """Returns a batch of one-token rows with these rewards, in one group unless told otherwise."""
    owners = torch.tensor(group or [0] * len(rewards))
    return batch(ragged(*[1] * len(rewards)), group=owners, reward=list(rewards), **streams)


def noise(seed: int, *shape: int) -> Tensor:
    """Returns normal random numbers that a seed decides."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def groups(mask: Tensor, **streams: Any) -> Batch:
    """Returns two prompts of half the rows each, with random rewards and log-probs."""
    rows, tokens = mask.shape
    old, ref = noise(1, rows, tokens) - 2, noise(2, rows, tokens) - 2
    group = torch.arange(rows) * 2 // rows
    return batch(
        mask, **{"group": group, "reward": noise(0, rows), "old": old, "ref": ref, **streams}
    )


def tensor(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns a tensor: a list's fractions in this type, its integers and truths as they are."""
    found = value if isinstance(value, Tensor) else torch.tensor(value)
    given = isinstance(value, Tensor) or not found.is_floating_point()
    return found if given else torch.tensor(value, dtype=dtype)


def same(actual: Tensor, expected: Any) -> None:
    """Asserts that a tensor has these numbers, at the tolerances that its type has by default."""
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype))


def graded(
    reward: float | None = 1.0,
    *,
    group: int = 0,
    ids: tuple[int, ...] = (1,),
    correct: bool | None = None,
    error: str | None = None,
    pair: tuple[int, Any] = (-1, 0),
    **rollout: Any,
) -> Graded:
    """Returns a rollout of the problem `sums/7` with its verdict; `pair` is its number and side."""
    made = Rollout(problem="sums/7", group=group, prompt_ids=(9, 8), ids=ids, **rollout)
    verdict = Verdict(reward=reward, correct=correct, error=error)
    number, side = pair
    return Graded(rollout=made, verdict=verdict, pair=None if number < 0 else number, side=side)


def learned(
    objective: Objective, rows: Batch, *, heads: Mapping[str, Any] | None = None, **streams: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of rows fresh from the engine, and its slope in each stream given."""
    prepared = objective.prepare(rows)
    given = {**streams, **(heads or {})}
    leaves = {name: tensor(value).clone().requires_grad_() for name, value in given.items()}
    policy = Policy(
        **{name: leaves[name] for name in streams},
        heads={name: leaves[name] for name in heads or {}},
    )
    terms = objective(policy, prepared)
    loss = total_loss(terms, objective.weights(terms, prepared), prepared)
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zero = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = zip(leaves, slopes, strict=True)
    return loss.detach(), {name: zero[name] if slope is None else slope for name, slope in found}


def minimised(loss: Callable[[], Tensor], leaves: Sequence[Tensor], *, rounds: int = 30) -> None:
    """Moves the leaves to where the loss is least: Newton's steps, halved until they go down.

    `torch.optim` would do, but making its first optimizer takes seconds.
    """
    for _ in range(rounds):
        value = loss()
        gradient = flat(torch.autograd.grad(value, leaves, create_graph=True))
        if gradient.abs().max() < 1e-12:
            return
        rows = [flat(torch.autograd.grad(one, leaves, retain_graph=True)) for one in gradient]
        sizes, axes = torch.linalg.eigh(torch.stack(rows))
        step = axes @ (axes.T @ gradient.detach() / sizes.abs().clamp(min=1e-6))
        start = [leaf.detach().clone() for leaf in leaves]
        for share in (1.0, 0.5, 0.25, 0.125, 0.0625):
            pieces = (share * step).split([leaf.numel() for leaf in leaves])
            for leaf, before, piece in zip(leaves, start, pieces, strict=True):
                leaf.data = before - piece.view_as(leaf)
            if loss() <= value:
                break


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Returns all numbers of some tensors in one row."""
    return torch.cat([tensor.flatten() for tensor in tensors])
