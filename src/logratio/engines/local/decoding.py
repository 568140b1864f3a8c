"""One call of the engine: rows wait, enter, part, take a token at a time, and leave."""

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import Literal, cast

import torch
from torch import Tensor

from logratio.engine import Request
from logratio.engines.local.board import Board, Row
from logratio.engines.local.forward import Forward
from logratio.engines.local.slots import Slots
from logratio.model.attention import TreePlan
from logratio.model.pack import Tree
from logratio.records import Rollout
from logratio.sampler import Drawn, Sampling, draw, uniforms

Prefix = tuple[int, ...]
PREFILL = 4096  # tokens of prompts that are read at a time


class Decoding:
    """The rows of one call: those that wait, and those that hold a slot."""

    def __init__(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        slots: int,
        ends: frozenset[int],
        device: torch.device,
    ) -> None:
        """Lets every request wait; rows of one prompt wait next to each other."""
        self.sampling, self.room, self.ends = sampling, slots, ends
        self.stops = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        rows = [Row.of(place, request) for place, request in enumerate(requests)]
        first: dict[Prefix, int] = {}
        for row in rows:
            first.setdefault(row.prefix, len(first))
        self.waiting = sorted(rows, key=lambda row: first[row.prefix])
        self.live: list[Row] = []
        self.prompts: list[Prefix] = []
        self.last: list[Tensor] = []  # the hidden state after each prompt
        self.slots = Slots.empty(device)
        self.board = Board.empty(sampling.max_tokens, device)
        self.logits: Tensor | None = None  # of each live row's next token
        self.made: list[tuple[int, int, Rollout]] = []
        self.seconds = {"prefill": 0.0, "decode": 0.0, "sample": 0.0}

    def run(self, model: Forward, version: int) -> list[Rollout]:
        """Returns every rollout, in the order of the requests, a sister behind her own."""
        while self.waiting or self.live:
            started = perf_counter()
            if self.live:
                self.step(model)
            stepped = perf_counter()
            if self.wanting():
                self.enter(model)
            entered = perf_counter()
            self.part()
            if self.logits is not None:
                self.sample(version)
            self.seconds["decode"] += stepped - started
            self.seconds["prefill"] += entered - stepped
            self.seconds["sample"] += perf_counter() - entered
        return [rollout for *_, rollout in sorted(self.made, key=lambda one: one[:2])]

    def wanting(self, leaving: int = 0) -> bool:
        """Says whether enough slots are free to be filled; not for each one that empties."""
        free = self.room - self.taken(self.live) + leaving
        fits = not self.live or free >= self.taken(self.waiting[:1])
        return bool(self.waiting) and fits and free >= min(self.room // 8, len(self.waiting))

    def taken(self, rows: Iterable[Row]) -> int:
        """Returns how many slots these rows need: two where a sister will leave."""
        return sum(1 if row.parts_at is None else 2 for row in rows)

    def enter(self, model: Forward) -> None:
        """Gives waiting rows the free slots, reading each prompt that is not held already."""
        free, count = self.room - self.taken(self.live), 0
        for row in self.waiting:
            free -= self.taken([row])
            if free < 0 and (count or self.live):
                break
            count += 1
        rows, self.waiting = self.waiting[:count], self.waiting[count:]
        fresh = list(dict.fromkeys(row.prefix for row in rows if row.prefix not in self.prompts))
        for some in portions(fresh):
            self.read(model, some)
        held = [self.prompts.index(row.prefix) for row in rows]
        self.slots.add_rows(held)
        self.board.add(rows, self.sampling)
        self.live += rows
        self.add_logits(model.logits(torch.stack([self.last[place] for place in held])))

    def read(self, model: Forward, prompts: list[Prefix]) -> None:
        """Reads prompts in one pack, keeping their keys and values and their last states."""
        trees: list[Tree] = []
        for prompt in prompts:
            start = trees[-1].end if trees else 0
            trees.append(Tree(start=start, prompt=len(prompt), lengths=()))
        places = self.slots.add_prompts([len(prompt) for prompt in prompts])
        cache = self.slots.prefix

        def keep(layer: int, key: Tensor, value: Tensor) -> None:
            for buffer, part in zip(cache.layer(layer, key, value), (key, value), strict=True):
                for place, tree in zip(places, trees, strict=True):
                    buffer[place, :, : tree.prompt] = part[0, :, tree.start : tree.suffix]

        device = self.slots.owner.device
        ids = [token for prompt in prompts for token in prompt]
        at = [place for prompt in prompts for place in range(len(prompt))]
        hidden = model.hidden(
            torch.tensor([ids], device=device),
            torch.tensor([at], device=device),
            TreePlan(tuple(trees), keep),
        )
        self.prompts += prompts
        self.last += [hidden[0, tree.suffix - 1] for tree in trees]

    def step(self, model: Forward) -> None:
        """Computes the logits after each row's last token."""
        self.slots.begin()
        ids, places = self.board.last(), self.slots.positions()
        hidden = model.hidden(ids[:, None], places[:, None], self.slots)
        self.slots.end()
        self.logits = model.logits(hidden[:, 0])

    def add_logits(self, new: Tensor) -> None:
        """Puts the logits of rows that have just come behind those of the others."""
        self.logits = new if self.logits is None else torch.cat([self.logits, new])

    def part(self) -> None:
        """Lets a sister leave each row that has reached its split; she has the same tokens."""
        if all(row.parts_at is None for row in self.live):
            return
        counts = cast(list[int], self.board.count.tolist())
        first = len(self.live) - (0 if self.logits is None else len(self.logits))
        for place, row in enumerate(list(self.live)):
            if row.parts_at == counts[place]:
                sister = row.sister()
                self.slots.fork(place)
                self.board.fork(place, sister.key)
                self.live.append(sister)
                if self.logits is not None:
                    self.add_logits(self.logits[place - first :][:1])

    def sample(self, version: int) -> None:
        """Adds a token to every row whose logits are known, and lets the rows go that are done."""
        logits = cast(Tensor, self.logits)
        board = self.board.part(slice(len(self.live) - len(logits), None))
        board.write(self.draw(logits, board), self.stops)
        self.logits = None
        self.drop(cast(list[bool], self.board.done.tolist()), version)

    def draw(self, logits: Tensor, board: Board) -> Drawn:
        """Returns a token of each row of a board, given the logits of its next one."""
        return draw(
            logits,
            uniforms(board.key, board.count),
            self.sampling,
            banned=self.stops if self.sampling.min_tokens else (),
            where=board.count < self.sampling.min_tokens,
        )

    def drop(self, done: list[bool], version: int) -> None:
        """Lets the rows go that are done; the last one takes the slot of each."""
        for place in reversed([place for place, ended in enumerate(done) if ended]):
            self.keep(self.live[place], self.board.part(slice(place, place + 1)), version)
            self.live[place] = self.live[-1]
            self.live.pop()
            self.slots.leave(place)
            self.board.leave(place)
        self.forget()

    def forget(self) -> None:
        """Lets the prompts go that no row has."""
        wanted = {row.prefix for row in (*self.live, *self.waiting[:1])}
        for place in range(len(self.prompts) - 1, -1, -1):
            if self.prompts[place] not in wanted:
                self.slots.forget(place)
                self.prompts[place], self.last[place] = self.prompts[-1], self.last[-1]
                self.prompts.pop()
                self.last.pop()

    def keep(self, row: Row, board: Board, version: int) -> None:
        """Keeps the record of a finished row, which is the only one of the board."""
        record = self.record(row, board, version)
        self.made.append((row.place, row.index != row.request.index, record))

    def record(self, row: Row, board: Board, version: int) -> Rollout:
        """Returns what is kept of a finished row, which is the only one of the board."""
        count = int(board.count[0])
        ids = tuple(cast(list[int], board.ids[0, :count].tolist()))
        numbers = board.numbers[0, :count].T
        old, behaviour, entropy = cast(list[list[float]], numbers.tolist())
        finish: Literal["stop", "length"] = "stop" if ids[-1] in self.ends else "length"
        return Rollout(
            problem=row.request.problem.key,
            group=row.request.group,
            index=row.index,
            prompt_ids=row.request.problem.prompt_ids,
            ids=ids,
            old=tuple(old),
            behaviour=tuple(behaviour) if self.sampling.truncated else None,
            entropy=tuple(entropy),
            finish=finish,
            seed=str(row.key),
            version=version,
            parent=row.parent,
            split=row.split,
        )


def portions(prompts: list[Prefix]) -> Iterator[list[Prefix]]:
    """Gives the prompts in packs of at most `PREFILL` tokens, or of one prompt."""
    held: list[Prefix] = []
    for prompt in prompts:
        if held and sum(map(len, held)) + len(prompt) > PREFILL:
            yield held
            held = []
        held.append(prompt)
    if held:
        yield held
