"""Small batches and rollouts for tests: every function names only what its test is about."""

from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from logratio.batch import STREAMS, Batch
from logratio.records import Graded, Rollout, Verdict

quickly = settings(max_examples=25, deadline=None, derandomize=True)


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
    finish: Any = "stop",
    correct: bool | None = None,
    error: str | None = None,
) -> Graded:
    """Returns a rollout of the problem `sums/7` with its verdict."""
    rollout = Rollout(problem="sums/7", group=group, prompt_ids=(9,), ids=ids, finish=finish)
    return Graded(rollout=rollout, verdict=Verdict(reward=reward, correct=correct, error=error))
