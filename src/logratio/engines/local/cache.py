"""Keys and values in buffers that grow: a row for each sequence, as long as the longest needs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

STEP = 32  # tokens that a buffer grows by: a product over whole buffers needs no copy of a slice


@dataclass
class Cache:
    """The keys and values `[rows, H, tokens, D]` of every layer; 0 where nothing was written."""

    rows: int = 0
    tokens: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(
        default_factory=dict[int, tuple[Tensor, Tensor]]
    )

    def reserve(self, rows: int, tokens: int) -> None:
        """Makes room for so many rows and tokens, keeping what is written."""
        if rows <= self.rows and tokens <= self.tokens:
            return
        self.rows = max(self.rows, rows)
        if tokens > self.tokens:
            self.tokens = -(-tokens // STEP) * STEP
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = self.grown(keys), self.grown(values)

    def grown(self, old: Tensor) -> Tensor:
        """Returns a buffer of today's size with what the old one held."""
        rows, heads, tokens, width = old.shape
        new = old.new_zeros(self.rows, heads, self.tokens, width)
        new[:rows, :, :tokens] = old
        return new

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's buffers, made the first time that it is seen."""
        if number not in self.layers:
            self.layers[number] = (
                key.new_zeros(self.rows, key.shape[1], self.tokens, key.shape[3]),
                value.new_zeros(self.rows, value.shape[1], self.tokens, value.shape[3]),
            )
        return self.layers[number]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Writes the first tokens of one row over another row."""
        if not tokens:
            return  # a row that has just come has no place here yet
        for buffers in self.layers.values():
            for buffer in buffers:
                buffer[target, :, :tokens] = buffer[source, :, :tokens]

    def bytes(self) -> int:
        """Returns how much memory the buffers take."""
        held = [part for buffers in self.layers.values() for part in buffers]
        return sum(part.numel() * part.element_size() for part in held)


def columns(length: Tensor, before: Tensor, prefix: int, suffix: int) -> tuple[Tensor, Tensor]:
    """Returns, of each row's prefix and suffix columns, the position and whether it is written.

    A row of `length` suffix tokens is about to write one more, which counts as written.
    """
    first = torch.arange(prefix, device=length.device)
    own = torch.arange(suffix, device=length.device)
    written = torch.cat([first < before[:, None], own <= length[:, None]], 1)
    place = torch.cat([first.expand(len(length), -1), before[:, None] + own], 1)
    return place, written
