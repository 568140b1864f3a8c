"""What a rollout engine is: requests in, rollouts out, weights loaded by version."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from logratio.records import Problem, Rollout
from logratio.sampler import Sampling
from logratio.settings import Refused, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One rollout to be made: of which problem, as which member of its group.

    Its random numbers are a function of `seed`, `purpose`, `step`, `draw`, the problem's key and
    `index`; a refill is another draw, evaluation another purpose.
    """

    problem: Problem
    group: int
    index: int = 0
    seed: int = 0
    purpose: str = "train"
    step: int = 0
    draw: int = 0

    def parts(self) -> tuple[object, ...]:
        """Returns what the random numbers are made from."""
        return (self.seed, self.purpose, self.step, self.draw, self.problem.key, self.index)


@runtime_checkable
class Engine(Protocol):
    """Makes rollouts; states what it promises, and one suite tests what is promised."""

    promises: frozenset[str]  # of "seed per position", "exact weights"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, in order."""
        ...

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes new weights; None where the engine shares the learner's own."""
        ...


ENGINES = {
    "local": "logratio.engines.local:Local",
    "scripted": "logratio.engines.scripted:Scripted",
}


def find(name: str) -> Any:
    """Returns an engine's class by name, importing it only now."""
    if name not in ENGINES:
        raise Refused(unknown("engine", name, ENGINES, owner="logratio"))
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def requests_of(
    problems: Sequence[Problem],
    *,
    samples: int,
    seed: int = 0,
    purpose: str = "train",
    step: int = 0,
) -> list[Request]:
    """Returns `samples` requests for each problem, a group each, next to one another."""
    return [
        Request(problem=problem, group=group, index=index, seed=seed, purpose=purpose, step=step)
        for group, problem in enumerate(problems)
        for index in range(samples)
    ]
