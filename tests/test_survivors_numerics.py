"""Arithmetic that losses share: what it refuses, word for word."""

import pytest
import torch

from logratio.numerics import kl_estimate


def test_the_exact_kl_is_no_estimate():
    nothing = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="exact") as refused:
        kl_estimate(nothing, nothing, estimator="exact")
    assert str(refused.value) == (
        "the exact KL is read from the head, it is not estimated from a sample"
    )
