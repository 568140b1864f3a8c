"""One call of the engine on a GPU: several steps between two looks at the rows.

All rows that are not done advance together, so the host knows how many steps are safe: until the
next sister leaves, and no further than the longest row goes. What is taken of a row beyond its end
is lost work. Finished rows stay until fewer rows would be computed without them.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from logratio.engine import Request
from logratio.engines.local.board import Board
from logratio.engines.local.cuda.graph import Eager, Graphs, hindrance, size_of
from logratio.engines.local.cuda.stage import Attention, Room, Stage, plain, step
from logratio.engines.local.decoding import Decoding
from logratio.engines.local.forward import Forward
from logratio.records import Rollout
from logratio.sampler import Drawn, Sampling, uniforms

LOOK = 8  # steps between two looks
PACKAGE = "logratio.engines.local.cuda"


class Kernels(NamedTuple):
    """The attention of a step, and a draw from a softmax that nothing cuts if there is one."""

    attention: Attention = plain
    draw: Callable[[Tensor, Tensor, float], Drawn] | None = None

    @staticmethod
    def triton() -> "Kernels":
        """Returns the kernels for a GPU; nothing else loads Triton."""
        attention, sampling = (
            importlib.import_module(f"{PACKAGE}.{name}") for name in ("attention", "sampling")
        )
        return Kernels(attention.attend, sampling.draw)


class Kept:
    """What lasts from call to call: memory, and the steps that were captured in it."""

    def __init__(self, kernels: Kernels, repeat: type[Eager] | type[Graphs]) -> None:
        """Holds nothing before the first call."""
        self.kernels, self.repeat = kernels, repeat
        self.room = Room(0, 0, 0, 0)
        self.addresses: tuple[int, ...] = ()

    @staticmethod
    def on_gpu(model: Forward) -> "Kept":
        """Returns what a GPU keeps; says so where a model's steps can not be captured."""
        why = hindrance(model.model)
        if why is not None:
            warnings.warn(f"a token is launched operation by operation: {why}", stacklevel=2)
        return Kept(Kernels.triton(), Graphs if why is None else Eager)

    def ready(self, model: Forward, room: Room, ends: Tensor) -> None:
        """Makes memory with that much room; anew where weights are elsewhere than they were."""
        parts = (*model.model.parameters(), *model.model.buffers())
        addresses = tuple(part.data_ptr() for part in parts)
        if self.room.holds(room) and addresses == self.addresses:
            return
        self.room, self.addresses = Room(*map(max, self.room, room)), addresses
        self.stage = Stage.of(self.room, ends, self.kernels.attention)
        self.steps = self.repeat()


class Strides(Decoding):
    """The rows of one call, in memory that is kept; `step` takes several."""

    def __init__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        slots: int,
        ends: frozenset[int],
        model: Forward,
        kept: Kept,
    ) -> None:
        """Lets every request wait, and makes room for as many as there are slots."""
        super().__init__(requests, sampling, slots=slots, ends=ends, device=model.device)
        rows = max(2, min(slots, self.taken(self.waiting)))  # two: a row and her sister
        prefixes = {row.prefix for row in self.waiting}
        room = Room(
            rows=size_of(rows),
            tokens=sampling.max_tokens,
            prompts=min(rows, len(prefixes)) + 1,  # the next to come may be held already
            prefix=max(map(len, prefixes), default=1),
        )
        kept.ready(model, room, self.stops)
        self.kept, self.version, self.stops = kept, 0, kept.stage.ends
        self.board, self.slots = kept.stage.view(0)
        self.slots.before = self.slots.before[:0]

    def run(self, model: Forward, version: int) -> list[Rollout]:
        """Returns every rollout, in the order of the requests, a sister behind her own."""
        self.version = version
        return super().run(model, version)

    def step(self, model: Forward) -> None:
        """Takes as many steps as nobody needs to look at, then looks."""
        rows, stage = size_of(len(self.live)), self.kept.stage
        stage.settle(self.board, self.slots, rows)
        board, lanes = stage.view(rows)

        def once() -> None:
            step(model, board, lanes, draw=self.draw, ends=stage.ends)

        self.kept.steps.run(once, self.safe(), (rows, self.sampling))
        done = cast(list[bool], self.board.done.tolist())
        if self.worth(sum(done)):
            self.drop(done, self.version)
        self.part()

    def sample(self, version: int) -> None:
        """Adds a token to the rows that have just come; a sister may leave one at once."""
        super().sample(version)
        self.part()

    def safe(self) -> int:
        """Returns how many steps can be taken before a row must be looked at."""
        ahead = torch.where(self.board.done, 0, self.board.limit - self.board.count)
        left, counts = cast(list[list[int]], torch.stack([ahead, self.board.count]).tolist())
        due = [row.parts_at - count for row, count in zip(self.live, counts, strict=True)
               if row.parts_at is not None]  # fmt: skip
        return max(1, min(LOOK, max(left), *due))

    def worth(self, finished: int) -> bool:
        """Says whether so many finished rows should leave now."""
        fewer = size_of(len(self.live) - finished) < size_of(len(self.live))
        parting = any(row.parts_at is not None for row in self.live)
        return finished > 0 and (fewer or parting or self.wanting(finished))

    def draw(self, logits: Tensor, board: Board) -> Drawn:
        """Returns a token of each row of a board, given the logits of its next one."""
        one_pass, heat = self.kept.kernels.draw, self.sampling.temperature
        if one_pass is None or self.sampling.truncated or heat == 0:
            return super().draw(logits, board)
        return one_pass(logits, uniforms(board.key, board.count), heat)

    def drop(self, done: list[bool], version: int) -> None:
        """Lets all finished rows go at once; rows from behind take their slots."""
        ended = [place for place, over in enumerate(done) if over]
        if not ended:
            return
        there = torch.tensor(ended, dtype=torch.long, device=self.stops.device)
        read = self.board.part(there).to("cpu")
        for place, one in enumerate(ended):
            self.keep(self.live[one], read.part(slice(place, place + 1)), version)
        left = len(done) - len(ended)
        sources = [place for place in range(left, len(done)) if not done[place]]
        targets = [place for place in ended if place < left]
        for source, target in zip(sources, targets, strict=True):
            self.live[target] = self.live[source]
        del self.live[left:]
        moves = there.new_tensor([sources, targets])
        self.slots.move(moves[0], moves[1], left)
        self.board.move(moves[0], moves[1], left)
        self.forget()
