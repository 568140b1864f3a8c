"""What is known of the rows that are being decoded: their tokens, and what was seen of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from logratio.engine import Request
from logratio.records import Rollout
from logratio.sampler import Drawn, Sampling, key_of


@dataclass(eq=False)
class Row:
    """A rollout while it is being made: where it came from."""

    place: int  # of its request
    request: Request
    index: int
    key: int
    parent: int | None  # the index of the rollout that it was forked from, if any
    split: int | None  # how many tokens it shares with it, or with its sister

    @staticmethod
    def of(place: int, request: Request) -> "Row":
        """Returns the row that answers a request."""
        key, parent = key_of(*request.parts()), request.parent
        if parent is None:
            return Row(place, request, request.index, key, None, None)
        return Row(place, request, request.index, key, parent.index, request.split)

    def sister(self) -> "Row":
        """Returns the row that parts from this one: another index, so other random numbers."""
        self.split = self.request.split
        index = cast(int, self.request.sister)
        key = key_of(*self.request.parts(index))
        return Row(self.place, self.request, index, key, self.index, self.split)

    @property
    def parts_at(self) -> int | None:
        """The number of tokens at which a sister leaves, if one will."""
        wanted = self.request.sister is not None and self.split is None
        return self.request.split if wanted else None

    @property
    def given(self) -> tuple[int, ...]:
        """The tokens that the row has before it starts, of its parent."""
        parent = self.request.parent
        return () if parent is None else parent.ids[: self.request.split]

    @property
    def prefix(self) -> tuple[int, ...]:
        """What is prefilled: the prompt, and the tokens that were given."""
        return self.request.problem.prompt_ids + self.given


@dataclass
class Board:
    """The tokens of every live row with their numbers, on the device that samples."""

    key: Int[Tensor, " R"]
    count: Int[Tensor, " R"]  # tokens that a row has
    limit: Int[Tensor, " R"]
    done: Bool[Tensor, " R"]  # such a row takes no more, should it still be here
    ids: Int[Tensor, "R T"]
    numbers: Float[Tensor, "R T 3"]  # old, behaviour, entropy

    @staticmethod
    def empty(tokens: int, device: torch.device) -> "Board":
        """Returns a board without rows, for rows of so many tokens."""
        none = torch.zeros(0, dtype=torch.long, device=device)
        numbers = torch.zeros(0, tokens, 3, dtype=torch.float64, device=device)
        return Board(none, none, none, none > 0, none.new_zeros(0, tokens), numbers)

    def add(self, rows: Sequence[Row], sampling: Sampling) -> None:
        """Adds rows, with the tokens that were given to them."""
        tokens = self.ids.shape[1]
        limits = [min(row.request.limit or sampling.max_tokens, sampling.max_tokens)
                  for row in rows]  # fmt: skip
        ids = self.ids.new_zeros(len(rows), tokens)
        numbers = self.numbers.new_zeros(len(rows), tokens, 3)
        for place, row in enumerate(rows):
            if row.given and row.request.parent is not None:
                known = slice(0, len(row.given))
                ids[place, known] = ids.new_tensor(row.given)
                numbers[place, known] = numbers.new_tensor(numbers_of(row.request.parent))[known]
        new = Board(
            key=self.key.new_tensor([row.key for row in rows]),
            count=self.count.new_tensor([len(row.given) for row in rows]),
            limit=self.limit.new_tensor(limits),
            done=self.done.new_zeros(len(rows)),
            ids=ids,
            numbers=numbers,
        )
        for part in fields(self):
            both = [cast(Tensor, getattr(board, part.name)) for board in (self, new)]
            setattr(self, part.name, torch.cat(both))

    def fork(self, source: int, key: int) -> None:
        """Adds a row with the tokens of another one, and random numbers of its own."""
        for part in fields(self):
            values = cast(Tensor, getattr(self, part.name))
            setattr(self, part.name, torch.cat([values, values[source : source + 1]]))
        self.key[-1] = key

    def leave(self, place: int) -> None:
        """Ends a row: the last one takes its place."""
        last = len(self.key) - 1
        for part in fields(self):
            values = cast(Tensor, getattr(self, part.name))
            if place != last:
                values[place] = values[last]
            setattr(self, part.name, values[:last])

    def last(self) -> Int[Tensor, " R"]:
        """Returns the last token of each row."""
        return self.ids.gather(1, self.count[:, None] - 1)[:, 0]

    def part(self, some: slice | Int[Tensor, " S"]) -> "Board":
        """Returns some rows; by a slice, what is written to them is written here."""
        return Board(**{part.name: getattr(self, part.name)[some] for part in fields(self)})

    def to(self, device: torch.device | str) -> "Board":
        """Returns a copy on another device."""
        return Board(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})

    def move(self, sources: Int[Tensor, " M"], targets: Int[Tensor, " M"], left: int) -> None:
        """Writes rows over others, and keeps the first `left`."""
        for part in fields(self):
            values = cast(Tensor, getattr(self, part.name))
            values[targets] = values[sources]
            setattr(self, part.name, values[:left])

    def write(self, drawn: Drawn, ends: Int[Tensor, " E"]) -> None:
        """Adds a token to every row that is not done; to one that is, behind its last one."""
        rows = torch.arange(len(self.key), device=self.key.device)
        self.ids[rows, self.count] = drawn.ids
        found = [drawn.old, drawn.behaviour, drawn.entropy]
        self.numbers[rows, self.count] = torch.stack(found, 1).to(self.numbers.dtype)
        self.count += ~self.done
        self.done |= (drawn.ids[:, None] == ends).any(1) | (self.count >= self.limit)


def numbers_of(rollout: Rollout) -> list[tuple[float, float, float]]:
    """Returns the three numbers of each token; NaN where a rollout was stored without one."""
    missing = (math.nan,) * len(rollout.ids)
    old = rollout.old or missing
    return list(zip(old, rollout.behaviour or old, rollout.entropy or missing, strict=True))
