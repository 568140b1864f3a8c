"""Slopes by plain arithmetic, token by token, against what autograd makes of a loss.

An objective's own `coefficient` may share a line with its loss, and be wrong with it. These share
nothing but the batch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from logratio.batch import Policy
from logratio.lab.draw import Draw, draw
from logratio.lab.options import changed
from logratio.lab.rows import Row
from logratio.lab.slopes import by_autograd, size
from logratio.objectives import find

PART = "coefficients"
LIMITS = {"slope": 1e-12}


class Seen:
    """The numbers of a draw as nested lists, by name: `seen.logp[row][token]`."""

    def __init__(self, one: Draw, policy: Policy) -> None:
        """Reads the streams of the batch and of the policy."""
        streams = {"mask": one.batch.mask, "group": one.batch.group, "logp": policy.logp}
        for name in ("pair", "reward", "advantage", "old", "ref"):
            streams[name] = getattr(one.batch, name)
        streams |= {**one.batch.columns, "logit": policy.logit, "ids": one.ids}
        streams |= {f"{name}_head": head for name, head in policy.heads.items()}
        self.numbers: dict[str, Any] = {
            name: stream.tolist() for name, stream in streams.items() if stream is not None
        }
        self.rows = range(len(one.batch.mask))

    def __getattr__(self, name: str) -> Any:
        """Returns a stream by its name."""
        return self.numbers[name]

    def tokens(self, row: int) -> list[int]:
        """Returns the places of a row's chosen tokens."""
        return [place for place, chosen in enumerate(self.mask[row]) if chosen]

    def apart(self, row: int, place: int, other: str = "ref") -> float:
        """Returns log policy / other of a token."""
        return self.logp[row][place] - self.numbers[other][row][place]

    def summed(self, row: int, other: str = "ref") -> float:
        """Returns log policy / other of a whole row."""
        return sum(self.apart(row, place, other) for place in self.tokens(row))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yields the rows of each pair, the chosen one first."""
        rows = {pair: row for row, pair in enumerate(self.pair)}
        for pair in range(0, max(rows), 2):
            yield rows[pair], rows[pair + 1]


Formula = Callable[[Seen], Mapping[tuple[int, int], float]]  # (row, place) -> slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """The slope of one term of an objective in one stream, before anything is averaged."""

    name: str
    formula: Formula
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    term: str
    stream: str = "logp"

    def row(self) -> Row:
        """Returns how far the formula is from autograd, at worst over a few draws."""
        return Row(
            part=PART,
            subject=self.name,
            case=self.said(),
            measured={"slope": max(self.apart(seed) for seed in range(3))},
            limits=LIMITS,
        )

    def said(self) -> str:
        """Returns the term, the stream and the settings in one line."""
        settings = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.term} in {self.stream} {settings}".rstrip()

    def apart(self, seed: int) -> float:
        """Returns the largest difference on one draw; infinity where all slopes are 0."""
        one = draw(changed(find(self.name), self.settings), seed)
        leaves = {name: leaf.requires_grad_() for name, leaf in one.leaves.items()}
        policy = one.policy(leaves)
        term = one.objective(policy, one.batch).terms[self.term]
        loss = (term.loss * one.batch.mask if term.unit == "token" else term.loss).sum()
        place = policy.heads.get(self.stream)
        place = policy.stream(self.stream) if place is None else place
        found = by_autograd(loss, {self.stream: place})[self.stream]
        expected = torch.zeros_like(found)
        for where, slope in self.formula(Seen(one, policy)).items():
            expected[where] = slope
        return size(found - expected) if expected.any() else torch.inf


def each_token(slope: Callable[[Seen, int, int], float]) -> Formula:
    """Returns the formula that has a slope of its own for each chosen token."""

    def formula(seen: Seen) -> dict[tuple[int, int], float]:
        places = ((row, place) for row in seen.rows for place in seen.tokens(row))
        return {(row, place): slope(seen, row, place) for row, place in places}

    return formula


def each_row(slope: Callable[[Seen, int], float]) -> Formula:
    """Returns the formula in which a row's tokens share one slope."""
    return each_token(lambda seen, row, _: slope(seen, row))
