"""Arithmetic that losses share: what it refuses, word for word."""

import pytest
import torch

from logratio.numerics import clipped_surrogate, kl_estimate


def test_the_exact_kl_is_no_estimate():
    nothing = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="exact") as refused:
        kl_estimate(nothing, nothing, estimator="exact")
    assert str(refused.value) == (
        "the exact KL is read from the head, it is not estimated from a sample"
    )


def surrogate(log_ratio, advantage, dual):
    streams = (torch.tensor([[x]], dtype=torch.float64) for x in (log_ratio, advantage))
    value, slope = clipped_surrogate(*streams, low=0.2, high=0.2, dual=dual)
    return value.item(), slope.item()


def test_the_dual_bound_leaves_small_gains_alone():
    """A = 1/2 at r = 1: the surrogate is 1/2 and not the bound 3/2, which is for losses only."""
    assert surrogate(0.0, 0.5, dual=3.0) == (0.5, 0.5)


def test_at_the_dual_bound_itself_the_slope_is_still_that_of_the_ratio():
    ratio = torch.tensor(0.5, dtype=torch.float64).exp().item()
    assert surrogate(0.5, -1.0, dual=ratio) == (-ratio, -ratio)
