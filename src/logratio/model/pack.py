"""Tree packs: completions of one prompt behind one copy of it, several prompts to a token budget.

    [prompt | completion | completion | ... | prompt | completion | ...]

Positions go on from the prompt in each completion. A completion sees its prompt and itself.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from logratio.part import Coupling
from logratio.records import Rollout
from logratio.settings import Refused

RANGE = (1024, 4096)  # tokens of a pack that was given no budget


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One prompt and the completions behind it, as places in a pack."""

    start: int  # of the prompt
    prompt: int  # its length
    lengths: tuple[int, ...]  # of the completions, in order

    @property
    def suffix(self) -> int:
        """Where the first completion starts."""
        return self.start + self.prompt

    @property
    def end(self) -> int:
        """Where the last completion ends."""
        return self.suffix + sum(self.lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """Token ids in one row, and where each batch row's states are in it."""

    rows: Int[Tensor, " R"]  # of the batch, in the order of the completions
    ids: Int[Tensor, "1 N"]
    positions: Int[Tensor, "1 N"]
    trees: tuple[Tree, ...]
    states: Int[Tensor, "R S"]  # the place of state t of each row; past its end, of its last
    taken: Int[Tensor, "R T"]  # the token ids, 0 past the end

    def to(self, device: torch.device) -> "Pack":
        """Returns the pack with its tensors on a device."""
        return Pack(
            rows=self.rows.to(device),
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            trees=self.trees,
            states=self.states.to(device),
            taken=self.taken.to(device),
        )


def packs(
    rollouts: Sequence[Rollout], *, budget: int, units: Sequence[Sequence[int]] | None = None
) -> list[Pack]:
    """Returns packs of at most `budget` tokens that hold every rollout once, all of one width.

    `units` are rows that must not be parted. A unit larger than the budget has a pack to itself;
    rows of one prompt that no unit holds together are parted with the prompt repeated.
    """
    units = units or [[row] for row in range(len(rollouts))]
    for rollout in rollouts:
        tokens = len(rollout.prompt_ids) + len(rollout.ids)
        if tokens > budget:
            raise Refused(f"`budget` is {budget} tokens, but rollout {rollout.index} of "
                          f"`{rollout.problem}` has {tokens} with its prompt")  # fmt: skip
    longest = max(len(rollout.ids) for rollout in rollouts)
    filled = cuts(rollouts, budget=budget, units=units)
    return [pack(rollouts, rows, longest=longest) for rows in filled]


def cuts(
    rollouts: Sequence[Rollout], *, budget: int, units: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Returns the rows of each pack: units in their order, as many as fit the budget."""
    known: dict[tuple[int, ...], int] = {}  # a prompt's number, since its ids are slow to compare
    prompts = [known.setdefault(rollout.prompt_ids, len(known)) for rollout in rollouts]
    made: list[list[int]] = []
    room = 0
    seen: set[int] = set()
    for unit in units:
        own = {prompts[row]: len(rollouts[row].prompt_ids) for row in unit}
        tokens = sum(len(rollouts[row].ids) for row in unit)
        added = tokens + sum(length for prompt, length in own.items() if prompt not in seen)
        if not made or added > room:
            made.append([])
            seen = set()
            room, added = budget, tokens + sum(own.values())
        made[-1] += unit
        room -= added
        seen |= own.keys()
    return made


def even(
    rollouts: Sequence[Rollout], units: Sequence[Sequence[int]], *, budget: int, ranks: int
) -> int:
    """Returns the smallest budget under which some ranks have as many turns as under this one."""

    def turns(tokens: int) -> int:
        return -(-len(cuts(rollouts, budget=tokens, units=units)) // ranks)

    fewest = turns(budget)
    largest = max(tokens_of(rollouts, unit) for unit in units)
    return bisect_left(
        range(budget), True, lo=min(largest, budget), key=lambda tokens: turns(tokens) <= fewest
    )


def units_of(groups: Sequence[int], pairs: Sequence[int], couples: Coupling) -> list[list[int]]:
    """Returns the rows that a micro-batch must not part, rows of one group next to each other."""
    order = sorted(range(len(groups)), key=lambda row: groups[row])
    if couples == "row":
        return [[row] for row in order]
    keys = groups if couples == "group" else [pair // 2 if pair >= 0 else -1 for pair in pairs]
    if couples == "pair" and -1 in keys:
        raise Refused("`pair` is -1 in a row, but this objective trains pairs only")
    together: dict[int, list[int]] = {}
    for row in order:
        together.setdefault(keys[row], []).append(row)
    return list(together.values())


def fitting(rollouts: Sequence[Rollout], units: Sequence[Sequence[int]]) -> int:
    """Returns the budget under which every prompt's completions stay together, if that is in range.

    Small packs stay in the cache, large ones read a prompt once: within `RANGE`, but for a unit
    that needs more.
    """
    together: dict[tuple[int, ...], int] = {}
    for rollout in rollouts:
        prompt = rollout.prompt_ids
        together[prompt] = together.get(prompt, len(prompt)) + len(rollout.ids)
    least, most = RANGE
    return max(
        min(max(least, *together.values()), most), *(tokens_of(rollouts, unit) for unit in units)
    )


def tokens_of(rollouts: Sequence[Rollout], rows: Sequence[int]) -> int:
    """Returns how many tokens a pack of these rows has, each distinct prompt counted once."""
    prompts = {rollouts[row].prompt_ids for row in rows}
    return sum(len(ids) for ids in prompts) + sum(len(rollouts[row].ids) for row in rows)


def pack(rollouts: Sequence[Rollout], rows: Sequence[int], *, longest: int) -> Pack:
    """Returns one pack of these rows, whose streams have `longest` columns."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        by_prompt.setdefault(rollouts[row].prompt_ids, []).append(row)
    ids: list[int] = []
    positions: list[int] = []
    trees: list[Tree] = []
    for prompt, members in by_prompt.items():
        if not prompt:
            raise Refused(f"`prompt_ids` of `{rollouts[members[0]].problem}` is empty, but the "
                          "first token is predicted from the prompt's last")  # fmt: skip
        lengths = tuple(len(rollouts[row].ids) for row in members)
        trees.append(Tree(start=len(ids), prompt=len(prompt), lengths=lengths))
        ids += prompt
        positions += range(len(prompt))
        for row in members:
            ids += rollouts[row].ids
            positions += range(len(prompt), len(prompt) + len(rollouts[row].ids))
    ordered = [row for members in by_prompt.values() for row in members]
    taken = [[*rollouts[row].ids, *[0] * (longest - len(rollouts[row].ids))] for row in ordered]
    return Pack(
        rows=torch.tensor(ordered),
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        trees=tuple(trees),
        states=torch.tensor([list(places(tree, at, longest)) for tree, at in leaves(trees)]),
        taken=torch.tensor(taken),
    )


def leaves(trees: Sequence[Tree]) -> Iterator[tuple[Tree, int]]:
    """Gives every completion as its tree and its number in it."""
    for tree in trees:
        for number in range(len(tree.lengths)):
            yield tree, number


def places(tree: Tree, number: int, longest: int) -> Iterator[int]:
    """Gives the places of a completion's states: the prompt's last token, then its own tokens."""
    start = tree.suffix + sum(tree.lengths[:number])
    last = start + tree.lengths[number] - 1
    yield tree.suffix - 1
    for token in range(longest):
        yield min(start + token, last)
