"""GRPO's surrogate: -r A on one side of each clip, 0 on the other; and what surrounds it.

The KL to the reference is in test_grpo_kl.py.
"""

from math import log

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    check_watch,
    loss_of,
    needed,
    needs_of,
    numbers,
    policy_of,
    refusal,
)
from torch.testing import assert_close

from logratio.objectives.grpo import grpo

GSPO = {"ratio": "sequence", "clip": 0.5}
HALF_ROOT, ROOT = 0.7071067811865476, 1.4142135623730951  # 2 ** -.5 and 2 ** .5


def token(ratio, advantage, **streams):
    """One token at this ratio."""
    policy = policy_of([[log(ratio) - 1]])
    return policy, batch_of([[1]], old=[[-1.0]], advantage=[[advantage]], **streams)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, +2.0, -2.0, -2.0),  # on policy the slope is -A
        (1.0, -2.0, +2.0, +2.0),
        (1.1, +2.0, -2.2, -2.2),  # inside the clip it is -r A
        (0.9, -2.0, +1.8, +1.8),
        (1.5, +2.0, -2.4, +0.0),  # a good token already raised enough: let go
        (0.5, +2.0, -1.0, -1.0),  # a good token lowered: pull it back
        (1.5, -2.0, +3.0, +3.0),  # a bad token raised: push it back, unclipped
        (0.5, -2.0, +1.6, +0.0),  # a bad token already lowered enough: let go
        (1.5, +0.0, +0.0, +0.0),
    ],
)
def test_slope_on_each_side_of_the_clip(ratio, advantage, loss, slope):
    policy, batch = token(ratio, advantage)
    check_losses(grpo, policy, batch, policy=[[loss]])
    check_slopes(grpo, policy, batch, logp=[[slope]])


@pytest.mark.parametrize(
    ("settings", "ratio", "advantage", "loss", "slope"),
    [
        # a wider upper clip reaches up to 1.5, and for good tokens only
        ({"clip_high": 0.5}, 1.4, +2.0, -2.8, -2.8),
        ({"clip_high": 0.5}, 1.6, +2.0, -3.0, +0.0),
        ({"clip_high": 0.5}, 0.7, -2.0, +1.6, +0.0),
        ({"clip_high": 0.5}, 0.9, -2.0, +1.8, +1.8),
        # a dual clip holds bad tokens at 3 |A|, and leaves good ones alone
        ({"dual": 3.0}, 4.0, -2.0, 6.0, 0.0),
        ({"dual": 3.0}, 2.5, -2.0, 5.0, 5.0),
        ({"dual": 3.0}, 4.0, +2.0, -2.4, 0.0),
        ({"dual": 3.0}, 0.5, +2.0, -1.0, -1.0),
        ({"dual": 3.0}, 0.5, -2.0, 1.6, 0.0),
        # CISPO: the ratio, at most 1.5, is a constant, and every token learns
        ({"surrogate": "cispo", "clip_high": 0.5}, 1.4, +2.0, +1.857877737460604, -2.8),
        ({"surrogate": "cispo", "clip_high": 0.5}, 2.0, +2.0, +0.9205584583201641, -3.0),
        ({"surrogate": "cispo", "clip_high": 0.5}, 2.0, -2.0, -0.9205584583201641, +3.0),
        ({"surrogate": "cispo", "clip_high": 0.5}, 0.5, -2.0, -1.6931471805599454, +1.0),
        ({"surrogate": "cispo", "clip": 0.5}, 2.0, +2.0, +0.9205584583201641, -3.0),
    ],
)
def test_slope_under_other_clips(settings, ratio, advantage, loss, slope):
    """CISPO's losses are - min(r, 1.5) A log p; here log p = log r - 1."""
    objective = grpo.using(**settings)
    policy, batch = token(ratio, advantage)
    check_losses(objective, policy, batch, policy=[[loss]])
    check_slopes(objective, policy, batch, logp=[[slope]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"), [(2.0, 1.0, -2.0), (0.5, -1.0, 0.5)]
)  # fmt: skip
def test_on_the_very_edge_of_the_clip_the_token_still_learns(ratio, advantage, slope):
    objective = grpo.using(clip=0.5, clip_high=1.0)
    policy = policy_of([[log(ratio)]])
    batch = batch_of([[1]], old=[[0.0]], advantage=[[advantage]])
    check_slopes(objective, policy, batch, logp=[[slope]])
    watch = objective(policy, batch).watch
    assert (watch["clip_low"].item(), watch["clip_high"].item()) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "advantage", "ratios", "loss", "slope"),
    [
        # ratios 2 and 1: the row's is root 2, and each of two tokens has half of -s A
        (GSPO, +1.0, (2.0, 1.0), -ROOT, -HALF_ROOT),
        (GSPO, -1.0, (0.5, 1.0), +HALF_ROOT, +0.3535533905932738),
        ({"ratio": "sequence"}, +1.0, (2.0, 1.0), -1.2, 0.0),  # past the clip: the whole row
        ({"ratio": "sequence"}, -1.0, (0.5, 1.0), +0.8, 0.0),
        ({"ratio": "sequence"}, -1.0, (2.0, 1.0), +ROOT, +HALF_ROOT),
        ({"ratio": "sequence"}, +1.0, (2.0, 0.5), -1.0, -0.5),  # they cancel
    ],
)
def test_slope_of_a_sequence_ratio(settings, advantage, ratios, loss, slope):
    """The third token is a pad, and does not count in the mean."""
    objective = grpo.using(**settings)
    policy = policy_of([[log(ratios[0]) - 1, log(ratios[1]) - 1, 7.0]])
    batch = batch_of([[1, 1, 0]], old=[[-1.0] * 3], advantage=[[advantage, advantage, 0.0]])
    assert_close(loss_of(objective, policy, batch), numbers(loss))
    check_slopes(objective, policy, batch, logp=[[slope, slope, 0]])


