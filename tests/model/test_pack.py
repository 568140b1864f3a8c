"""Tree packs: every token once, every prompt once, and every state at its place."""

import pytest
from model.models import rollouts

from logratio.model.pack import cuts, even, fitting, pack, packs, tokens_of, units_of
from logratio.settings import Refused


def test_a_pack_by_hand():
    """Two completions of one prompt of three tokens, then one of another of two."""
    rows = rollouts((0, 3, 2), (1, 2, 1), (0, 3, 3))
    made = pack(rows, [0, 1, 2], longest=3)
    first, other, second = rows
    assert made.rows.tolist() == [0, 2, 1]
    assert tuple(made.ids[0].tolist()) == (
        *first.prompt_ids, *first.ids, *second.ids, *other.prompt_ids, *other.ids
    )  # fmt: skip
    assert made.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2]
    assert [(tree.start, tree.prompt, tree.lengths) for tree in made.trees] == [
        (0, 3, (2, 3)),
        (8, 2, (1,)),
    ]
    assert made.states.tolist() == [[2, 3, 4, 4], [2, 5, 6, 7], [9, 10, 10, 10]]
    assert made.taken.tolist() == [[*first.ids, 0], list(second.ids), [*other.ids, 0, 0]]


def test_a_budget_parts_a_group_and_repeats_its_prompt():
    rows = rollouts(*[(0, 4, 3)] * 5)
    made = packs(rows, budget=10)
    assert [one.rows.tolist() for one in made] == [[0, 1], [2, 3], [4]]
    assert [one.ids.shape[1] for one in made] == [10, 10, 7]


def test_all_packs_have_the_width_of_the_longest_completion():
    made = packs(rollouts((0, 2, 5), (1, 2, 1)), budget=7)
    assert [one.states.shape for one in made] == [(1, 6), (1, 6)]
    assert [one.taken.shape for one in made] == [(1, 5), (1, 5)]


def test_a_unit_is_never_parted():
    rows = rollouts(*[(0, 4, 3)] * 4)
    made = packs(rows, budget=10, units=[[0, 1, 2], [3]])
    assert [one.rows.tolist() for one in made] == [[0, 1, 2], [3]]


@pytest.mark.parametrize(
    ("budget", "ranks", "packs_made"),
    [
        (1000, 1, [8]),
        (1000, 2, [4, 4]),  # one turn: halves, not all and nothing
        (1000, 3, [3, 3, 2]),
        (19, 2, [4, 4]),  # not five and three
        (13, 2, [2, 2, 2, 2]),  # two turns, not three and three, two and nothing
        (7, 2, [1] * 8),
        (1000, 20, [1] * 8),
    ],
)
def test_the_turns_of_several_ranks_are_even(budget, ranks, packs_made):
    rows = rollouts(*[(0, 4, 3)] * 8)
    units = [[row] for row in range(8)]
    found = even(rows, units, budget=budget, ranks=ranks)
    assert found <= budget
    assert [len(rows_of) for rows_of in cuts(rows, budget=found, units=units)] == packs_made


def test_units():
    groups, pairs = [1, 0, 1, 0], [2, 0, 3, 1]
    assert units_of(groups, pairs, "row") == [[1], [3], [0], [2]]
    assert units_of(groups, pairs, "group") == [[1, 3], [0, 2]]
    assert units_of(groups, pairs, "pair") == [[1, 3], [0, 2]]
    assert units_of([0, 0, 0, 0], [0, 2, 1, 3], "pair") == [[0, 2], [1, 3]]


def test_tokens_count_a_prompt_once():
    assert tokens_of(rollouts((0, 4, 3), (0, 4, 1), (1, 2, 1)), [0, 1, 2]) == 4 + 3 + 1 + 2 + 1


def test_what_is_refused():
    with pytest.raises(Refused, match="`budget` is 6 tokens, but rollout 0 of `0` has 7"):
        packs(rollouts((0, 4, 3)), budget=6)
    with pytest.raises(Refused, match="`budget` is 6 tokens, but rollout 1 of `0` has 7"):
        packs(rollouts((0, 4, 1), (0, 4, 3)), budget=6, units=[[0, 1]])  # a unit may, a row not
    with pytest.raises(Refused, match="`prompt_ids` of `0` is empty"):
        packs(rollouts((0, 0, 3)), budget=6)
    with pytest.raises(Refused, match="`pair` is -1 in a row"):
        units_of([0], [-1], "pair")


@pytest.mark.parametrize(
    ("shapes", "budget"),
    [
        ([(0, 10, 5)] * 3, 1024),  # small batches are one pack
        ([(0, 256, 128)] * 8 + [(1, 256, 128)] * 8, 1280),  # a group, whole
        ([(0, 3000, 200)] * 8, 4096),  # a group too large is parted
        ([(0, 4000, 200)] * 2, 4200),  # but never a rollout
    ],
)
def test_without_a_budget_groups_stay_whole(shapes, budget):
    rows = rollouts(*shapes)
    assert fitting(rows, [[row] for row in range(len(rows))]) == budget
