"""DAPO: clip-higher, tokens counted, mixed groups, overlong shaping and filtering."""

from math import log

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    needed,
    needs_of,
    policy_of,
    refusal,
)

from logratio.objectives.dapo import dapo
from logratio.records import Graded, Rollout, Verdict


def token(ratio, advantage):
    return policy_of([[log(ratio)]]), batch_of([[1]], old=[[0.0]], advantage=[[advantage]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, +1.0, -1.0, -1.0),
        (1.25, +1.0, -1.25, -1.25),  # past 1.2, but not past 1.28
        (1.3, +1.0, -1.28, +0.0),
        (0.5, +1.0, -0.5, -0.5),
        (0.85, -1.0, +0.85, +0.85),
        (0.79, -1.0, +0.8, +0.0),  # below .8, as in GRPO
        (1.3, -1.0, +1.3, +1.3),
    ],
)
def test_slope_on_each_side_of_the_two_clips(ratio, advantage, loss, slope):
    policy, batch = token(ratio, advantage)
    check_losses(dapo, policy, batch, policy=[[loss]])
    check_slopes(dapo, policy, batch, logp=[[slope]])


@pytest.mark.parametrize("ratio", [0.3, 0.79, 0.85, 1.0, 1.25, 3.0])
def test_the_upper_clip_leaves_bad_tokens_alone(ratio):
    policy, batch = token(ratio, -1.0)
    narrow, wide = (dapo.using(clip_high=high).slopes(policy, batch) for high in (0.28, 4.0))
    assert narrow["logp"].tolist() == wide["logp"].tolist()


@pytest.mark.parametrize(
    ("old", "now", "slope"),
    [
        (0.01, 0.0127, -1.27),  # a rare token may grow to .0128
        (0.01, 0.0129, 0.0),
        (0.9, 0.9999, -1.111),  # at .9 the clip never binds
    ],
)
def test_the_ceiling_is_multiplicative(old, now, slope):
    batch = batch_of([[1]], old=[[log(old)]], advantage=[[1.0]])
    check_slopes(dapo, policy_of([[log(now)]]), batch, logp=[[slope]])


# Two groups: lengths 1 and 3, and 2 and 2. In each the first is right: advantages +1 and -1.
MASK = [[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]]
FLAT = [[-1.0] * 3] * 4
GROUPS = {"group": [0, 0, 1, 1], "reward": [1.0, 0, 1.0, 0], "old": FLAT}


def test_every_token_counts_the_same():
    batch = dapo.prepare(batch_of(MASK, **GROUPS))
    slope = [[-0.125, 0, 0], [0.125] * 3, [-0.125, -0.125, 0], [0.125, 0.125, 0]]
    check_slopes(dapo, policy_of(FLAT), batch, logp=slope)


def test_as_written_every_prompt_counts_the_same():
    """Groups of 4 and of 3 tokens: a half of 1/4 for each token of one, of 1/3 of the other."""
    objective = dapo.using(preset="as_written")
    mask = [[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    batch = objective.prepare(batch_of(mask, **GROUPS))
    sixth = 1 / 6
    slope = [[-0.125, 0, 0], [0.125] * 3, [-sixth, -sixth, 0], [sixth, 0, 0]]
    check_slopes(objective, policy_of(FLAT), batch, logp=slope)


def test_truncated_rows_can_be_left_out_after_they_were_compared():
    """The truncated row still lowers the mean; neither its tokens nor their number count."""
    objective = dapo.using(preset="overlong_filter")
    batch = objective.prepare(batch_of(MASK, truncated=[0, 1, 0, 0], **GROUPS))
    fifth = 1 / 5
    slope = [[-fifth, 0, 0], [0, 0, 0], [-fifth, -fifth, 0], [fifth, fifth, 0]]
    check_slopes(objective, policy_of(FLAT), batch, logp=slope)


def test_overlong_shaping_falls_from_the_cache_to_the_limit():
    """Right answers of 1, 2, 3 and 4 tokens at limit 4, cache 2: +1 each, less 0, 0, .5 and 1."""
    objective = dapo.using(
        preset="as_written",
        average="per_token",
        **{"credit.overlong_limit": 4, "credit.overlong_cache": 2, "credit.spread": "none"},
    )
    mask = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    flat = [[-1.0] * 4] * 4
    batch = batch_of(mask, old=flat, group=[0] * 4, reward=[1.0] * 4)
    # a mean of .625: .375, .375, -.125 and -.625, over 10 tokens
    gain, third, fourth = -0.0375, 0.0125, 0.0625
    slope = [[gain, 0, 0, 0], [gain, gain, 0, 0], [third] * 3 + [0], [fourth] * 4]
    check_slopes(objective, policy_of(flat), objective.prepare(batch), logp=slope)


def test_as_written_wrong_is_minus_one():
    """Signed, a wrong answer is 2 below a right one: unscaled advantages are +-1, not +-.5."""
    batch = batch_of(MASK, **GROUPS)
    for signed, advantage in ((True, 1.0), (False, 0.5)):
        objective = dapo.using(**{"credit.signed": signed, "credit.spread": "none"})
        assert objective.prepare(batch).stream("advantage")[0, 0] == advantage


def answers(*correct: bool, reward: tuple[float, ...]) -> list[Graded]:
    """Gives answers to one prompt, judged so, with these shaped rewards."""
    return [
        Graded(
            rollout=Rollout(problem="p", group=0, index=i, prompt_ids=(1,), ids=(i,)),
            verdict=Verdict(reward=shaped, correct=right),
        )
        for i, (right, shaped) in enumerate(zip(correct, reward, strict=True))
    ]


def test_a_group_trains_when_it_is_mixed_by_correctness_and_not_by_reward():
    assert dapo.keep(answers(True, True, reward=(1.0, 0.5))) == [False, False]
    assert dapo.keep(answers(False, False, reward=(0.0, -0.5))) == [False, False]
    assert dapo.keep(answers(True, False, reward=(0.5, 0.5))) == [True, True]


def test_what_dapo_is_made_of():
    assert dapo.name == "dapo"
    assert dapo.loss.resolved() == {
        "clip": 0.2, "clip_high": 0.28, "dual": None, "ratio": "token", "surrogate": "clip",
        "behaviour_cap": None, "beta": 0.0, "estimator": "k3", "corrected": False,
    }  # fmt: skip
    assert (dapo.keep.name, dapo.credit.name) == ("mixed_groups", "group")
    assert (dapo.weight.name, dapo.average.name) == ("uniform", "per_token")
    assert dict(dapo.presets) == {
        "as_written": {
            "average": "per_group_token",
            "credit.signed": True,
            "credit.overlong_limit": 20480,
            "credit.overlong_cache": 4096,
        },
        "overlong_filter": {"average.truncated": "leave_out"},
    }


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, []),
        ({"preset": "as_written"}, []),
        ({"preset": "overlong_filter"}, ["truncated"]),
        ({"beta": 0.1}, ["ref"]),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams):
    objective = dapo.using(**settings)
    assert needed(objective) == needs_of("old", "reward", *streams)
    check_runs(objective)


def test_half_of_an_overlong_shaping():
    objective = dapo.using(**{"credit.overlong_limit": 4})
    sentence = (
        "`overlong_limit` is 4 and `overlong_cache` is None, but both must be given, "
        "with cache at most limit"
    )
    assert refusal(objective.prepare, batch_of(MASK, **GROUPS)) == sentence