@pytest.mark.parametrize(
    ("behaviour", "cap", "factor"),
    [
        (-1.6931471805599454, 5.0, 2.0),  # old / behaviour = 2
        (-1.6931471805599454, 1.5, 1.5),
        (-0.3068528194400547, 1.5, 0.5),
        (-1.0, 1.0, 1.0),
    ],
)
def test_slope_when_truncated_sampling_drew_from_another_law(behaviour, cap, factor):
    objective = grpo.using(behaviour_cap=cap, beta=1.0, estimator="k1")
    policy, batch = token(1.0, 2.0, behaviour=[[behaviour]], weight=[[3.0]], ref=[[-1.5]])
    check_losses(objective, policy, batch, policy=[[-6.0 * factor]], kl=[[0.5]])
    check_slopes(objective, policy, batch, logp=[[-6.0 * factor + 1]])


def test_what_is_watched():
    """Ratios 2, .5, 2, .5 under advantages +, +, -, -, at a clip of .2."""
    policy = policy_of([[log(2), -log(2), log(2), -log(2), 0.0]])
    batch = batch_of([[1] * 5], old=[[0.0] * 5], advantage=[[1.0, 1.0, -1.0, -1.0, 0.0]])
    ratio = [[2.0, 0.5, 2.0, 0.5, 1.0]]
    high, low = [[1.0, 0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 1.0, 0.0]]
    check_watch(grpo, policy, batch, ratio=ratio, clip_high=high, clip_low=low)
    # at a dual clip of 1.5 the third is held as well
    dual = grpo.using(dual=1.5)
    held = [[0.0, 0.0, 1.0, 0.0, 0.0]]
    check_watch(dual, policy, batch, ratio=ratio, clip_high=high, clip_low=low, clip_dual=held)
    # CISPO lets no token go below, so it counts none
    check_watch(grpo.using(surrogate="cispo"), policy, batch, ratio=ratio, clip_high=high)


def test_without_advantage_nothing_is_clipped():
    for ratio in (0.1, 10.0):
        watch = grpo.using(dual=3.0)(*token(ratio, 0.0)).watch
        assert {name: stream.item() for name, stream in watch.items() if name != "ratio"} == {
            "clip_high": 0, "clip_low": 0, "clip_dual": 0
        }  # fmt: skip


def test_at_the_dual_bound_itself_nothing_is_held():
    policy, batch = policy_of([[log(2)]]), batch_of([[1]], old=[[0.0]], advantage=[[-1.0]])
    assert grpo.using(dual=2.0)(policy, batch).watch["clip_dual"].item() == 0
    assert grpo.using(dual=1.9)(policy, batch).watch["clip_dual"].item() == 1


