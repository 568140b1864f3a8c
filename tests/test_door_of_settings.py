"""Wrong settings at the door: one sentence says which, what came, and what is allowed."""

import math

import pytest
from objectives.rows import check_sentence, refusal

from logratio.objectives import find
from logratio.part import needs


@pytest.mark.parametrize(
    ("settings", "owner", "came", "allowed"),
    [
        ({"clp": 0.3}, "grpo", "no setting `clp`", "`clip`? it has average, behaviour_cap"),
        ({"gamma": 0.3}, "grpo", "no setting `gamma`", "clip_high, corrected"),
        ({"loss.clip": 0.3}, "grpo", "no setting `loss.clip`", "did you mean `clip`?"),
        ({"credit.sprad": "none"}, "group", "no setting `sprad`", "did you mean `spread`?"),
        ({"average.trunc": "count"}, "per_sequence", "no setting `trunc`", "count, truncated"),
        ({"weight.share": 0.2}, "uniform", "no setting `share`", "it has none"),
        ({"credit": "grop"}, "grpo", "no credit `grop`", "did you mean `group`? it has gae"),
        ({"keep": "abov"}, "grpo", "no keep `abov`", "did you mean `above`? it has above"),
        ({"weight": "entropy"}, "grpo", "no weight `entropy`", "it has random, top_entropy"),
        ({"average": "per_word"}, "grpo", "no average `per_word`", "fixed_length, per_group_token"),
        ({"preset": "as_writen"}, "grpo", "no preset `as_writen`", "did you mean `as_written`?"),
        ({"keep": ["above"]}, "grpo", "no keep `['above']`", "it has above, best"),
        ({"credit": 3}, "grpo", "no credit `3`", "it has gae, group"),
    ],
)
def test_a_name_that_nothing_has(settings, owner, came, allowed):
    check_sentence(refusal(find("grpo").using, **settings), owner, came, allowed)


def test_an_objective_that_there_is_not():
    sentence = refusal(find, "gpro")
    check_sentence(sentence, "logratio", "no objective `gpro`", "did you mean `grpo`? it has dapo")


@pytest.mark.parametrize(
    ("settings", "field", "came", "allowed"),
    [
        # a wrong type
        ({"clip": "0.2"}, "clip", "is '0.2'", "it must be a number in (0, 1]"),
        ({"clip": True}, "clip", "is True", "it must be a number in (0, 1]"),
        ({"clip": None}, "clip", "is None", "it must be a number in (0, 1]"),
        ({"clip": math.nan}, "clip", "is nan", "it must be a number in (0, 1]"),
        ({"clip_high": "high"}, "clip_high", "is 'high'", "a number in (0, inf) or None"),
        ({"corrected": "yes"}, "corrected", "is 'yes'", "it must be true or false"),
        (
            {"average": "fixed_length", "average.length": 2.5},
            "length",
            "is 2.5",
            "it must be a whole number in [1, inf)",
        ),
        # not among the words
        ({"estimator": "k4"}, "estimator", "is 'k4'", "one of 'k1', 'k2', 'k3', 'exact'"),
        ({"credit.spread": "std"}, "spread", "is 'std'", "one of 'population', 'sample'"),
        ({"average.count": "all"}, "count", "is 'all'", "one of 'kept', 'drawn'"),
        # out of range
        ({"clip": 0.0}, "clip", "is 0.0", "it must be a number in (0, 1]"),
        ({"beta": -0.1}, "beta", "is -0.1", "it must be a number in [0, inf)"),
        ({"dual": 1.0}, "dual", "is 1.0", "it must be a number in (1, inf) or None"),
        (
            {"average": "fixed_length", "average.length": 0},
            "length",
            "is 0",
            "it must be a whole number in [1, inf)",
        ),
        (
            {"weight": "top_entropy", "weight.share": 1.5},
            "share",
            "is 1.5",
            "it must be a number in (0, 1]",
        ),
        ({"keep": "best", "keep.count": 0}, "count", "is 0", "a whole number in [1, inf)"),
    ],
)
def test_a_value_that_a_setting_can_not_have(settings, field, came, allowed):
    check_sentence(refusal(find("grpo").using, **settings), field, came, allowed)


@pytest.mark.parametrize(
    ("objective", "settings", "field", "came", "allowed"),
    [
        ("grpo", {"estimator": "k1"}, "estimator", "is 'k1'", "only a `beta` above 0 reads it"),
        ("dpo", {"kind": "ipo", "smoothing": 0.1}, "smoothing", "is 0.1", "only `kind` 'sigmoid'"),
        ("qpo", {"trace": 0.5}, "trace", "is 0.5", "only `target` 'td' reads it"),
        ("spo", {"edge": 0.5}, "edge", "is 0.5", "only `cross_entropy` reads it"),
    ],
)
def test_a_setting_that_nothing_reads(objective, settings, field, came, allowed):
    check_sentence(refusal(find(objective).using, **settings), field, came, allowed)


@pytest.mark.parametrize("objective", ["grpo", "dapo", "variance_grpo"])
def test_a_kl_in_the_loss_and_in_the_reward_at_once(objective):
    sentence = refusal(find(objective).using, beta=0.04, **{"credit.kl": 0.1})
    check_sentence(
        sentence, "beta", "is 0.04 and `credit.kl` is 0.1", "so set one of them to 0"
    )  # fmt: skip


def test_a_credit_that_makes_no_value_targets():
    sentence = refusal(find("ppo").using, credit="group")
    check_sentence(sentence, "credit", "is `group`", "one that makes `returns`, as `gae` does")


def test_a_preset_and_a_setting_that_contradict_each_other():
    """The preset comes first, and the check sees what is left of both."""
    sentence = refusal(find("grpo").using, preset="as_written", **{"credit.kl": 0.1})
    check_sentence(sentence, "beta", "is 1.0 and `credit.kl` is 0.1", "set one of them to 0")
    assert find("grpo").using(preset="as_written", beta=0.0, estimator="k3", **{"credit.kl": 0.1})


def test_a_stream_that_no_part_can_know_the_shape_of():
    sentence = refusal(needs, "old", "my_column")
    check_sentence(sentence, "my_column", "is no stream that logratio knows", "give its shape")
