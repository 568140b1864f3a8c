"""Rollouts from the model's own `generate`: for models that the local engine can not serve exactly.

Rows whose prompts are of one length go together, so that nothing is padded. Our sampler stands in
the place of a logits processor: it draws, keeps its numbers, and leaves `generate` one token to
choose from.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from logratio.engine import Request, check_prompts
from logratio.model.backbone import evaluating, output_layer, room_of
from logratio.model.network import Network
from logratio.records import Rollout
from logratio.sampler import Drawn, Sampling, draw, key_of, uniforms
from logratio.settings import Refused

Token = tuple[int, float, float, float]  # id, old, behaviour, entropy


@dataclass(eq=False)
class Row:
    """A rollout while it is being made."""

    request: Request
    index: int
    parent: int | None  # the index of the rollout that it was forked from, if any
    split: int | None  # how many tokens it shares with it, or with its sister
    tokens: list[Token]  # at first those that it shares

    @staticmethod
    def of(request: Request) -> "Row":
        """Returns the row that answers a request."""
        parent = request.parent
        if parent is None:
            return Row(request, request.index, None, None, [])
        return Row(
            request, request.index, parent.index, request.split, told(parent)[: request.split]
        )

    def sister(self) -> "Row | None":
        """Returns the row that parts from this finished one, if it went past its split."""
        index, split = self.request.sister, self.request.split
        if index is None or split is None or len(self.tokens) <= split:
            return None
        self.split = split
        return Row(self.request, index, self.index, split, self.tokens[:split])

    @property
    def prefix(self) -> tuple[int, ...]:
        """What is read before the first token is drawn."""
        return self.request.problem.prompt_ids + tuple(token for token, *_ in self.tokens)

    @property
    def key(self) -> int:
        """What its random numbers are made from."""
        return key_of(*self.request.parts(self.index))

    def left(self, sampling: Sampling) -> int:
        """Returns how many tokens it may still get."""
        limit = min(self.request.limit or sampling.max_tokens, sampling.max_tokens)
        return max(1, limit - len(self.tokens))


class Transformers:
    """Decodes with the network's own model, by its own cache, masks and positions."""

    promises = frozenset(["seed per position", "exact weights", "split", "fork"])

    def __init__(self, network: Network, ends: Sequence[int], *, slots: int = 64) -> None:
        """Keeps the network; `ends` are the ids that end a rollout."""
        self.network, self.ends, self.slots = network, frozenset(ends), slots
        self.version = 0

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes note of a version; the weights are the network's own."""
        if weights is not None:
            raise Refused("`weights` were given, but this engine shares the learner's own")
        self.version = version

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, in order, each followed by its sister if any."""
        check_prompts(requests, sampling, room=room_of(self.network.model))
        rows = [Row.of(request) for request in requests]
        with evaluating(self.network), unguided(self.network.model):
            self.finish(rows, sampling)
            pairs = [(row, row.sister()) for row in rows]
            self.finish([sister for _, sister in pairs if sister is not None], sampling)
        made = [one for pair in pairs for one in pair if one is not None]
        return [self.record(row, sampling) for row in made]

    def finish(self, rows: Sequence[Row], sampling: Sampling) -> None:
        """Writes each row to its end; rows that are equally long so far go together."""
        together: dict[int, list[Row]] = {}
        for row in rows:
            together.setdefault(len(row.prefix), []).append(row)
        for some in together.values():
            for start in range(0, len(some), self.slots):
                self.write(some[start : start + self.slots], sampling)

    def write(self, rows: Sequence[Row], sampling: Sampling) -> None:
        """Writes rows of one length to their ends, by one call of the model's `generate`."""
        model: Any = self.network.model
        device = output_layer(model)[0].device
        ids = torch.tensor([row.prefix for row in rows], device=device)
        drawing = Drawing(rows, sampling, sorted(self.ends), device)
        config = GenerationConfig(
            max_new_tokens=max(row.left(sampling) for row in rows),
            do_sample=False,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=min(self.ends, default=0),
        )
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList([drawing]),
        )
        for row, drawn in zip(rows, drawing.tokens(), strict=True):
            tokens = drawn[: row.left(sampling)]
            ended = [place for place, (token, *_) in enumerate(tokens) if token in self.ends]
            row.tokens += tokens[: ended[0] + 1] if ended else tokens

    def record(self, row: Row, sampling: Sampling) -> Rollout:
        """Returns what is kept of a finished row."""
        ids, old, behaviour, entropy = zip(*row.tokens, strict=True)
        request = row.request
        finish: Literal["stop", "length"] = "stop" if ids[-1] in self.ends else "length"
        return Rollout(
            problem=request.problem.key,
            group=request.group,
            index=row.index,
            prompt_ids=request.problem.prompt_ids,
            ids=ids,
            old=old,
            behaviour=behaviour if sampling.truncated else None,
            entropy=entropy,
            finish=finish,
            seed=str(row.key),
            version=self.version,
            parent=row.parent,
            split=row.split,
        )


class Drawing(LogitsProcessor):
    """Draws the next token of every row, and leaves it as the only one that is possible."""

    def __init__(
        self, rows: Sequence[Row], sampling: Sampling, ends: Sequence[int], device: torch.device
    ) -> None:
        """Keeps the rows' keys, and how many tokens each has before the first draw."""
        self.keys = torch.tensor([row.key for row in rows], device=device)
        self.count = torch.tensor([len(row.tokens) for row in rows], device=device)
        self.sampling, self.ends = sampling, ends
        self.made: list[Drawn] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns 0 for the token that was drawn and -inf for every other."""
        del input_ids
        drawn = draw(
            scores,
            uniforms(self.keys, self.count),
            self.sampling,
            banned=self.ends if self.sampling.min_tokens else (),
            where=self.count < self.sampling.min_tokens,
        )
        self.count = self.count + 1
        self.made.append(drawn)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn.ids[:, None], 0.0)

    def tokens(self) -> list[list[Token]]:
        """Returns what was drawn for each row, also what came after its end."""
        parts = [
            torch.stack([getattr(drawn, name).double() for drawn in self.made], 1)
            for name in ("ids", "old", "behaviour", "entropy")
        ]
        rows = cast(list[list[list[float]]], torch.stack(parts, 2).tolist())
        return [[(int(one[0]), one[1], one[2], one[3]) for one in row] for row in rows]


def told(rollout: Rollout) -> list[Token]:
    """Returns a stored rollout's tokens; NaN where it was stored without a number."""
    missing = (math.nan,) * len(rollout.ids)
    old = rollout.old or missing
    numbers = (old, rollout.behaviour or old, rollout.entropy or missing)
    return list(zip(rollout.ids, *numbers, strict=True))


@contextmanager
def unguided(model: PreTrainedModel) -> Generator[None]:
    """Takes away what the model's own generation config adds: a token is shaped by us alone."""
    held: Any = model
    before = held.generation_config
    held.generation_config = GenerationConfig()
    try:
        yield
    finally:
        held.generation_config = before
