"""RFT: SFT on what was accepted, divided by what was kept or by what was drawn."""

import pytest
import torch
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    check_watch,
    gradients,
    loss_of,
    needed,
    needs_of,
    numbers,
    policy_of,
)

from logratio.objectives.rft import rft
from logratio.records import Graded, Rollout, Verdict

MASK = [[1, 0], [1, 1]]
LOGP = [[-1.0, -9.0], [-2.0, -4.0]]


def graded(*rewards: float) -> list[Graded]:
    """Gives rollouts of one prompt, each with ids of its own."""
    return [
        Graded(
            rollout=Rollout(problem="p", group=0, index=i, prompt_ids=(1,), ids=(i,)),
            verdict=Verdict(reward=reward),
        )
        for i, reward in enumerate(rewards)
    ]


def test_the_loss_of_a_kept_token_is_minus_its_log_prob():
    check_losses(rft, policy_of(LOGP), batch_of(MASK), nll=[[1.0, 0.0], [2.0, 4.0]])
    check_watch(rft, policy_of(LOGP), batch_of(MASK), logp=[[-1.0, 0.0], [-2.0, -4.0]])


@pytest.mark.parametrize(
    ("settings", "slope", "loss"),
    [
        # 2 kept of 8 drawn (each kept row stands for 4); row losses 1 and (2 + 4) / 2
        ({}, [[-1 / 2, 0], [-1 / 4, -1 / 4]], 2.0),
        ({"preset": "offline"}, [[-1 / 2, 0], [-1 / 4, -1 / 4]], 2.0),
        ({"preset": "as_written"}, [[-1 / 8, 0], [-1 / 16, -1 / 16]], 0.5),
        # summed over the tokens: an unbiased policy gradient
        ({"preset": "online"}, [[-1 / 8, 0], [-1 / 8, -1 / 8]], 0.875),
        ({"preset": "best"}, [[-1 / 2, 0], [-1 / 4, -1 / 4]], 2.0),
    ],
)
def test_who_is_divided_by(settings, slope, loss):
    objective, batch = rft.using(**settings), batch_of(MASK, drawn=[4, 4])
    check_slopes(objective, policy_of(LOGP), batch, logp=slope)
    torch.testing.assert_close(loss_of(objective, policy_of(LOGP), batch), numbers(loss))


@pytest.mark.parametrize("preset", ["as_written", "offline", "online", "best"])
def test_nothing_kept_is_exactly_nothing(preset):
    batch, policy = batch_of([[0, 0]], drawn=[4]), policy_of([[-1.0, -2.0]])
    objective = rft.using(preset=preset)
    assert loss_of(objective, policy, batch).item() == 0
    assert gradients(objective, policy, batch)["logp"].tolist() == [[0, 0]]


def test_the_bar_is_the_reward_and_is_not_reached_by_equality():
    assert rft.keep(graded(0.0, 1.0, -1.0, 0.5)) == [False, True, False, True]
    higher = rft.using(**{"keep.bar": 0.5})
    assert higher.keep(graded(0.0, 1.0, -1.0, 0.5)) == [False, True, False, False]


def test_best_keeps_one_of_each_prompt():
    assert rft.using(preset="best").keep(graded(0.0, 1.0, 3.0, 2.0)) == [False, False, True, False]


def test_what_rft_is_made_of():
    assert rft.name == "rft"
    assert (rft.keep.name, rft.keep.resolved()) == ("above", {"bar": 0.0})
    assert (rft.credit.name, rft.weight.name) == ("none", "uniform")
    assert rft.average.name == "per_sequence"
    assert rft.average.resolved() == {"truncated": "count", "count": "kept"}
    assert dict(rft.presets) == {
        "as_written": {"average": "per_sequence", "average.count": "drawn"},
        "offline": {"average": "per_sequence", "average.count": "kept"},
        "online": {"average": "summed", "average.count": "drawn"},
        "best": {"keep": "best"},
    }


@pytest.mark.parametrize(
    ("preset", "streams"),
    [("as_written", ["drawn"]), ("offline", []), ("online", ["drawn"]), ("best", [])],
)
def test_each_preset_runs_on_what_it_asks_for(preset, streams):
    objective = rft.using(preset=preset)
    assert needed(objective) == needs_of(*streams)
    check_runs(objective)
