"""Reward-variance GRPO: the slope of each token times the share of the reward that it decides."""

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    needed,
    needs_of,
    policy_of,
)

from logratio.objectives.variance_grpo import variance_grpo

FLAT = [[-1.0, -1.0]] * 2
DECIDED = [0.7, 0.2, 1.0]  # what the network says before token 1, after it, and after token 2


def prepared(objective, importance=DECIDED):
    """Two rows of two tokens at advantages +1 and -1, on policy."""
    batch = batch_of(
        [[1, 1]] * 2, old=FLAT, ref=[[-1.5] * 2] * 2, group=[0, 0], reward=[1.0, 0.0],
        importance=[importance] * 2,
    )  # fmt: skip
    return objective.prepare(batch)


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [
        # increments .2 - 0 and 1 - .2, over their mean .5: .4 and 1.6; half of the way from 1
        ({}, 0.7, 1.3),
        ({"weight.strength": 1.0}, 0.4, 1.6),
        ({"preset": "off"}, 1.0, 1.0),
    ],
)
def test_the_slope_of_each_token_is_weighed(settings, first, second):
    check_weights(variance_grpo.using(**settings), DECIDED, first, second)


@pytest.mark.parametrize(
    ("settings", "first", "second"),
    [({}, 19 / 18, 17 / 18), ({"weight.strength": 1.0}, 10 / 9, 8 / 9)],
)
def test_what_is_left_to_decide_can_weigh_instead(settings, first, second):
    """1 - 0 and 1 - .2, over their mean .9."""
    objective = variance_grpo.using(preset="remaining", **settings)
    check_weights(objective, [0.0, 0.2, 1.0], first, second)


def check_weights(objective, importance, first, second):
    batch = prepared(objective, importance)
    check_losses(objective, policy_of(FLAT), batch, policy=[[-first, -second], [first, second]])
    slope = [[-first / 4, -second / 4], [first / 4, second / 4]]
    check_slopes(objective, policy_of(FLAT), batch, logp=slope)


def test_a_token_that_decides_nothing_keeps_a_tenth():
    """Weights 0 and 2 are clipped to .1 and 2 and scaled to a mean of 1: .0952 and 1.9048."""
    objective = variance_grpo.using(**{"weight.strength": 1.0})
    batch = prepared(objective, importance=[0.0, 0.0, 1.0])
    low, high = 0.1 / 2.1 / 2, 2 / 2.1 / 2
    check_slopes(objective, policy_of(FLAT), batch, logp=[[-low, -high], [low, high]])


def test_the_kl_term_keeps_weight_one():
    """Slope -w A / 4 and beta (1 - x) / 4 with x = e^-.5, both over 4 tokens."""
    objective = variance_grpo.using(preset="as_written")
    pull = 0.3934693402873666
    slope = [[(-0.4 + pull) / 4, (-1.6 + pull) / 4], [(0.4 + pull) / 4, (1.6 + pull) / 4]]
    check_slopes(objective, policy_of(FLAT), prepared(objective), logp=slope)


def test_what_variance_grpo_is_made_of():
    assert variance_grpo.name == "variance_grpo"
    assert variance_grpo.loss.resolved() == {
        "clip": 0.2, "clip_high": None, "dual": None, "ratio": "token", "surrogate": "clip",
        "behaviour_cap": None, "beta": 0.0, "estimator": "k3", "corrected": False,
    }  # fmt: skip
    assert (variance_grpo.keep.name, variance_grpo.credit.name) == ("everything", "group")
    assert (variance_grpo.weight.name, variance_grpo.average.name) == ("variance", "per_sequence")
    assert dict(variance_grpo.presets) == {
        "as_written": {"beta": 1.0, "estimator": "k3", "weight.strength": 1.0},
        "remaining": {"weight.form": "remaining"},
        "off": {"weight.strength": 0.0},
    }


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, ["importance"]),
        ({"preset": "as_written"}, ["importance", "ref"]),
        ({"preset": "remaining"}, ["importance"]),
        ({"preset": "off"}, ["importance"]),
        ({"weight.over": "batch"}, ["importance"]),
        ({"weight": "uniform"}, []),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams):
    objective = variance_grpo.using(**settings)
    assert needed(objective) == needs_of("old", "reward", *streams)
    check_runs(objective)
