"""Credits where a group or a row holds as little as it may, at hand-checked numbers."""

import torch
from samples import batch, rewarded, same

from logratio.credit import gae, pairs


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
