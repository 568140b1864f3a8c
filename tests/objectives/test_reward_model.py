"""Bradley-Terry: sigmoid of minus the gap on each side, shared out over the pooled states."""

import pytest
import torch
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

from logratio.objectives.reward_model import reward_model

LOG_2 = 0.6931471805599453


def pair_of_scores(chosen, rejected, **columns):
    """One pair of one-token answers; the state before the token says 9 and must not count."""
    policy = policy_of([[-1.0], [-1.0]], heads={"score": [[9.0, chosen], [9.0, rejected]]})
    return policy, batch_of([[1], [1]], pair=[0, 1], **columns)


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "slope"),
    [
        (0.3, 0.3, LOG_2, 0.5),
        (2.0, 0.5, 0.2014132779827524, 0.18242552380635635),  # -log sigma(1.5), sigma(-1.5)
        (1.0, 0.0, 0.3132616875182228, 0.2689414213699951),  # -log sigma(1), sigma(-1)
        (0.0, 1.0, 1.3132616875182228, 0.7310585786300049),  # swapped: -log sigma(-1), sigma(1)
        (100.0, 0.0, 0.0, 0.0),  # e^-100
        (0.0, 100.0, 100.0, 1.0),
    ],
)
def test_slope_at_each_gap(chosen, rejected, loss, slope):
    policy, batch = pair_of_scores(chosen, rejected)
    check_losses(reward_model, policy, batch, preference=[loss])
    check_slopes(reward_model, policy, batch, score=[[0, -slope], [0, slope]])


@pytest.mark.parametrize(
    ("settings", "columns", "loss", "slope"),
    [
        # the gap of 1.5 must beat a margin of .5: as a gap of 1
        ({"margin": 0.5}, {}, 0.3132616875182228, 0.2689414213699951),
        ({"margin": -0.5}, {}, 0.12692801104297263, 0.11920292202211755),  # as a gap of 2
        # the column is read on the chosen row: 3 on the other does not count
        ({"margin": "column"}, {"margin": [0.5, 3.0]}, 0.3132616875182228, 0.2689414213699951),
        ({"margin": 0.0}, {"margin": [0.5, 3.0]}, 0.2014132779827524, 0.18242552380635635),
    ],
)
def test_slope_under_a_margin(settings, columns, loss, slope):
    objective = reward_model.using(**settings)
    policy, batch = pair_of_scores(2.0, 0.5, **columns)
    check_losses(objective, policy, batch, preference=[loss])
    check_slopes(objective, policy, batch, score=[[0, -slope], [0, slope]])


def test_centring_pulls_both_scores_to_zero():
    """.01 (2 + .5)^2 = .0625 on the loss, 2 * .01 * 2.5 = .05 on each slope."""
    objective = reward_model.using(centering=0.01)
    policy, batch = pair_of_scores(2.0, 0.5)
    check_losses(objective, policy, batch, preference=[0.2639132779827524])
    check_slopes(
        objective, policy, batch, score=[[0, -0.13242552380635635], [0, 0.23242552380635635]]
    )


def test_pooling_takes_the_states_after_the_tokens():
    """Chosen: 1 and 3 after its tokens; rejected: 2 after its only one. Equal means: slopes 1/2."""
    policy = policy_of(
        [[-1.0, -1.0], [-1.0, -1.0]], heads={"score": [[9.0, 1.0, 3.0], [9.0, 2.0, 9.0]]}
    )
    batch = batch_of([[1, 1], [1, 0]], pair=[0, 1])
    mean = reward_model.using(pooling="mean")
    check_losses(mean, policy, batch, preference=[LOG_2])
    check_slopes(mean, policy, batch, score=[[0, -0.25, -0.25], [0, 0.5, 0]])
    # the last ones are 3 and 2, a gap of 1
    last = reward_model.using(pooling="last")
    check_losses(last, policy, batch, preference=[0.3132616875182228])
    slope = 0.2689414213699951
    check_slopes(last, policy, batch, score=[[0, 0, -slope], [0, slope, 0]])


def test_pooling_skips_what_the_policy_did_not_write():
    """A left pad and a token of a tool: the mean is that of 1 and 3, the last one is 3."""
    policy = policy_of(
        [[-1.0] * 4] * 2, heads={"score": [[9.0, 9.0, 1.0, 9.0, 3.0], [9.0, 2.0, 9.0, 9.0, 9.0]]}
    )
    batch = batch_of([[0, 1, 0, 1], [1, 0, 0, 0]], pair=[0, 1])
    check_slopes(reward_model, policy, batch, score=[[0, 0, -0.25, 0, -0.25], [0, 0.5, 0, 0, 0]])
    last = reward_model.using(pooling="last")
    slope = 0.2689414213699951
    check_slopes(last, policy, batch, score=[[0, 0, 0, 0, -slope], [0, slope, 0, 0, 0]])


