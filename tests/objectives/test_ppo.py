"""PPO: the clipped surrogate, the clipped value error and the entropy, region by region."""

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

from logratio.objectives.ppo import ppo

SETTLED = {"returns": [[1.0]], "value": [[1.0, 0.0]]}  # value 1, where 1 was to be had


def token(ratio, advantage, *, weight=1.0):
    """One token at this ratio, with a value that is right and so has no slope."""
    policy = policy_of([[log(ratio)]], heads={"value": [[1.0, 5.0]]}, entropy=[[0.7]])
    batch = batch_of(
        [[1]], old=[[0.0]], advantage=[[advantage]], weight=[[weight]], **SETTLED
    )  # fmt: skip
    return policy, batch


def valued(now, *, target, before=0.0):
    """One token that is on policy with advantage 0, at this value; V_old is 0."""
    policy = policy_of([[0.0]], heads={"value": [[now, 5.0]]})
    batch = batch_of(
        [[1]], old=[[0.0]], advantage=[[0.0]], returns=[[target]], value=[[before, 7.0]]
    )  # fmt: skip
    return policy, batch


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
    check_losses(ppo, policy, batch, policy=[[loss]], value=[[0.0]])
    check_slopes(ppo, policy, batch, logp=[[slope]], value=[[0, 0]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.4, +2.0, -2.8, -2.8),  # below 1 + clip_high
        (1.6, +2.0, -3.0, +0.0),  # above: 1.5 A
        (0.7, -2.0, +1.6, +0.0),  # below 1 - clip, which clip_high leaves alone
        (0.9, -2.0, +1.8, +1.8),
    ],
)
def test_slope_when_the_upper_clip_is_wider(ratio, advantage, loss, slope):
    objective = ppo.using(clip=0.2, clip_high=0.5)
    policy, batch = token(ratio, advantage)
    check_losses(objective, policy, batch, policy=[[loss]], value=[[0.0]])
    check_slopes(objective, policy, batch, logp=[[slope]], value=[[0, 0]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"), [(2.0, 1.0, -2.0), (0.5, -1.0, 0.5)]
)  # fmt: skip
def test_on_the_very_edge_of_the_clip_the_token_still_learns(ratio, advantage, slope):
    objective = ppo.using(clip=0.5, clip_high=1.0)
    policy, batch = token(ratio, advantage)
    check_slopes(objective, policy, batch, logp=[[slope]], value=[[0, 0]])
    assert objective(policy, batch).watch["clipped"].item() == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (4.0, -2.0, 6.0, 0.0),  # past 3: held at 3 |A|
        (2.5, -2.0, 5.0, 5.0),  # not yet
        (4.0, +2.0, -2.4, 0.0),  # a good token is clipped as ever
        (0.5, +2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_slope_under_the_dual_clip(ratio, advantage, loss, slope):
    objective = ppo.using(dual=3.0)
    policy, batch = token(ratio, advantage)
    check_losses(objective, policy, batch, policy=[[loss]], value=[[0.0]])
    check_slopes(objective, policy, batch, logp=[[slope]], value=[[0, 0]])


@pytest.mark.parametrize(
    ("now", "target", "error", "slope", "held"),
    [
        (0.1, +1.0, 0.405, -0.9, 0),  # within the clip: (V - G)^2 / 2, slope V - G
        (0.25, +1.0, 0.28125, -0.75, 0),  # on its edge
        (-0.25, -1.0, 0.28125, 0.75, 0),
        (0.5, +1.0, 0.28125, 0.0, 1),  # moved towards G past the clip: (.25 - 1)^2 / 2 is larger
        (-0.5, -1.0, 0.28125, 0.0, 1),
        (-0.5, +1.0, 1.125, -1.5, 0),  # moved away: its own error is larger, pull it back
        (0.5, -1.0, 1.125, 1.5, 0),
        (1.5, +1.0, 0.28125, 0.0, 1),  # overshot by less than the clip falls short
        (2.5, +1.0, 1.125, 1.5, 0),  # overshot by more
    ],
)
def test_slope_of_the_value_in_each_region(now, target, error, slope, held):
    objective = ppo.using(value=1.0, value_clip=0.25)
    policy, batch = valued(now, target=target)
    check_losses(objective, policy, batch, policy=[[0.0]], value=[[error]])
    check_slopes(objective, policy, batch, logp=[[0]], value=[[slope, 0]])
    assert objective(policy, batch).watch["value_clipped"].item() == held


def test_the_value_is_held_near_the_old_one_and_not_near_zero():
    """V_old = 3: at 3.1 the value is within the clip; at 3.5 it is held at 3.25 of the 4."""
    objective = ppo.using(value=1.0, value_clip=0.25)
    within, beyond = (valued(now, target=4.0, before=3.0) for now in (3.125, 3.5))
    check_slopes(objective, *within, logp=[[0]], value=[[-0.875, 0]])
    check_slopes(objective, *beyond, logp=[[0]], value=[[0, 0]])
    check_losses(objective, *beyond, policy=[[0.0]], value=[[0.28125]])  # .75^2 / 2


def test_a_value_as_far_off_as_the_held_one_is_not_held():
    policy, batch = valued(1.75, target=1.0)  # .75 above, and .25 is .75 below
    watch = ppo.using(value_clip=0.25)(policy, batch).watch
    assert watch["value_clipped"].item() == 0


def test_the_default_clip_of_the_value_is_a_fifth():
    assert ppo(*valued(0.21, target=1.0)).watch["value_clipped"].item() == 1
    assert ppo(*valued(0.19, target=1.0)).watch["value_clipped"].item() == 0


def test_without_a_value_clip_the_old_values_do_not_count():
    objective = ppo.using(value_clip=None, value=1.0)
    policy, batch = valued(0.5, target=1.0)
    check_losses(objective, policy, batch, policy=[[0.0]], value=[[0.125]])
    check_slopes(objective, policy, batch, logp=[[0]], value=[[-0.5, 0]])
    assert objective(policy, batch).watch["value_clipped"].item() == 0


@pytest.mark.parametrize(("settings", "slope"), [({}, -0.05), ({"value": 2.0}, -1.0)])
def test_the_value_term_counts_as_much_as_its_coefficient(settings, slope):
    objective = ppo.using(value_clip=None, **settings)
    policy, batch = valued(0.5, target=1.0)
    check_slopes(objective, policy, batch, logp=[[0]], value=[[slope, 0]])
    terms = objective(policy, batch).terms
    assert [term.unit for term in terms.values()] == ["token", "token"]
    assert terms["policy"].coefficient == 1
    assert terms["value"].coefficient == settings.get("value", 0.1)


@pytest.mark.parametrize("entropy", [0.01, -0.5])
def test_an_entropy_bonus_has_slope_minus_its_coefficient(entropy):
    objective = ppo.using(entropy=entropy)
    policy, batch = token(1.0, 2.0)
    check_losses(objective, policy, batch, policy=[[-2.0]], value=[[0.0]], entropy=[[-0.7]])
    check_slopes(objective, policy, batch, logp=[[-2.0]], value=[[0, 0]], entropy=[[-entropy]])
    assert objective(policy, batch).watch["entropy"].item() == 0.7


def test_a_weight_counts_in_the_policy_term_only():
    objective = ppo.using(entropy=0.01, value=1.0, value_clip=None)
    policy = policy_of([[0.0]], heads={"value": [[0.5, 0.0]]}, entropy=[[0.7]])
    batch = batch_of(
        [[1]], old=[[0.0]], advantage=[[2.0]], weight=[[3.0]], returns=[[1.0]], value=[[0.5, 0.0]]
    )  # fmt: skip
    check_losses(objective, policy, batch, policy=[[-6.0]], value=[[0.125]], entropy=[[-0.7]])
    check_slopes(objective, policy, batch, logp=[[-6.0]], value=[[-0.5, 0]], entropy=[[-0.01]])


def test_what_is_watched():
    """Ratios 2 and 1/2; r - 1 - log r is 1 - .6931 and -.5 + .6931."""
    policy = policy_of([[log(2), -log(2), 0.0]], heads={"value": [[0.5, 0.1, 0.0, 9.0]]})
    batch = batch_of(
        [[1, 1, 1]], old=[[0.0] * 3], advantage=[[1.0, -1.0, 1.0]],
        returns=[[1.0, 1.0, 1.0]], value=[[0.0] * 4],
    )  # fmt: skip
    check_watch(
        ppo, policy, batch,
        ratio=[[2.0, 0.5, 1.0]], clipped=[[1.0, 1.0, 0.0]], value_clipped=[[1.0, 0.0, 0.0]],
        kl_old=[[0.3068528194400547, 0.1931471805599453, 0.0]],
    )  # fmt: skip


def test_a_token_without_advantage_is_not_clipped():
    assert ppo(*token(2.0, 0.0)).watch["clipped"].item() == 0
    assert ppo(*token(2.0, -1.0)).watch["clipped"].item() == 0
    assert ppo(*token(2.0, 1.0)).watch["clipped"].item() == 1


def test_the_worked_example_from_reward_to_slope():
    """Reward 1 after V = .2, .5, .7 at trace .95: A = .76075, .485, .3 and G - V = A."""
    objective = ppo.using(**{"credit.kl": 0.0, "credit.whiten": False})
    policy = policy_of([[-1.0, -2.0, -3.0]], heads={"value": [[0.2, 0.5, 0.7, 0.0]]})
    batch = objective.prepare(
        batch_of([[1, 1, 1]], reward=[1.0], old=[[-1.0, -2.0, -3.0]], value=[[0.2, 0.5, 0.7, 0.0]])
    )
    assert_close(batch.stream("returns"), numbers([[0.96075, 0.985, 1.0]]))
    slope = [-0.76075 / 3, -0.485 / 3, -0.1]
    check_slopes(objective, policy, batch, logp=[slope], value=[[0.1 * s for s in slope] + [0]])


def test_the_kl_in_the_reward_is_the_samplers():
    """Reward 1 - .1 (-1 + 1.5) = .95 whatever the policy says now; V = 0, so A = .95; .95 e^-.1."""
    objective = ppo.using(**{"credit.kl": 0.1, "credit.whiten": False})
    batch = objective.prepare(
        batch_of([[1]], reward=[1.0], old=[[-1.0]], ref=[[-1.5]], value=[[0.0, 0.0]])
    )
    policy = policy_of([[-1.1]], heads={"value": [[0.0, 0.0]]})
    check_losses(objective, policy, batch, policy=[[-0.8595955471341616]], value=[[0.45125]])


def test_both_averages():
    """Advantage 1 on rows of 1 and 3 tokens, on policy, with values that are right."""
    mask, zeros = [[1, 0, 0], [1, 1, 1]], [[0.0] * 3] * 2
    policy = policy_of(zeros, heads={"value": [[0.0] * 4] * 2})
    batch = batch_of(
        mask, old=zeros, advantage=[[1.0] * 3] * 2, returns=zeros, value=[[0.0] * 4] * 2
    )
    nothing = [[0, 0, 0, 0]] * 2
    by_token = [[-1 / 4, 0, 0], [-1 / 4, -1 / 4, -1 / 4]]
    check_slopes(ppo, policy, batch, logp=by_token, value=nothing)
    written = ppo.using(preset="as_written")
    by_row = [[-1 / 2, 0, 0], [-1 / 6, -1 / 6, -1 / 6]]
    check_slopes(written, policy, batch, logp=by_row, value=nothing)
    assert_close(loss_of(ppo, policy, batch), numbers(-1.0))


def test_what_ppo_is_made_of():
    assert ppo.name == "ppo"
    assert ppo.loss.resolved() == {
        "clip": 0.2, "clip_high": None, "dual": None, "value": 0.1, "value_clip": 0.2,
        "entropy": 0.0,
    }  # fmt: skip
    assert (ppo.keep.name, ppo.credit.name) == ("everything", "gae")
    assert (ppo.weight.name, ppo.average.name) == ("uniform", "per_token")
    assert dict(ppo.presets) == {"as_written": {"average": "per_sequence", "credit.whiten": False}}


@pytest.mark.parametrize(
    ("settings", "streams", "policy"),
    [
        ({}, ["old", "ref", "reward", "value"], set()),
        ({"preset": "as_written"}, ["old", "ref", "reward", "value"], set()),
        ({"clip_high": 0.3, "dual": 3.0}, ["old", "ref", "reward", "value"], set()),
        ({"value_clip": None}, ["old", "ref", "reward", "value"], set()),
        ({"credit.kl": 0.0}, ["old", "reward", "value"], set()),
        ({"credit.estimator": "exact"}, ["old", "old_kl", "reward", "value"], set()),
        ({"credit.rewards": "steps"}, ["old", "ref", "step_reward", "value"], set()),
        (
            {"credit.truncated": "bootstrap"},
            ["old", "ref", "reward", "truncated", "value"],
            set(),
        ),
        ({"entropy": 0.01}, ["old", "ref", "reward", "value"], {"entropy"}),
        ({"entropy": -0.01}, ["old", "ref", "reward", "value"], {"entropy"}),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams, policy):
    objective = ppo.using(**settings)
    assert needed(objective) == needs_of(*streams, policy=policy, heads={"value"})
    check_runs(objective)


def test_the_loss_itself_asks_for_old_values_only_to_clip_by_them():
    streams = {"old", "advantage", "returns", "weight"}
    assert ppo.loss.declared().streams == streams | {"value"}
    assert ppo.using(value_clip=None).loss.declared().streams == streams


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clip": 0.0}, "`clip` is 0.0, but it must be a number in (0, 1]"),
        ({"clip": 1.5}, "`clip` is 1.5, but it must be a number in (0, 1]"),
        ({"clip_high": 0.0}, "`clip_high` is 0.0, but it must be a number in (0, inf) or None"),
        ({"dual": 1.0}, "`dual` is 1.0, but it must be a number in (1, inf) or None"),
        ({"value": -0.1}, "`value` is -0.1, but it must be a number in [0, inf)"),
        ({"value_clip": 0}, "`value_clip` is 0, but it must be a number in (0, inf) or None"),
        ({"entropy": None}, "`entropy` is None, but it must be a number"),
        (
            {"credit": "group"},
            "`credit` is `group`, but ppo needs one that makes `returns`, as `gae` does",
        ),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(ppo.using, **settings) == sentence


def test_the_widest_clip_is_allowed():
    assert ppo.using(clip=1.0, credit="gae").loss.resolved()["clip"] == 1.0
