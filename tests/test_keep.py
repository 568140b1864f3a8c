import pytest
from samples import graded

from logratio import keep
from logratio.keep import KEEPS
from logratio.settings import Refused


def test_default_settings():
    assert {name: part.resolved() for name, part in KEEPS.items()} == {
        "everything": {},
        "above": {"bar": 0.0},
        "best": {"count": 1, "distinct": True, "bar": None},
        "mixed_groups": {},
        "varied_groups": {},
    }
    assert [part.name for part in KEEPS.values()] == list(KEEPS)


@pytest.mark.parametrize("name", list(KEEPS))
def test_nothing_is_kept_of_nothing(name):
    assert KEEPS[name]([]) == []


# failures


@pytest.mark.parametrize("failure", [{"finish": "error"}, {"error": "timed out", "reward": None}])
@pytest.mark.parametrize("name", list(KEEPS))
def test_a_failure_takes_its_group_with_it_and_no_other(name, failure):
    rows = [
        graded(1.0, group=2, ids=(1,), correct=True),
        graded(1.0, group=5, ids=(1,), correct=True),
        graded(**{"reward": 2.0, **failure}, group=2, ids=(2,), correct=True),
        graded(0.0, group=5, ids=(2,), correct=False),
        graded(0.0, group=2, ids=(3,), correct=False),
    ]
    found = KEEPS[name](rows)
    assert [found[place] for place in (0, 2, 4)] == [False] * 3
    assert found[1]


def test_a_failed_reward_is_a_failure_whatever_number_came_with_it():
    assert not keep.trainable(graded(0.0, error="no answer found"))
    assert not keep.trainable(graded(0.0, finish="error"))
    assert keep.trainable(graded(0.0, finish="length"))
    assert keep.trainable(graded(0.0, error=None))


def test_a_reward_that_is_missing_without_a_reason_is_refused():
    says = "^`reward` of `sums/7` is None, but no `error` says why$"
    for name in ("above", "best", "varied_groups"):
        with pytest.raises(Refused, match=says):
            KEEPS[name]([graded(None)])
    assert keep.reward(graded(0.25)) == 0.25


def test_a_choice_must_say_something_of_every_rollout():
    with pytest.raises(ValueError, match="zip"):
        keep.by_group([graded(), graded()], lambda _group: [True])


# everything, above


def test_everything_keeps_data_rows_that_have_no_reward():
    assert keep.everything([graded(None), graded(-1.0), graded(0.0)]) == [True] * 3


def test_above_is_strict():
    rows = [graded(reward) for reward in (-0.5, 0.0, 1e-9, 0.5, 1.0)]
    assert keep.above(rows) == [False, False, True, True, True]
    assert keep.above(rows, bar=0.5) == [False, False, False, False, True]
    assert keep.above(rows, bar=-1.0) == [True] * 5


# best


def test_best_is_the_first_of_the_highest_in_each_group():
    rows = [
        graded(0.0, group=1, ids=(1,)),
        graded(2.0, group=7, ids=(1,)),
        graded(1.0, group=1, ids=(2,)),
        graded(1.0, group=1, ids=(3,)),
        graded(3.0, group=7, ids=(2,)),
    ]
    assert keep.best(rows) == [False, False, True, False, True]
    assert keep.best(rows, count=2) == [False, True, True, True, True]
    assert keep.best(rows, count=9) == [True] * 5


def test_best_passes_over_repetitions_within_a_group():
    rows = [
        graded(1.0, ids=(4, 5)),
        graded(1.0, ids=(4, 5)),
        graded(0.5, ids=(4,)),
        graded(1.0, ids=(4, 5), group=1),
    ]
    assert keep.best(rows, count=2) == [True, False, True, True]
    assert keep.best(rows, count=2, distinct=True) == [True, False, True, True]
    assert keep.best(rows, count=2, distinct=False) == [True, True, False, True]


def test_best_keeps_nothing_at_or_below_its_bar():
    rows = [graded(0.0, ids=(1,)), graded(0.5, ids=(2,)), graded(1.0, ids=(3,))]
    assert keep.best(rows, count=3, bar=0.5) == [False, False, True]
    assert keep.best(rows, count=3, bar=0.0) == [False, True, True]
    assert keep.best(rows, count=3, bar=1.0) == [False, False, False]
    assert keep.best(rows, count=3) == [True, True, True]


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_best_of_no_count_is_refused(count):
    with pytest.raises(Refused, match=rf"`count` is {count}, but it must be a whole number in"):
        KEEPS["best"].using(count=count)
    assert KEEPS["best"].using(count=1).resolved()["count"] == 1


# mixed and varied groups


def test_mixed_groups_have_right_and_wrong_answers():
    rows = [
        graded(1.0, group=0, correct=True),
        graded(1.0, group=1, correct=True),
        graded(0.0, group=0, correct=False),
        graded(0.5, group=1, correct=True),  # shaped: the group is still all right
        graded(0.0, group=2, correct=False),
        graded(0.1, group=2, correct=False),
    ]
    assert keep.mixed_groups(rows) == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("right", "kept"), [(0, False), (1, True), (2, True), (3, True), (4, False)]
)
def test_one_wrong_or_one_right_answer_makes_a_group_mixed(right, kept):
    rows = [graded(1.0, correct=place < right) for place in range(4)]
    assert keep.mixed_groups(rows) == [kept] * 4


def test_a_task_that_does_not_say_what_is_right_has_no_mixed_groups():
    says = "^`keep` is `mixed_groups`, but the verdict on `sums/7` has no `correct`: the task must"
    with pytest.raises(Refused, match=says):
        keep.mixed_groups([graded(1.0, correct=True), graded(1.0, correct=None)])
    with pytest.raises(Refused, match=says):
        keep.mixed_groups([graded(1.0, correct=None)])


def test_varied_groups_have_two_rewards():
    rows = [
        graded(0.5, group=0),
        graded(0.5, group=1),
        graded(0.5, group=0),
        graded(0.25, group=1),
        graded(0.5, group=0),
        graded(9.0, group=2),
    ]
    assert keep.varied_groups(rows) == [False, True, False, True, False, False]


def test_one_different_reward_anywhere_is_enough():
    for place in range(3):
        rows = [graded(1.0 if at == place else 0.0) for at in range(3)]
        assert keep.varied_groups(rows) == [True] * 3
