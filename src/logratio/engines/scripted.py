"""The scripted engine: rollouts that a test wrote down, given out as if they had been sampled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logratio.engine import Request, check_promised
from logratio.records import Rollout
from logratio.sampler import Sampling

Script = Callable[[Request], Sequence[int]]


class Scripted:
    """Answers each request with the ids that its script gives; every token had log-prob 0."""

    promises = frozenset(["seed per position"])

    def __init__(self, script: Script, ends: Sequence[int]) -> None:
        """Keeps the script and the ids that end a rollout."""
        self.script, self.ends = script, frozenset(ends)
        self.version = 0

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes note of a version; a script has no weights."""
        del weights
        self.version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, cut at its first end token or at `max_tokens`."""
        check_promised(requests, self.promises)
        return [self.rollout(request, sampling) for request in requests]

    def rollout(self, request: Request, sampling: Sampling) -> Rollout:
        """Returns what the script says of one request."""
        ids = list(self.script(request))[: sampling.max_tokens]
        ended = next((place for place, token in enumerate(ids) if token in self.ends), None)
        ids = ids if ended is None else ids[: ended + 1]
        return Rollout(
            problem=request.problem.key,
            group=request.group,
            index=request.index,
            prompt_ids=request.problem.prompt_ids,
            ids=tuple(ids),
            old=(0.0,) * len(ids),
            finish="length" if ended is None else "stop",
            version=self.version,
        )
