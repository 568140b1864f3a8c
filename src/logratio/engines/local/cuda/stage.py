"""Memory that keeps its address from step to step, and the step that is taken in it.

Nothing of a step is looked at by the host, so it can be captured once and replayed. A row that is
done stays where it is: it does not advance, and what is computed for it is stored where nothing
reads, in the cell behind its last token.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logratio.engines.local.board import Board
from logratio.engines.local.cache import columns
from logratio.engines.local.forward import Forward
from logratio.engines.local.slots import Slots
from logratio.model.attention import How
from logratio.sampler import Drawn

States = tuple[Tensor, Tensor, Tensor]  # query, key and value, [R, H, 1, D]


class Held(NamedTuple):
    """The keys and values that a layer holds: of the suffixes, then of the prompts."""

    keys: Float[Tensor, "R H S D"]
    values: Float[Tensor, "R H S D"]
    first: Float[Tensor, "Q H P D"]
    other: Float[Tensor, "Q H P D"]


class Where(NamedTuple):
    """Each row's prompt, the tokens of each prompt, and the tokens of each row's suffix."""

    owner: Int[Tensor, " R"]
    before: Int[Tensor, " Q"]
    length: Int[Tensor, " R"]


Attention = Callable[[States, Held, Where, How], Tensor]
Draw = Callable[[Tensor, Board], Drawn]


def plain(states: States, held: Held, where: Where, how: How) -> Float[Tensor, "R H 1 D"]:
    """Returns the attention of one new token of each row, whose keys it stores first.

    Plain tensor operations: what the kernel is held to.
    """
    query, key, value = states
    rows, before = torch.arange(len(query), device=query.device), where.before[where.owner]
    held.keys[rows, :, where.length] = key[:, :, 0]
    held.values[rows, :, where.length] = value[:, :, 0]
    keys, values = (
        torch.cat([prompts[where.owner], own[: len(rows)]], 2)
        for prompts, own in ((held.first, held.keys), (held.other, held.values))
    )
    place, seen = columns(where.length, before, held.first.shape[2], held.keys.shape[2])
    if how.window is not None:
        seen = seen & ((before + where.length)[:, None] - place < how.window)
    asked = query.reshape(len(rows), key.shape[1], -1, query.shape[3])
    scores = (asked @ keys.mT).to(torch.promote_types(query.dtype, torch.float32)) * how.scale
    share = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1).to(values.dtype)
    return (share @ values).view(query.shape)


@dataclass
class Lanes(Slots):
    """Slots whose attention knows where rows stand from tensors alone."""

    attention: Attention = plain

    def attend(self, states: States, how: How) -> Tensor:
        """Returns the attention of one new token of each row, whose keys it stores first."""
        own = self.suffix.layer(how.layer, states[1], states[2])
        held = Held(*own, *self.prefix.layers[how.layer])
        return self.attention(states, held, Where(self.owner, self.before, self.length), how)

    def move(self, sources: Int[Tensor, " M"], targets: Int[Tensor, " M"], left: int) -> None:
        """Writes rows over others, and keeps the first `left`."""
        for buffers in self.suffix.layers.values():
            for buffer in buffers:
                buffer[targets] = buffer[sources]
        for part in (self.owner, self.length):
            part[targets] = part[sources]
        self.owner, self.length, self.table = self.owner[:left], self.length[:left], None


class Room(NamedTuple):
    """How much there is room for: rows and their tokens, prompts and theirs."""

    rows: int
    tokens: int
    prompts: int
    prefix: int

    def holds(self, other: "Room") -> bool:
        """Says whether everything that the other has room for fits."""
        return all(own >= wanted for own, wanted in zip(self, other, strict=True))


@dataclass
class Stage:
    """A board and lanes for as many rows as there will ever be; those of a call are views."""

    board: Board
    lanes: Lanes
    ends: Int[Tensor, " E"]

    @staticmethod
    def of(room: Room, ends: Int[Tensor, " E"], attention: Attention) -> "Stage":
        """Returns memory with that much room, on the device of the end tokens."""
        empty = Board.empty(room.tokens + 1, ends.device)  # with a cell behind the last token
        board = Board(**{
            part.name: (held := cast(Tensor, getattr(empty, part.name))).new_zeros(
                room.rows, *held.shape[1:]
            )
            for part in fields(Board)
        })  # fmt: skip
        zeros = torch.zeros(room.rows + room.prompts, dtype=torch.long, device=ends.device)
        own = zeros[: room.rows]
        lanes = Lanes(own, own.clone(), zeros[room.rows :], attention=attention)
        lanes.suffix.reserve(room.rows, room.tokens)
        lanes.prefix.reserve(room.prompts, room.prefix)
        return Stage(board, lanes, ends)

    def view(self, rows: int) -> tuple[Board, Lanes]:
        """Returns the first rows: what is written to them is written here."""
        lanes = self.lanes
        return self.board.part(slice(rows)), replace(
            lanes, owner=lanes.owner[:rows], length=lanes.length[:rows]
        )

    def settle(self, board: Board, lanes: Slots, rows: int) -> None:
        """Brings in what has come to be elsewhere, and makes the rows behind the live ones idle."""
        pairs = [(board, self.board, part.name) for part in fields(Board)]
        pairs += [(lanes, self.lanes, name) for name in ("owner", "length", "before")]
        for live, own, name in pairs:
            found = cast(Tensor, getattr(live, name))
            here = cast(Tensor, getattr(own, name))[: len(found)]
            if here.data_ptr() != found.data_ptr():
                here.copy_(found)
                setattr(live, name, here)
        idle = slice(len(board.key), rows)
        self.board.done[idle], self.board.count[idle] = True, 1  # one token, to be its last
        self.lanes.owner[idle], self.lanes.length[idle] = 0, 0


def step(model: Forward, board: Board, lanes: Lanes, *, draw: Draw, ends: Tensor) -> None:
    """Adds a token to every row that is not done: the same few launches whatever the rows hold."""
    ids, places = board.last(), lanes.positions()
    hidden = model.hidden(ids[:, None], places[:, None], lanes)
    drawn = draw(model.logits(hidden[:, 0]), board)
    lanes.length += ~board.done
    board.write(drawn, ends)
