"""Graded rollouts -> Batch: the one door from records to tensors, for data and samples alike."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from logratio.batch import Batch
from logratio.keep import everything, reward
from logratio.objective import Objective
from logratio.part import Needs
from logratio.records import Graded, Rollout
from logratio.settings import Refused

Column = Callable[[Sequence[Graded]], Tensor]


def collate(graded: Sequence[Graded], objective: Objective) -> Batch:
    """Returns the rollouts that the objective keeps, one row each, with the streams it needs.

    Columns that a model must compute (`ref`, `value`, `entropy` of a data row, ...) are the
    scorer's: they are added to the batch before `objective.prepare`.
    """
    chosen, wanted = kept(graded, objective), objective.declared()
    rows = [prompt_moved(one.rollout, wanted) for one in chosen]
    made = columns(chosen, rows, wanted)
    if "drawn" in wanted.streams:
        judged = sum(everything(graded))  # a failed reward is no rejection
        made["drawn"] = torch.full((len(chosen),), judged / len(chosen))
    rewards = [reward(one) for one in chosen] if "reward" in wanted.streams else None
    return Batch(
        mask=mask_of(rows),
        group=torch.tensor([row.group for row in rows]),
        pair=pairs_of(chosen) if "pair" in wanted.streams else None,
        reward=None if rewards is None else torch.tensor(rewards),
        old=optional("old", rows, wanted),
        columns=made,
    )


def rollouts_of(graded: Sequence[Graded], objective: Objective) -> list[Rollout]:
    """Returns the rollouts that the rows of the objective's batch are, as they are trained."""
    wanted = objective.declared()
    return [prompt_moved(one.rollout, wanted) for one in kept(graded, objective)]


def kept(graded: Sequence[Graded], objective: Objective) -> list[Graded]:
    """Returns what the objective keeps; nothing at all is refused."""
    if not graded:
        raise Refused("`graded` is empty, but a batch needs at least one rollout")
    found = [one for one, keep in zip(graded, objective.keep(graded), strict=True) if keep]
    if not found:
        raise Refused(f"`keep` is `{objective.keep.name}` and dropped all {len(graded)} rollouts: "
                      "there is nothing to train on")  # fmt: skip
    return found


def prompt_moved(rollout: Rollout, wanted: Needs) -> Rollout:
    """Returns the rollout, with its prompt among the trained tokens where the objective asks."""
    if not rollout.ids:
        raise Refused(f"`ids` of `{rollout.problem}` is empty, but a completion has at least one "
                      "token")  # fmt: skip
    return rollout.with_prompt_trained() if wanted.prompt_trained else rollout


def mask_of(rows: Sequence[Rollout]) -> Tensor:
    """Returns True on every token that the policy chose, the stop token included."""
    chosen = [row.trained or (True,) * len(row.ids) for row in rows]
    for row, truths in zip(rows, chosen, strict=True):
        check_length("trained", truths, row)
    return padded(chosen, torch.bool)


def columns(graded: Sequence[Graded], rows: Sequence[Rollout], wanted: Needs) -> dict[str, Tensor]:
    """Returns the columns that records hold, of those that are needed."""
    made: dict[str, Tensor] = {}
    for name in sorted(wanted.streams):
        if name in ("behaviour", "entropy"):
            stream = optional(name, rows, wanted)
            if stream is not None:
                made[name] = stream
        elif name == "truncated":
            made[name] = torch.tensor([float(row.finish == "length") for row in rows])
        elif name == "split" and all(row.split is not None for row in rows):
            made[name] = torch.tensor([float(row.split or 0) for row in rows])
        elif name in ("step_end", "step_reward"):
            made[name] = steps_of(graded, rows, name)
        elif wanted.shape(name) == "row" and all(name in one.columns for one in graded):
            made[name] = torch.tensor([float(one.columns[name]) for one in graded])
    return made


def optional(name: str, rows: Sequence[Rollout], wanted: Needs) -> Tensor | None:
    """Returns a per-token stream that every row has; None where none has it or nobody reads it.

    Where truncated sampling changed nothing, `behaviour` is `old`.
    """
    if name not in wanted.streams:
        return None
    found: list[tuple[float, ...]] = []
    missing: list[Rollout] = []
    for row in rows:
        values = getattr(row, name) or (row.old if name == "behaviour" else None)
        found.append(values or ())
        missing += [] if values else [row]
    if len(missing) == len(rows):
        return None
    if missing:
        raise Refused(f"`{name}` is missing from rollout {missing[0].index} of "
                      f"`{missing[0].problem}`, but others of the batch have it")  # fmt: skip
    for row, values in zip(rows, found, strict=True):
        check_length(name, values, row)
    return padded(found, torch.float32)


def steps_of(graded: Sequence[Graded], rows: Sequence[Rollout], name: str) -> Tensor:
    """Returns step ends, or step rewards, on the last token of each step that the policy chose."""
    ends, rewards = [[[0.0] * len(row.ids) for row in rows] for _ in range(2)]
    for place, (one, row) in enumerate(zip(graded, rows, strict=True)):
        verdict, chosen = one.verdict, row.trained or (True,) * len(row.ids)
        check_steps(one, len(row.ids))
        for earned, end in zip(verdict.steps, verdict.step_ends, strict=True):
            token = end - 1
            while token > 0 and not chosen[token]:
                token -= 1
            token = token if chosen[token] else chosen.index(True)
            ends[place][token] = 1.0
            rewards[place][token] += earned
    return padded(ends if name == "step_end" else rewards, torch.float32)


def check_steps(one: Graded, length: int) -> None:
    """Refuses steps that do not each have an end, or that do not end in order within the text."""
    steps, ends = one.verdict.steps, one.verdict.step_ends
    ordered = all(low < high for low, high in zip((0, *ends), ends, strict=False))
    if len(steps) != len(ends) or not ordered or (ends and ends[-1] > length):
        raise Refused(f"`step_ends` of `{one.rollout.problem}` is {list(ends)} for {len(steps)} "
                      f"steps and {length} tokens, but it must be one rising count of tokens for "
                      "each step")  # fmt: skip


def pairs_of(graded: Sequence[Graded]) -> Tensor:
    """Returns 2k on the first side of pair k and 2k + 1 on the other; -1 without a pair."""
    groups: dict[int, int] = {}
    for one in graded:
        if one.pair is not None and groups.setdefault(one.pair, one.rollout.group) != (
            one.rollout.group
        ):
            raise Refused(f"`pair` {one.pair} has sides in two groups, but both answer one prompt")
    return torch.tensor([-1 if one.pair is None else 2 * one.pair + one.side for one in graded])


def check_length(name: str, values: Sequence[Any], row: Rollout) -> None:
    """Refuses a per-token stream that is not as long as the text."""
    if len(values) != len(row.ids):
        raise Refused(f"`{name}` of rollout {row.index} of `{row.problem}` has {len(values)} "
                      f"entries, but it must have {len(row.ids)}, one a token")  # fmt: skip


def padded(rows: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
    """Returns rows as one tensor, with 0 after the end of each: lengths say where, never ids."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)
