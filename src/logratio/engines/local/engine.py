"""Rollouts from the trainer's own weights, one token of every live row at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from logratio.engine import Request
from logratio.engines.local.slots import Slots
from logratio.model.attention import TreePlan, planned
from logratio.model.network import Network, output_layer
from logratio.model.pack import Tree
from logratio.records import Rollout
from logratio.sampler import Sampling, draw, key_of, uniforms
from logratio.settings import Refused


@dataclass
class Row:
    """A rollout while it is being made."""

    place: int  # in the results
    request: Request
    key: int
    prompt: tuple[int, ...]
    ids: list[int] = field(default_factory=list[int])
    old: list[float] = field(default_factory=list[float])
    behaviour: list[float] = field(default_factory=list[float])
    entropy: list[float] = field(default_factory=list[float])
    finish: Literal["stop", "length"] = "length"

    def done(self, ends: frozenset[int], sampling: Sampling) -> bool:
        """Says whether the last token ended the row, and keeps how."""
        if self.ids[-1] in ends:
            self.finish = "stop"
            return True
        return len(self.ids) >= sampling.max_tokens

    def rollout(self, sampling: Sampling, version: int) -> Rollout:
        """Returns the finished record."""
        request = self.request
        return Rollout(
            problem=request.problem.key,
            group=request.group,
            index=request.index,
            prompt_ids=self.prompt,
            ids=tuple(self.ids),
            old=tuple(self.old),
            behaviour=tuple(self.behaviour) if sampling.truncated else None,
            entropy=tuple(self.entropy),
            finish=self.finish,
            seed=str(self.key),
            version=version,
        )


class Local:
    """Decodes with the network that the learner trains: weights are shared, never copied."""

    promises = frozenset(["seed per position", "exact weights"])

    def __init__(self, network: Network, ends: Sequence[int], *, slots: int = 64) -> None:
        """Keeps the network; `ends` are the ids that end a rollout."""
        self.network, self.ends, self.slots = network, frozenset(ends), slots
        self.version = 0

    def load(self, version: int, weights: Mapping[str, Any] | None) -> None:
        """Takes note of a version; the weights are the network's own."""
        if weights is not None:
            raise Refused("`weights` were given, but the local engine shares the learner's own")
        self.version = version

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Returns a rollout for each request, in order; a slot that empties is filled again."""
        waiting = [
            Row(place, request, key_of(*request.parts()), request.problem.prompt_ids)
            for place, request in enumerate(requests)
        ]
        check_prompts(waiting, self.network, sampling)
        was_training = self.network.training
        # a rollout is sampled in evaluation mode: dropout would make the policy that samples
        # another one than the policy that is scored
        self.network.eval()
        made: dict[int, Rollout] = {}
        while waiting:
            wave, waiting = waiting[: self.slots], waiting[self.slots :]
            for row in self.wave(wave, sampling):
                made[row.place] = row.rollout(sampling, self.version)
        self.network.train(was_training)
        return [made[place] for place in range(len(requests))]

    def wave(self, rows: list[Row], sampling: Sampling) -> list[Row]:
        """Returns these rows, finished: one prefill, then one token of each until none is left."""
        slots, logits = self.prefill(rows, sampling)
        live, ended = list(rows), list[Row]()
        while True:
            self.sample(live, logits, sampling)
            keep = [not row.done(self.ends, sampling) for row in live]
            ended += [row for row, stays in zip(live, keep, strict=True) if not stays]
            live = compacted(live, keep, slots)
            if not live:
                return ended
            logits = self.step(live, slots)

    def prefill(self, rows: list[Row], sampling: Sampling) -> tuple[Slots, Tensor]:
        """Returns slots with each distinct prompt's keys, and the logits after each prompt."""
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        owner = torch.tensor([prompts.index(row.prompt) for row in rows])
        trees: list[Tree] = []
        for prompt in prompts:
            start = trees[-1].end if trees else 0
            trees.append(Tree(start=start, prompt=len(prompt), lengths=()))
        device = output_layer(self.network.model)[0].device
        slots = Slots(
            prompts=len(prompts),
            longest=max(len(prompt) for prompt in prompts),
            rows=len(rows),
            tokens=sampling.max_tokens,
            owner=owner.to(device),
            length=torch.zeros(len(rows), dtype=torch.long, device=device),
            prompt_length=torch.tensor([len(prompt) for prompt in prompts], device=device),
            live=len(rows),
        )

        def keep(layer: int, key: Tensor, value: Tensor) -> None:
            slots.room(layer, key)
            for place, tree in enumerate(trees):
                part = slice(tree.start, tree.suffix)
                slots.prefix[layer][0][place, :, : tree.prompt] = key[0, :, part]
                slots.prefix[layer][1][place, :, : tree.prompt] = value[0, :, part]

        ids = [token for prompt in prompts for token in prompt]
        places = [place for prompt in prompts for place in range(len(prompt))]
        with planned(self.network.model, TreePlan(tuple(trees), keep)):
            hidden = self.hidden(
                torch.tensor([ids], device=device), torch.tensor([places], device=device)
            )
        last = torch.tensor([tree.suffix - 1 for tree in trees], device=device)
        return slots, self.logits(hidden[0, last])[slots.owner]

    def step(self, rows: list[Row], slots: Slots) -> Tensor:
        """Returns the logits after each row's last token."""
        device, live = slots.owner.device, slice(0, slots.live)
        ids = torch.tensor([[row.ids[-1]] for row in rows], device=device)
        places = (slots.prompt_length[slots.owner[live]] + slots.length[live])[:, None]
        with planned(self.network.model, slots):
            hidden = self.hidden(ids, places)
        slots.length[live] += 1
        return self.logits(hidden[:, 0])

    def hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Returns the last hidden states."""
        model = self.network.model.base_model
        return model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits after the model's own cap and scale, before the temperature."""
        readout = replace(self.network.readout, temperature=1.0)
        return readout.logits(hidden, *output_layer(self.network.model))

    def sample(self, rows: list[Row], logits: Tensor, sampling: Sampling) -> None:
        """Adds a token to each row, with the numbers that only the sampler knows."""
        early = len(rows[0].ids) < sampling.min_tokens
        keys = torch.tensor([row.key for row in rows], device=logits.device)
        places = torch.tensor([len(row.ids) for row in rows], device=logits.device)
        banned = sorted(self.ends) if early else []
        drawn = draw(logits, uniforms(keys, places), sampling, banned=banned)
        ids = cast(list[int], drawn.ids.tolist())
        numbers = torch.stack([drawn.old, drawn.behaviour, drawn.entropy], 1)
        found = cast(list[list[float]], numbers.tolist())
        for row, token, (old, behaviour, entropy) in zip(rows, ids, found, strict=True):
            row.ids.append(token)
            row.old.append(old)
            row.behaviour.append(behaviour)
            row.entropy.append(entropy)


def compacted(rows: list[Row], keep: list[bool], slots: Slots) -> list[Row]:
    """Returns the rows that stay, in dense slots: the last takes the place of each that left."""
    left = list(rows)
    for place in range(len(rows) - 1, -1, -1):
        if not keep[place]:
            last = len(left) - 1
            if place != last:
                slots.move(last, place)
                left[place] = left[last]
            left.pop()
            slots.table = None
    slots.live = len(left)
    return left


def check_prompts(rows: Sequence[Row], network: Network, sampling: Sampling) -> None:
    """Refuses an empty prompt, and one that leaves no room for the tokens asked for."""
    room = getattr(network.model.config.get_text_config(), "max_position_embeddings", None)
    for row in rows:
        size = len(row.prompt)
        if not size:
            raise Refused(f"`prompt_ids` of `{row.request.problem.key}` is empty")
        if room is not None and size + sampling.max_tokens > room:
            asked = sampling.max_tokens
            raise Refused(f"the prompt of `{row.request.problem.key}` has {size} tokens and "
                          f"`max_tokens` is {asked}, but the model holds {room}")  # fmt: skip
