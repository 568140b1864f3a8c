"""Weights at the ends of their ranges, at hand-checked numbers."""

import torch
from samples import batch, ragged, same

from logratio.weight import WEIGHTS, normalised, variance


def test_the_default_bounds_hold_one_decisive_token_of_twelve():
    """Its share of the increments is 12 means: weight 0.5 + 6 is cut to 5, the others have 0.5."""
    rows = batch(ragged(12), importance=[[0.0] * 12 + [1.0]], reward=[1.0])
    mean = (11 * 0.5 + 5) / 12
    same(variance(rows), [[0.5 / mean] * 11 + [5 / mean]])


def test_a_row_that_deserves_nothing_has_weight_1_and_passes_on_a_finite_slope():
    values = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    weights = normalised(values, batch(ragged(3)), "row")
    same(weights, [[1.0, 1.0, 1.0]])
    same(torch.autograd.grad(weights.sum(), values)[0], [[0.0, 0.0, 0.0]])


def test_the_names_under_which_a_weight_is_chosen():
    assert set(WEIGHTS) == {"random", "top_entropy", "uniform", "variance"}
