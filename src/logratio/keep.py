"""Which rollouts train: `(graded, *, settings) -> one truth value each`, in the order given.

A rollout that failed, or whose reward did, never trains, and takes its group with it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isnan

from logratio.part import Part
from logratio.records import Graded
from logratio.settings import AtLeastOne, Refused


def everything(graded: Sequence[Graded]) -> list[bool]:
    """Returns True for every rollout whose group has no failure."""
    return by_group(graded, lambda group: [True] * len(group))


def above(graded: Sequence[Graded], *, bar: float = 0.0) -> list[bool]:
    """Returns True where the reward is greater than the bar."""
    return by_group(graded, lambda group: [reward(one) > bar for one in group])


def best(
    graded: Sequence[Graded],
    *,
    count: AtLeastOne = 1,
    distinct: bool = True,
    bar: float | None = None,
) -> list[bool]:
    """Returns True for the `count` best rollouts of each group; on a tie the earlier one.

    `distinct` passes over a rollout whose token ids another one of its group already has.
    """

    def choose(group: Sequence[Graded]) -> list[bool]:
        chosen: list[int] = []
        seen: set[tuple[int, ...]] = set()
        for place in sorted(range(len(group)), key=lambda i: -reward(group[i])):
            ids = group[place].rollout.ids
            repeated = distinct and ids in seen
            low = bar is not None and reward(group[place]) <= bar
            if not repeated and not low and len(chosen) < count:
                chosen.append(place)
                seen.add(ids)
        return [place in chosen for place in range(len(group))]

    return by_group(graded, choose)


def mixed_groups(graded: Sequence[Graded]) -> list[bool]:
    """Returns True in groups with both right and wrong answers (DAPO's dynamic sampling).

    Judged by `correct`: a shaped reward varies in a group that is all right.
    """

    def mixed(group: Sequence[Graded]) -> list[bool]:
        if any(one.verdict.correct is None for one in group):
            raise Refused(
                f"`keep` is `mixed_groups`, but the verdict on `{group[0].rollout.problem}` has no "
                "`correct`: the task must say which answers are right"
            )
        right = sum(one.verdict.correct is True for one in group)
        return [0 < right < len(group)] * len(group)

    return by_group(graded, mixed)


def varied_groups(graded: Sequence[Graded]) -> list[bool]:
    """Returns True in groups whose rewards are not all equal: only those have a variance."""

    def varied(group: Sequence[Graded]) -> list[bool]:
        ordered = sorted(reward(one) for one in group)
        return [any(low < high for low, high in pairwise(ordered))] * len(group)

    return by_group(graded, varied)


def by_group(
    graded: Sequence[Graded], choose: Callable[[Sequence[Graded]], list[bool]]
) -> list[bool]:
    """Returns what `choose` says of each whole group; False for all of a group with a failure."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(graded):
        places[one.rollout.group].append(place)
    kept = [False] * len(graded)
    for members in places.values():
        group = [graded[place] for place in members]
        if all(trainable(one) for one in group):
            for place, chosen in zip(members, choose(group), strict=True):
                kept[place] = chosen
    return kept


def trainable(one: Graded) -> bool:
    """Says whether neither the rollout nor its reward failed."""
    return one.rollout.finish != "error" and one.verdict.error is None


def reward(one: Graded) -> float:
    """Returns the reward; a verdict with neither a reward nor an error is refused."""
    if one.verdict.reward is None or isnan(one.verdict.reward):
        came = one.verdict.reward
        raise Refused(f"`reward` of `{one.rollout.problem}` is {came}, but no `error` says why")
    return one.verdict.reward


KEEPS = {
    function.__name__: Part(function)
    for function in (everything, above, best, mixed_groups, varied_groups)
}
