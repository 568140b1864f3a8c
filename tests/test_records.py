import dataclasses

import pytest

from logratio.records import Graded, Problem, Rollout, Verdict

ROLLOUT = Rollout(problem="sums/7", group=2, prompt_ids=(1, 2, 3), ids=(4, 5))


def defaults(record):
    """Returns the fields that need not be given, with what they then are."""
    found = {}
    for field in dataclasses.fields(record):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def test_what_a_record_is_unless_it_says_otherwise():
    assert defaults(Problem) == {"answer": None, "columns": {}}
    assert defaults(Rollout) == {
        "index": 0, "old": None, "behaviour": None, "entropy": None, "finish": "stop", "seed": "",
        "version": 0, "parent": None, "split": None, "trained": None,
    }  # fmt: skip
    assert defaults(Verdict) == {
        "correct": None, "parts": {}, "steps": (), "step_ends": (), "error": None
    }  # fmt: skip
    assert defaults(Graded) == {"pair": None, "side": 0, "columns": {}}


def test_a_reward_is_given_or_said_to_be_absent():
    with pytest.raises(TypeError, match="reward"):
        Verdict()
    assert Verdict(reward=None, error="timed out").reward is None


RECORDS = [
    Problem(key="sums/7", prompt="3 + 4 =", prompt_ids=(1, 2, 3)),
    ROLLOUT,
    Verdict(reward=1.0),
    Graded(rollout=ROLLOUT, verdict=Verdict(reward=1.0)),
]


@pytest.mark.parametrize("record", RECORDS, ids=[type(record).__name__ for record in RECORDS])
def test_records_take_names_and_never_change(record):
    assert all(field.kw_only for field in dataclasses.fields(record))
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)
    assert not hasattr(record, "__dict__")
    assert dataclasses.replace(record) == record


def test_two_rollouts_do_not_share_their_columns():
    first = Graded(rollout=ROLLOUT, verdict=Verdict(reward=1.0))
    second = Graded(rollout=ROLLOUT, verdict=Verdict(reward=1.0))
    assert first == second
    assert first.columns is not second.columns


def test_with_the_prompt_trained_the_text_is_the_same():
    found = ROLLOUT.with_prompt_trained()
    assert found.prompt_ids == (1,)
    assert found.ids == (2, 3, 4, 5)
    assert found.prompt_ids + found.ids == ROLLOUT.prompt_ids + ROLLOUT.ids
    assert found.trained is None
    assert dataclasses.replace(found, prompt_ids=(1, 2, 3), ids=(4, 5)) == ROLLOUT


def test_the_first_token_of_all_is_never_predicted():
    alone = dataclasses.replace(ROLLOUT, prompt_ids=(1,)).with_prompt_trained()
    assert (alone.prompt_ids, alone.ids) == ((1,), (4, 5))


def test_what_a_tool_wrote_stays_untrained():
    marked = dataclasses.replace(ROLLOUT, trained=(True, False))
    assert marked.with_prompt_trained().trained == (True, True, True, False)


def test_a_sampled_rollout_does_not_train_its_prompt():
    sampled = dataclasses.replace(ROLLOUT, old=(-1.0, -2.0), index=3)
    with pytest.raises(
        ValueError, match=r"^rollout 3 of `sums/7` was sampled: a prompt that was not"
    ):
        sampled.with_prompt_trained()
