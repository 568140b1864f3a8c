"""SFT and its slopes: -1 on every token, over whatever the average divides by."""

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

from logratio.lab import dense
from logratio.objectives.sft import sft

MASK = [[1, 0, 0], [1, 1, 1]]
LOGP = [[-1.0, -8.0, -9.0], [-2.0, -3.0, -4.0]]


def test_the_loss_of_a_token_is_minus_its_log_prob():
    policy, batch = policy_of([[-1.0, -2.5]]), batch_of([[1, 1]])
    check_losses(sft, policy, batch, nll=[[1.0, 2.5]])
    check_watch(sft, policy, batch, logp=[[-1.0, -2.5]])


@pytest.mark.parametrize(
    ("settings", "slope", "loss"),
    [
        # 1, and 2 + 3 + 4, over four tokens
        ({}, [[-1 / 4, 0, 0], [-1 / 4, -1 / 4, -1 / 4]], 2.5),
        ({"average": "per_token"}, [[-1 / 4, 0, 0], [-1 / 4, -1 / 4, -1 / 4]], 2.5),
        # the mean of 1 and of (2 + 3 + 4) / 3
        ({"average": "per_sequence"}, [[-1 / 2, 0, 0], [-1 / 6, -1 / 6, -1 / 6]], 2.0),
        ({"preset": "as_written"}, [[-1 / 2, 0, 0], [-1 / 6, -1 / 6, -1 / 6]], 2.0),
        ({"average": "summed"}, [[-1 / 2, 0, 0], [-1 / 2, -1 / 2, -1 / 2]], 5.0),
        # two rows of length 5
        (
            {"average": "fixed_length", "average.length": 5},
            [[-1 / 10, 0, 0], [-1 / 10, -1 / 10, -1 / 10]],
            1.0,
        ),
        # each row is a prompt of its own
        ({"average": "per_group_token"}, [[-1 / 2, 0, 0], [-1 / 6, -1 / 6, -1 / 6]], 2.0),
    ],
)
def test_slope_under_each_average(settings, slope, loss):
    objective, policy, batch = sft.using(**settings), policy_of(LOGP), batch_of(MASK)
    check_slopes(objective, policy, batch, logp=slope)
    torch.testing.assert_close(loss_of(objective, policy, batch), numbers(loss))


def test_a_truncated_row_can_be_left_out():
    objective = sft.using(**{"average.truncated": "leave_out"})
    batch = batch_of(MASK, truncated=[1, 0])
    check_slopes(objective, policy_of(LOGP), batch, logp=[[0, 0, 0], [-1 / 3, -1 / 3, -1 / 3]])
    assert needed(objective) == needs_of("truncated")


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_training_on_the_prompt_is_a_need_and_not_another_loss(train_on):
    objective = sft.using(train_on=train_on)
    assert needed(objective) == needs_of(prompt_trained=train_on == "all")
    batch = batch_of([[1, 1]])
    check_slopes(objective, policy_of([[-1.0, -2.0]]), batch, logp=[[-0.5, -0.5]])


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    logits, ids = torch.zeros(2, 4, 7, dtype=torch.float64), torch.tensor([[1, 2, 0], [3, 4, 5]])
    loss = loss_of(sft, dense.read(logits, ids), batch_of(MASK, old=LOGP))
    torch.testing.assert_close(loss, numbers(1.9459101490553132))  # log 7


def test_the_row_that_predicts_a_token_is_the_one_before_it():
    """A label that was shifted once too often, or never, would cost 50 a token."""
    ids = torch.tensor([[1, 2, 3]])
    rows = torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 0]]), 4) * 50.0
    right = loss_of(sft, dense.read(rows, ids), batch_of([[1, 1, 1]]))
    shifted = loss_of(sft, dense.read(rows.roll(1, 1), ids), batch_of([[1, 1, 1]]))
    assert right < 1e-6
    torch.testing.assert_close(shifted, torch.tensor(50.0))


def test_exactly_the_trained_tokens_move_their_logits():
    """The first token is trained, the state after the last is not, and each row sums to 0."""
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.tensor([[1, 2, 0], [3, 4, 0]])
    loss_of(sft, dense.read(logits, ids), batch_of(MASK)).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(-1) > 0
    assert moved.tolist() == [[True, False, False, False], [True, True, True, False]]
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(2, 4))


def test_what_sft_is_made_of():
    assert sft.name == "sft"
    assert sft.loss.resolved() == {"train_on": "completion"}
    assert (sft.keep.name, sft.credit.name) == ("everything", "none")
    assert (sft.weight.name, sft.average.name) == ("uniform", "per_token")
    assert dict(sft.presets) == {"as_written": {"average": "per_sequence"}}
    assert needed(sft) == needs_of()


@pytest.mark.parametrize("preset", [None, "as_written"])
def test_it_runs(preset):
    check_runs(sft.using(preset=preset) if preset else sft)


def test_a_value_that_train_on_does_not_have():
    sentence = "`train_on` is 'prompt', but it must be one of 'completion', 'all'"
    assert refusal(sft.using, train_on="prompt") == sentence
