"""Nouns without tensors, in story order: Problem, Rollout, Verdict, Graded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logratio.settings import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is asked: a stable key, the prompt as text or messages and as ids, and the answer."""

    key: str
    prompt: str | Sequence[Mapping[str, Any]]
    prompt_ids: tuple[int, ...]
    answer: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What was written: token ids, and the numbers that only the sampler knew.

    `old` is the full-softmax log-prob at the sampling temperature. `behaviour` is the log-prob
    under the truncated distribution, there only where top-k, top-p or min-p made it differ.
    Rows of a data set have neither. The stop token, where there is one, is the last id.
    """

    problem: str
    group: int
    index: int = 0
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    old: tuple[float, ...] | None = None
    behaviour: tuple[float, ...] | None = None
    entropy: tuple[float, ...] | None = None
    finish: Literal["stop", "length", "error"] = "stop"
    seed: str = ""
    version: int = 0
    parent: int | None = None  # index, in its group, of the rollout it was forked from
    split: int | None = None  # how many tokens it shares with its sister
    trained: tuple[bool, ...] | None = None  # False where a tool wrote; None: every id trains

    def with_prompt_trained(self) -> "Rollout":
        """Returns the same text with the prompt's tokens after the first trained as well.

        >>> Rollout(problem="p", group=0, prompt_ids=(1, 2), ids=(3,)).with_prompt_trained().ids
        (2, 3)
        """
        if self.old is not None:
            raise Refused(f"rollout {self.index} of `{self.problem}` was sampled: a prompt "
                             "that was not sampled can not be trained beside it")  # fmt: skip
        moved = self.prompt_ids[1:]
        trained = None if self.trained is None else (True,) * len(moved) + self.trained
        return replace(self, prompt_ids=self.prompt_ids[:1], ids=moved + self.ids, trained=trained)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What it earned: the reward, its named parts, step rewards where steps can be judged.

    `step_ends[j]` is the number of tokens up to and including the last one of step j. A reward
    that failed has `error` set and no reward: it is never a zero.
    """

    reward: float | None
    correct: bool | None = None
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    steps: tuple[float, ...] = ()
    step_ends: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A rollout with its verdict; of a pair, `side` 0 is the chosen (or first) one, 1 the other."""

    rollout: Rollout
    verdict: Verdict
    pair: int | None = None
    side: Literal[0, 1] = 0
    columns: Mapping[str, float] = field(default_factory=dict[str, float])
