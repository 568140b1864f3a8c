"""Credits where a group or a row holds as little as it may, at hand-checked numbers."""

import torch
from samples import batch, ragged, rewarded, same

from logratio.credit import CREDITS, gae, group, overlong_penalty, pairs


def test_the_only_pair_of_a_group_is_the_whole_of_its_mean_product():
    """Deviations are 1/2, the pair's product 1/4: shift (1/4 + 1/4) / 2, variance 1/4 + that."""
    found = pairs(rewarded(1.0, 0.0, 0.0, 1.0, pair=[0, -1, -1, 1]))
    same(found["shift"], [0.25] * 4)
    same(found["variance"], [0.5] * 4)


def test_advantages_of_a_batch_without_any_token():
    """Rows of no tokens have one state each, the one before the first."""
    nothing = torch.zeros(2, 0, dtype=torch.bool)
    streams = {"old": torch.zeros(2, 0), "ref": torch.zeros(2, 0)}
    rows = batch(nothing, value=[[0.5], [0.25]], reward=[1.0, 0.0], **streams)
    assert gae(rows)["advantage"].shape == (2, 0)
    assert gae(rows)["returns"].shape == (2, 0)


def test_the_sample_deviation_of_two_rewards_divides_by_one():
    """Rewards 1 and 0: squares 1/4 + 1/4 over 2 - 1, so half over the root of a half."""
    found = group(rewarded(1.0, 0.0), spread="sample")["advantage"]
    same(found, [[0.5**0.5], [-(0.5**0.5)]])


def test_a_length_penalty_is_as_precise_as_the_batch():
    rows = batch(ragged(4), reward=[1.0])
    assert overlong_penalty(rows, limit=6, cache=3).item() == -1 / 3


def test_the_names_under_which_a_credit_is_chosen():
    assert set(CREDITS) == {"gae", "group", "none", "pairs", "plain", "process"}
