"""What a timed step is made of: how many prompts, how long they and their completions are.

Everything is a function of the numbers typed, so that two trainers in two processes are given the
same tokens and the same lengths.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from logratio.records import Problem, Rollout, Verdict
from logratio.settings import Refused

TAIL = 2.5  # the longest completion over the mean one, where lengths are ragged
SHORTEST = 4  # the shortest prompt is this part of the longest, where lengths are ragged


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompt lengths, and the completion lengths of each prompt's group."""

    prompts: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    reference: bool = False  # a frozen model scores the completions too
    epochs: int = 1  # updates on one batch

    @property
    def rows(self) -> int:
        """How many completions there are."""
        return sum(len(group) for group in self.completions)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The length of every completion, group after group."""
        return tuple(length for group in self.completions for length in group)

    def tokens(self) -> dict[str, int]:
        """Returns how many tokens are read, drawn and trained: each prompt counts once a group."""
        prompt, completion = sum(self.prompts), sum(self.lengths)
        return {"prompt": prompt, "completion": completion, "trained": prompt + completion}


def equal(prompts: int, group: int, tokens: tuple[int, int]) -> Workload:
    """Returns a workload whose prompts, and whose completions, are all equally long."""
    before, after = tokens
    return Workload(prompts=(before,) * prompts, completions=((after,) * group,) * prompts)


def ragged(prompts: int, group: int, tokens: tuple[int, int], *, seed: int = 0) -> Workload:
    """Returns prompts of P/4 to P tokens, and completions whose longest is 2.5 times their mean.

    The longest completion has C tokens. The others are drawn from an exponential, cut at C, and
    moved until the mean is right.
    """
    before, after = tokens
    draw = Random(seed)
    lengths = tailed([draw.expovariate(1.0) for _ in range(prompts * group)], after)
    draw.shuffle(lengths)
    low = max(1, before // SHORTEST)
    return Workload(
        prompts=tuple(draw.randint(low, before) for _ in range(prompts)),
        completions=tuple(tuple(lengths[i * group : (i + 1) * group]) for i in range(prompts)),
    )


def tailed(weights: Sequence[float], longest: int) -> list[int]:
    """Returns lengths in proportion to the weights: the largest is `longest`, the sum fits TAIL."""
    total = max(longest + len(weights) - 1, round(longest * len(weights) / TAIL))
    factor = total / sum(weights)
    order = sorted(range(len(weights)), key=lambda place: -weights[place])
    lengths = [min(longest, max(1, round(weight * factor))) for weight in weights]
    lengths[order[0]] = longest
    rest = order[1:]
    place = 0
    while sum(lengths) != total:
        at, step = rest[place % len(rest)], 1 if sum(lengths) < total else -1
        lengths[at] = min(longest, max(1, lengths[at] + step))
        place += 1
    return lengths


def problems_of(workload: Workload, vocabulary: int, *, seed: int = 0) -> list[Problem]:
    """Returns problems whose prompts are random ids that no tokenizer gives a meaning to."""
    draw = Random(seed)
    first = min(3, vocabulary - 1)  # past the ids that begin, end and pad
    return [
        Problem(
            key=str(place),
            prompt="",
            prompt_ids=tuple(draw.randrange(first, vocabulary) for _ in range(length)),
        )
        for place, length in enumerate(workload.prompts)
    ]


def reward_of(ids: Sequence[int]) -> float:
    """Returns a number in [0, 1) that any change of the ids changes: a reward in no time.

    >>> reward_of([1, 2, 3]) == reward_of((1, 2, 3)), reward_of([1, 2, 3]) == reward_of([1, 2, 4])
    (True, False)
    """
    digest = hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def verdict_of(rollout: Rollout) -> Verdict:
    """Returns the hash of a rollout as its verdict."""
    return Verdict(reward=reward_of(rollout.ids))


def check_counts(**counts: int) -> None:
    """Refuses a count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise Refused(f"`{name}` is {count}, but it must be at least 1")
