"""The attention of rows that are being decoded: prompts apart, suffixes in dense slots.

Rows [0, live) are alive, and so are prompts [0, prompts). When a row ends the last one takes its
slot; when a prompt has no row left the last one takes its place. A prompt's keys are stored once
and read once for all of its rows.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logratio.engines.local.cache import Cache, columns
from logratio.model.attention import How


@dataclass
class Slots:
    """The caches of a batch of rows, and the attention of a decode step over them."""

    owner: Int[Tensor, " R"]  # the prompt of each row
    length: Int[Tensor, " R"]  # tokens that a row has in its suffix
    before: Int[Tensor, " Q"]  # tokens of each prompt
    calls: int = 0
    even: int | None = None  # the length of every suffix, where they are equal
    prefix: Cache = field(default_factory=Cache)
    suffix: Cache = field(default_factory=Cache)
    table: "Table | None" = None
    masks: dict[int | None, Tensor] = field(default_factory=dict[int | None, Tensor])

    @staticmethod
    def empty(device: torch.device) -> "Slots":
        """Returns slots without rows."""
        none = torch.zeros(0, dtype=torch.long, device=device)
        return Slots(owner=none, length=none, before=none)

    def positions(self) -> Int[Tensor, " R"]:
        """Returns where each row's next token stands."""
        return self.before[self.owner] + self.length

    def add_prompts(self, sizes: list[int]) -> range:
        """Returns the places of new prompts of these sizes."""
        start = len(self.before)
        self.before = torch.cat([self.before, self.before.new_tensor(sizes)])
        self.prefix.reserve(len(self.before), max(sizes))
        self.table = None
        return range(start, len(self.before))

    def add_rows(self, owners: list[int]) -> None:
        """Adds rows of these prompts, with nothing in their suffix."""
        self.owner = torch.cat([self.owner, self.owner.new_tensor(owners)])
        self.length = torch.cat([self.length, self.length.new_zeros(len(owners))])
        self.table = None

    def fork(self, source: int) -> None:
        """Adds a row that shares its prompt with another one and goes on from where that is."""
        target, tokens = len(self.owner), int(self.length[source])
        self.add_rows([int(self.owner[source])])
        self.length[target] = tokens
        self.suffix.reserve(len(self.owner), tokens)
        self.suffix.copy(source, target, tokens)

    def leave(self, place: int) -> None:
        """Ends a row: the last one takes its slot."""
        last = len(self.owner) - 1
        if place != last:
            self.suffix.copy(last, place, int(self.length[last]))
            self.owner[place], self.length[place] = self.owner[last], self.length[last]
        self.owner, self.length, self.table = self.owner[:last], self.length[:last], None

    def forget(self, prompt: int) -> None:
        """Drops a prompt that no row has: the last one takes its place."""
        last = len(self.before) - 1
        if prompt != last:
            self.prefix.copy(last, prompt, int(self.before[last]))
            self.before[prompt] = self.before[last]
            self.owner[self.owner == last] = prompt
        self.before, self.table = self.before[:last], None

    def begin(self) -> None:
        """Makes room for one more token of each row."""
        shortest, longest = (int(part) for part in self.length.aminmax())
        self.even = longest if shortest == longest else None
        self.suffix.reserve(len(self.owner), longest + 1)
        self.masks.clear()
        if self.table is None:
            self.table = Table.of(self.owner, len(self.before))

    def end(self) -> None:
        """Counts the token that every layer has stored."""
        self.length += 1

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns the attention of one new token of each row, whose keys it stores first."""
        query, key, value = states
        table = cast(Table, self.table)
        rows, count = len(self.owner), len(self.before)
        keys, values = self.suffix.layer(how.layer, key, value)
        self.write(keys, key)
        self.write(values, value)
        first, other = (part[:count].flatten(0, 1) for part in self.prefix.layers[how.layer])
        own, mine = keys[:rows].flatten(0, 1), values[:rows].flatten(0, 1)
        heads = key.shape[1]
        asked = query.view(rows, heads, -1, query.shape[3])
        scores = torch.cat([
            table.rowwise(torch.bmm(table.grouped(asked), first.mT), heads),
            torch.bmm(asked.flatten(0, 1), own.mT).view(rows, heads, -1, own.shape[1]),
        ], -1)  # fmt: skip
        mask = self.mask(how.window, torch.promote_types(scores.dtype, torch.float32))
        share = torch.add(mask, scores, alpha=how.scale).softmax(-1).to(value.dtype)
        left, right = share[..., : first.shape[1]], share[..., first.shape[1] :]
        out = torch.bmm(right.flatten(0, 1), mine).view(rows, heads, -1, mine.shape[2])
        out = out + table.rowwise(torch.bmm(table.grouped(left), other), heads)
        return out.view(rows, -1, 1, mine.shape[2])

    def write(self, buffer: Tensor, new: Float[Tensor, "R H 1 D"]) -> None:
        """Stores one new entry of each row behind those that it has."""
        rows = len(self.owner)
        if self.even is None:
            buffer[cast(Table, self.table).rows, :, self.length] = new[:, :, 0]
        else:
            buffer[:rows, :, self.even] = new[:, :, 0]

    def mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "R 1 1 S"]:
        """Returns 0 where a row sees a column of its prompt or its suffix, else -inf."""
        if window not in self.masks:
            before = self.before[self.owner]
            place, seen = columns(self.length, before, self.prefix.tokens, self.suffix.tokens)
            if window is not None:
                seen = seen & ((before + self.length)[:, None] - place < window)
            hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[window] = hidden.masked_fill_(~seen, -torch.inf)[:, None, None]
        return self.masks[window]


@dataclass(frozen=True)
class Table:
    """Where each row stands among the rows of its prompt; made anew when rows move."""

    rows: Int[Tensor, " R"]  # 0, 1, 2, ...
    prompts: int
    order: Int[Tensor, " G"] | None  # the rows prompt by prompt, filled up with row 0
    place: Int[Tensor, " R"] | None  # where each row is in it; None for both where it is the order

    @staticmethod
    def of(owner: Int[Tensor, " R"], prompts: int) -> "Table":
        """Returns the table of the rows that are alive."""
        rows = torch.arange(len(owner), device=owner.device)
        counts = owner.bincount(minlength=prompts)
        widest = int(counts.max())
        if bool((owner * widest + rows % widest == rows).all()) and len(rows) == prompts * widest:
            return Table(rows, prompts, None, None)
        sort = owner.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(owner)
        place[sort] = owner[sort] * widest + rows - starts[owner[sort]]
        order = owner.new_zeros(prompts * widest)
        order[place] = rows
        return Table(rows, prompts, order, place)

    def grouped(self, rows: Float[Tensor, "R H n D"]) -> Float[Tensor, "UH W D"]:
        """Returns what belongs to the rows of each prompt side by side, for each head."""
        found = rows if self.order is None else rows[self.order]
        _, heads, count, width = found.shape
        found = found.view(self.prompts, -1, heads, count, width).transpose(1, 2)
        return found.reshape(self.prompts * heads, -1, width)

    def rowwise(self, grouped: Float[Tensor, "UH W D"], heads: int) -> Float[Tensor, "R H n D"]:
        """Returns what belongs to each row, in the order of the rows."""
        width = grouped.shape[2]
        wide = len(self.rows if self.order is None else self.order) // self.prompts
        found = grouped.view(self.prompts, heads, wide, -1, width).transpose(1, 2)
        found = found.reshape(self.prompts * wide, heads, -1, width)
        return found if self.place is None else found[self.place]
