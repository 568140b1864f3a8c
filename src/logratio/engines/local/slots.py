"""Keys and values of the rows that are being decoded: prompts apart, suffixes in dense slots.

Rows [0, live) are alive. When one ends, the last one takes its slot. A prompt is stored once, and
its attention is computed for all of its rows at a time.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from logratio.model.attention import How
from logratio.model.segment import forward


@dataclass
class Slots:
    """The caches of one batch of rows, and the attention of a decode step over them."""

    prompts: int  # how many distinct prompts there is room for
    longest: int  # the longest prompt
    rows: int
    tokens: int  # the most tokens a row may get
    owner: Int[Tensor, " R"]  # the prompt of each row
    length: Int[Tensor, " R"]  # tokens that a row has in its suffix
    prompt_length: Int[Tensor, " Q"]
    live: int = 0
    calls: int = 0
    prefix: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    suffix: list[tuple[Tensor, Tensor]] = field(default_factory=list[tuple[Tensor, Tensor]])
    table: "Table | None" = None

    def room(self, layer: int, like: Tensor) -> None:
        """Makes the buffers of a layer the first time that it is seen."""
        while len(self.prefix) <= layer:
            heads, width = like.shape[1], like.shape[3]
            before = [like.new_zeros(self.prompts, heads, self.longest, width) for _ in range(2)]
            after = [like.new_zeros(self.rows, heads, self.tokens, width) for _ in range(2)]
            self.prefix.append((before[0], before[1]))
            self.suffix.append((after[0], after[1]))

    def move(self, source: int, target: int) -> None:
        """Puts one row's suffix into another slot: it shares its prompt by reference."""
        count = int(self.length[source])
        for keys, values in self.suffix:
            keys[target, :, :count] = keys[source, :, :count]
            values[target, :, :count] = values[source, :, :count]
        self.owner[target], self.length[target] = self.owner[source], self.length[source]
        self.table = None

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns the attention of one new token of each live row, whose keys it stores first."""
        query, key, value = states
        if self.table is None:
            self.table = Table.of(self)
        keys, values = self.suffix[how.layer]
        places, live = self.table.places, slice(0, self.live)
        keys[places, :, self.length[live]] = key[:, :, 0]
        values[places, :, self.length[live]] = value[:, :, 0]
        longest = int(self.length[live].max()) + 1
        mask, before = self.table.masks(self, longest, how.window, query)
        own = keys[live, :, :longest], values[live, :, :longest]
        out2, lse2 = forward(query, *own, causal=False, mask=mask, scale=how.scale)
        prompt = self.prefix[how.layer]
        grouped = self.table.gathered(query)
        out1, lse1 = forward(
            grouped, prompt[0][self.table.used], prompt[1][self.table.used],
            causal=False, mask=before, scale=how.scale,
        )  # fmt: skip
        out1 = self.table.scattered(out1)
        lse1 = self.table.scattered(lse1[..., None])[..., 0]
        merged = torch.logaddexp(lse1, lse2)
        shares = [(part - merged).exp()[..., None].to(query.dtype) for part in (lse1, lse2)]
        return out1 * shares[0] + out2 * shares[1]


@dataclass
class Table:
    """Where each live row stands among the rows of its prompt; made anew when rows move."""

    used: Int[Tensor, " U"]  # the prompts that have live rows
    at: Int[Tensor, " R"]  # each row's place among the used prompts
    rank: Int[Tensor, " R"]  # ... and among the rows of its prompt
    widest: int
    places: Int[Tensor, " R"]
    ready: dict[tuple[int, int | None], tuple[Tensor | None, Tensor | None]] = field(
        default_factory=dict[tuple[int, "int | None"], "tuple[Tensor | None, Tensor | None]"]
    )

    @staticmethod
    def of(slots: Slots) -> "Table":
        """Returns the table of the rows that are alive."""
        owner = slots.owner[: slots.live]
        used, at = cast(tuple[Tensor, Tensor], torch.unique(owner, return_inverse=True))
        order = at.argsort(stable=True)
        counts = at.bincount(minlength=len(used))
        starts = counts.cumsum(0) - counts
        rank = torch.empty_like(at)
        rank[order] = torch.arange(len(at), device=at.device) - starts[at[order]]
        places = torch.arange(slots.live, device=at.device)
        return Table(used=used, at=at, rank=rank, widest=int(counts.max()), places=places)

    def gathered(self, rows: Float[Tensor, "R H 1 D"]) -> Float[Tensor, "U H W D"]:
        """Returns the queries of each prompt's rows side by side; 0 where a prompt has fewer."""
        found = rows.new_zeros(len(self.used), rows.shape[1], self.widest, rows.shape[3])
        found[self.at, :, self.rank] = rows[:, :, 0]
        return found

    def scattered(self, grouped: Float[Tensor, "U H W D"]) -> Float[Tensor, "R H 1 D"]:
        """Returns what belongs to each row, in the order of the rows."""
        return grouped[self.at, :, self.rank][:, :, None]

    def masks(
        self, slots: Slots, longest: int, window: int | None, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Returns what each row sees of its suffix, and each prompt's rows of the prompt.

        None where everything is seen: rows of one length behind prompts of one length.
        """
        key = (longest, window)
        if key not in self.ready:
            if len(self.ready) > 4:
                self.ready.clear()
            length, before = slots.length[: slots.live], slots.prompt_length[self.used]
            here = before[self.at] + length  # the position of each row's new token
            own = torch.arange(longest, device=length.device)
            seen = own[None] <= length[:, None]
            first = torch.arange(slots.longest, device=length.device)
            shown = (first[None] < before[:, None])[:, None].expand(-1, self.widest, -1)
            if window is not None:
                seen = seen & (length[:, None] - own[None] < window)
                near = here[:, None] - first[None] < window
                spread = torch.ones_like(shown)
                spread[self.at, self.rank] = near
                shown = shown & spread
            self.ready[key] = additive(seen[:, None, None], like), additive(shown[:, None], like)
        return self.ready[key]


def additive(seen: Tensor, like: Tensor) -> Tensor | None:
    """Returns 0 where something is seen and -inf where not; None where everything is."""
    if bool(seen.all()):
        return None
    return torch.where(seen, 0.0, -torch.inf).to(like.dtype)