def test_the_terms_are_about_tokens():
    terms = grpo.using(beta=0.3)(*token(1.0, 1.0, ref=[[-1.0]])).terms
    assert [(name, term.unit, term.coefficient) for name, term in terms.items()] == [
        ("policy", "token", 1.0), ("kl", "token", 0.3)
    ]  # fmt: skip


FOUR = [[1, 1], [1, 0], [1, 1], [1, 0]]
FLAT = [[-1.0] * 2] * 4
EIGHTH, QUARTER = 1 / 8, 1 / 4
ONES = [[EIGHTH, EIGHTH], [QUARTER, 0], [EIGHTH, EIGHTH], [QUARTER, 0]]


def scaled(rows, *factors):
    return [[factor * x for x in row] for row, factor in zip(rows, factors, strict=True)]


@pytest.mark.parametrize(
    ("settings", "slope"),
    [
        # rewards 1, 0, 0, 0: population deviation .433, so 1.732 and -.577
        ({}, scaled(ONES, -(3**0.5), 3**-0.5, 3**-0.5, 3**-0.5)),
        ({"credit.spread": "sample"}, scaled(ONES, -1.5, 0.5, 0.5, 0.5)),
        ({"credit.spread": "none"}, scaled(ONES, -0.75, 0.25, 0.25, 0.25)),
        # 1 against the mean of the others, summed over 4 rows
        (
            {"preset": "rloo"},
            [[-1 / 4, -1 / 4], [1 / 12, 0], [1 / 12, 1 / 12], [1 / 12, 0]],
        ),
        # 4 rows of length 10, whatever their own
        (
            {"preset": "dr_grpo", "average.length": 10},
            [[-0.75 / 40] * 2, [0.25 / 40, 0], [0.25 / 40] * 2, [0.25 / 40, 0]],
        ),
        # 6 tokens
        (
            {"average": "per_token", "credit.spread": "none"},
            [[-0.75 / 6] * 2, [0.25 / 6, 0], [0.25 / 6] * 2, [0.25 / 6, 0]],
        ),
        # REINFORCE: only the rewarded row moves
        ({"credit": "plain"}, scaled(ONES, -1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_slope_of_a_group_on_policy(settings, slope):
    objective, policy = grpo.using(**settings), policy_of(FLAT)
    batch = objective.prepare(batch_of(FOUR, old=FLAT, reward=[1.0, 0, 0, 0], group=[0] * 4))
    check_slopes(objective, policy, batch, logp=slope)


def test_on_policy_the_loss_is_zero_and_its_slope_is_not():
    """Its commonest question: the advantages of a group add up to 0, their slopes do not cancel."""
    policy = policy_of(FLAT)
    batch = grpo.prepare(batch_of(FOUR, old=FLAT, reward=[1.0, 0, 0, 1.0], group=[0] * 4))
    assert_close(loss_of(grpo, policy, batch), numbers(0.0))
    check_slopes(grpo, policy, batch, logp=scaled(ONES, -1.0, 1.0, 1.0, -1.0))


def test_the_worked_example_of_process_supervision():
    """Steps [1, 0] and [0, 0], a token each: 1.1547 then -.5774; -1.1547 then -.5774."""
    objective = grpo.using(preset="process")
    batch = batch_of(
        [[1, 1], [1, 1]], old=[[-1.0] * 2] * 2, reward=[9.0, 9.0], group=[0, 0],
        step_end=[[1, 1], [1, 1]], step_reward=[[1.0, 0.0], [0.0, 0.0]],
    )  # fmt: skip
    third = 3**-0.5  # .57735
    slope = [[-third / 2, third / 4], [third / 2, third / 4]]
    check_slopes(objective, policy_of([[-1.0] * 2] * 2), objective.prepare(batch), logp=slope)


def test_top_entropy_trains_a_share_of_the_tokens():
    """A fifth of ten tokens: the two with the highest entropy, 8 and 9."""
    objective = grpo.using(preset="top_entropy", **{"credit.spread": "none"})
    flat, entropy = [[-1.0] * 5] * 2, [[1.0, 9.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 0.0]]
    batch = batch_of([[1] * 5] * 2, old=flat, reward=[1.0, 0], group=[0, 0], entropy=entropy)
    slope = [[0, -0.05, 0, 0, 0], [0, 0, 0, 0.05, 0]]
    check_slopes(objective, policy_of(flat), objective.prepare(batch), logp=slope)


PRESETS = {
    "as_written": {"beta": 1.0, "estimator": "k3", "average": "per_sequence"},
    "deepseek_math": {"beta": 0.04, "estimator": "k3", "average": "per_sequence"},
    "process": {"credit": "process"},
    "dr_grpo": {"credit.spread": "none", "average": "fixed_length"},
    "rloo": {"credit.center": "leave_one_out", "credit.spread": "none", "average": "summed"},
    "gspo": {"ratio": "sequence", "clip": 0.0003, "clip_high": 0.0004},
    "cispo": {"surrogate": "cispo", "clip_high": 4.0, "average": "per_token"},
    "top_entropy": {"weight": "top_entropy"},
}


def test_what_grpo_is_made_of():
    assert grpo.name == "grpo"
    assert grpo.loss.resolved() == {
        "clip": 0.2, "clip_high": None, "dual": None, "ratio": "token", "surrogate": "clip",
        "behaviour_cap": None, "beta": 0.0, "estimator": "k3", "corrected": False,
    }  # fmt: skip
    assert (grpo.keep.name, grpo.credit.name) == ("everything", "group")
    assert (grpo.weight.name, grpo.average.name) == ("uniform", "per_sequence")
    assert dict(grpo.presets) == PRESETS


@pytest.mark.parametrize(
    ("settings", "streams", "policy"),
    [
        ({}, [], set()),
        ({"preset": "as_written"}, ["ref"], set()),
        ({"preset": "deepseek_math"}, ["ref"], set()),
        ({"preset": "process"}, ["step_end", "step_reward"], set()),
        ({"preset": "dr_grpo", "average.length": 10}, [], set()),
        ({"preset": "rloo"}, [], set()),
        ({"preset": "gspo"}, [], set()),
        ({"preset": "cispo"}, [], set()),
        ({"preset": "top_entropy"}, ["entropy"], set()),
        ({"clip_high": 0.3, "dual": 3.0}, [], set()),
        ({"behaviour_cap": 2.0}, ["behaviour"], set()),
        ({"beta": 0.1, "estimator": "k1", "corrected": True}, ["ref"], set()),
        ({"beta": 0.1, "estimator": "k2"}, ["ref"], set()),
        ({"beta": 0.1, "estimator": "exact"}, [], {"kl"}),
        ({"credit.kl": 0.1}, ["ref"], set()),
        ({"credit.kl": 0.1, "credit.estimator": "exact"}, ["old_kl"], set()),
        ({"average.truncated": "leave_out"}, ["truncated"], set()),
        ({"weight": "random"}, [], set()),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams, policy):
    objective = grpo.using(**settings)
    assert needed(objective) == needs_of("old", "reward", *streams, policy=policy)
    check_runs(objective)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clip": 0.0}, "`clip` is 0.0, but it must be a number in (0, 1]"),
        ({"clip": 1.1}, "`clip` is 1.1, but it must be a number in (0, 1]"),
        ({"clip_high": -0.1}, "`clip_high` is -0.1, but it must be a number in (0, inf) or None"),
        ({"dual": 1.0}, "`dual` is 1.0, but it must be a number in (1, inf) or None"),
        ({"ratio": "row"}, "`ratio` is 'row', but it must be one of 'token', 'sequence'"),
        ({"surrogate": "ppo"}, "`surrogate` is 'ppo', but it must be one of 'clip', 'cispo'"),
        (
            {"behaviour_cap": 0.0},
            "`behaviour_cap` is 0.0, but it must be a number in (0, inf) or None",
        ),
        (
            {"surrogate": "cispo", "dual": 3.0},
            "`dual` is 3.0, but only `surrogate` 'clip' reads it",
        ),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(grpo.using, **settings) == sentence


def test_dr_grpo_asks_for_its_length():
    sentence = "`length` of `fixed_length` has no default: give it a value"
    assert refusal(grpo.using(preset="dr_grpo").declared) == sentence
