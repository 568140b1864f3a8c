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
    `index`; a refill is another draw, evaluation another purpose. With `sister`, a second rollout
    of that index leaves it after `split` tokens, unless it ends before. With `parent`, it goes on
    from the first `split` tokens of a stored rollout.
    """

    problem: Problem
    group: int
    index: int = 0
    seed: int = 0
    purpose: str = "train"
    step: int = 0
    draw: int = 0
    limit: int | None = None  # the most tokens it gets, where that is less than `max_tokens`
    split: int | None = None
    sister: int | None = None
    parent: Rollout | None = None

    def __post_init__(self) -> None:
        """Refuses a split without one to part from, and one that no rollout could reach."""
        apart = (self.sister is not None) + (self.parent is not None)
        if apart != (self.split is not None) or self.sister == self.index:
            raise Refused(f"`split` is {self.split} with sister {self.sister}, but it goes with "
                          "either a sister of another index or a parent")  # fmt: skip
        if self.split is not None and self.split < 0:
            raise Refused(f"`split` is {self.split}, but it must be at least 0")
        if self.parent is not None and self.split is not None:
            check_parent(self.parent, self.split)
        if self.limit is not None and self.limit < 1:
            raise Refused(f"`limit` is {self.limit}, but it must be at least 1")

    def parts(self, index: int | None = None) -> tuple[object, ...]:
        """Returns what the random numbers are made from, or those of another index."""
        index = self.index if index is None else index
        return (self.seed, self.purpose, self.step, self.draw, self.problem.key, index)


def check_parent(parent: Rollout, split: int) -> None:
    """Refuses a parent that does not reach the split, or ended there."""
    if split >= len(parent.ids):
        raise Refused(f"`split` is {split}, but rollout {parent.index} of `{parent.problem}` has "
                      f"{len(parent.ids)} tokens: it must be less")  # fmt: skip


@runtime_checkable
class Engine(Protocol):
    """Makes rollouts; states what it promises, and one suite tests what is promised."""

    promises: frozenset[str]  # of "seed per position", "exact weights", "split", "fork"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, in order, each followed by its sister if any."""
        ...

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes new weights; None where the engine shares the learner's own."""
        ...


ENGINES = {
    "local": "logratio.engines.local:Local",
    "scripted": "logratio.engines.scripted:Scripted",
    "transformers": "logratio.engines.transformers:Transformers",
}


def find(name: str) -> Any:
    """Returns an engine's class by name, importing it only now."""
    if name not in ENGINES:
        raise Refused(unknown("engine", name, ENGINES, owner="logratio"))
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_promised(requests: Sequence[Request], promises: frozenset[str]) -> None:
    """Refuses a request for what an engine does not promise."""
    asked = {"split": any(one.sister is not None for one in requests)}
    asked["fork"] = any(one.parent is not None for one in requests)
    for name, wanted in asked.items():
        if wanted and name not in promises:
            raise Refused(f"`{name}` was requested, but this engine promises only "
                          f"{', '.join(sorted(promises))}")  # fmt: skip


def check_prompts(requests: Sequence[Request], sampling: Sampling, *, room: int | None) -> None:
    """Refuses an empty prompt, and one that leaves no room for the tokens asked for."""
    for request in requests:
        size, asked = len(request.problem.prompt_ids), sampling.max_tokens
        if not size:
            raise Refused(f"`prompt_ids` of `{request.problem.key}` is empty")
        if room is not None and size + asked > room:
            raise Refused(f"the prompt of `{request.problem.key}` has {size} tokens and "
                          f"`max_tokens` is {asked}, but the model holds {room}")  # fmt: skip


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


def fork(
    rollouts: Sequence[Rollout],
    at: Sequence[int],
    *,
    index: int,
    seed: int = 0,
    purpose: str = "train",
    step: int = 0,
) -> list[Request]:
    """Returns a request for each rollout that goes on from its first `at` tokens.

    The new ones have index `index`, `index + 1`, ... in the rollouts' own groups.
    """
    return [
        Request(
            problem=Problem(key=one.problem, prompt="", prompt_ids=one.prompt_ids),
            group=one.group,
            index=index + place,
            seed=seed,
            purpose=purpose,
            step=step,
            split=split,
            parent=one,
        )
        for place, (one, split) in enumerate(zip(rollouts, at, strict=True))
    ]
