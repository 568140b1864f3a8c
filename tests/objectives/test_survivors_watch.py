"""Whatever is watched or weighed is a number of the batch's own precision, to the last bit."""

import pytest
import torch
from objectives.rows import batch_of, policy_of, read_all

from logratio.objectives import find, names
from logratio.objectives.dpo import implicit_reward
from logratio.objectives.reward_model import shares


@pytest.mark.parametrize("name", names())
def test_what_is_watched_can_be_averaged(name):
    objective = find(name)
    policy, bare = read_all(objective)
    terms = objective(policy, objective.prepare(bare))
    assert {values.dtype for values in terms.watch.values()} == {torch.float64}


def test_the_shares_of_a_score_are_as_precise_as_the_batch():
    rows = batch_of([[1, 1, 1], [1, 0, 0]], pair=[0, 1], reward=[1, 0])
    assert shares(rows, "mean")[0, 1].item() == 1 / 3


def test_the_mean_of_a_log_ratio_is_as_precise_as_the_policy():
    rows = batch_of([[1, 1, 1], [1, 0, 0]], pair=[0, 1], ref=[[0.0] * 3] * 2)
    ratio, share = implicit_reward(policy_of([[1.0, 0.0, 0.0]] * 2), rows, "length")
    assert ratio[0].item() == share[0, 0].item() == 1 / 3