def test_the_loss_is_the_mean_over_pairs_wherever_their_rows_stand():
    """Rows: rejected of pair 1, chosen of pair 0, no pair, chosen of pair 1, rejected of pair 0."""
    policy = policy_of([[-1.0]] * 5, heads={"score": [[9.0, s] for s in (0.0, 0.3, 7.0, 1.0, 0.3)]})
    batch = batch_of([[1]] * 5, pair=[3, 0, -1, 2, 1])
    check_losses(reward_model, policy, batch, preference=[LOG_2, 0.3132616875182228])
    torch.testing.assert_close(
        loss_of(reward_model, policy, batch), numbers((LOG_2 + 0.3132616875182228) / 2)
    )
    slope = 0.2689414213699951 / 2
    check_slopes(
        reward_model, policy, batch, score=[[0, slope], [0, -0.25], [0, 0], [0, -slope], [0, 0.25]]
    )
    check_watch(
        reward_model, policy, batch,
        accuracy=[0.0, 1.0], gap=[0.0, 1.0], score=[0.0, 0.3, 7.0, 1.0, 0.3],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "rejected", "right"), [(0.5, 0.2, 1.0), (0.2, 0.2, 0.0), (0.2, 0.5, 0.0)]
)
def test_a_pair_counts_as_right_when_the_chosen_one_leads(chosen, rejected, right):
    policy, batch = pair_of_scores(chosen, rejected)
    watch = reward_model(policy, batch).watch
    assert watch["accuracy"].tolist() == [right]


def test_a_pair_with_an_empty_side_trains_nothing():
    policy = policy_of([[-1.0], [-1.0]], heads={"score": [[9.0, 1.0], [9.0, 2.0]]})
    batch = batch_of([[1], [0]], pair=[0, 1])
    check_slopes(reward_model, policy, batch, score=[[0, 0], [0, 0]])


def test_adding_to_both_scores_changes_nothing_unless_they_are_centred():
    apart = [loss_of(reward_model, *pair_of_scores(2.0 + k, 0.5 + k)) for k in (0.0, 5.0)]
    torch.testing.assert_close(apart[0], apart[1])
    centred = reward_model.using(centering=0.01)
    apart = [loss_of(centred, *pair_of_scores(2.0 + k, 0.5 + k)) for k in (0.0, 5.0)]
    assert apart[1] > apart[0] + 1


def test_what_it_is_made_of():
    assert reward_model.name == "reward_model"
    assert reward_model.loss.resolved() == {"pooling": "mean", "margin": 0.0, "centering": 0.0}
    assert (reward_model.keep.name, reward_model.credit.name) == ("everything", "none")
    assert (reward_model.weight.name, reward_model.average.name) == ("uniform", "per_pair")
    assert dict(reward_model.presets) == {
        "as_written": {"pooling": "mean", "margin": 0.0, "centering": 0.0},
        "centred": {"centering": 0.01},
        "last_token": {"pooling": "last"},
    }


@pytest.mark.parametrize(
    ("settings", "streams"),
    [
        ({}, ["pair"]),
        ({"margin": 0.5}, ["pair"]),
        ({"margin": "column"}, ["pair", "margin"]),
        ({"preset": "as_written"}, ["pair"]),
        ({"preset": "centred"}, ["pair"]),
        ({"preset": "last_token"}, ["pair"]),
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings, streams):
    objective = reward_model.using(**settings)
    assert needed(objective) == needs_of(*streams, heads={"score"}, couples="pair")
    check_runs(objective)


def test_a_margin_that_is_neither_a_number_nor_the_column():
    sentence = "`margin` is 'margins', but it must be a number or 'column'"
    assert refusal(reward_model.using, margin="margins") == sentence


def test_a_centring_that_would_push_apart():
    sentence = "`centering` is -0.1, but it must be a number in [0, inf)"
    assert refusal(reward_model.using, centering=-0.1) == sentence


def test_an_unknown_pooling():
    sentence = "`pooling` is 'first', but it must be one of 'mean', 'last'"
    assert refusal(reward_model.using, pooling="first") == sentence
