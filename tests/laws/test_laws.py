"""What holds for every registered objective: being in the folder is being tested here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws.batches import ROWS, case, padded, reordered
from laws.variants import objectives
from torch.testing import assert_close

from logratio.numerics import recorded, replayed
from logratio.objective import total_loss

OBJECTIVES = objectives()
every_objective = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if " " in name else []) for name in OBJECTIVES],
)
seeds = st.integers(0, 10_000)
CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64
UNITS = {"row": 1, "pair": 2, "group": 4}


@every_objective
@given(seed=seeds, cut=st.integers(1, ROWS - 1))
def test_cutting_into_parts_changes_nothing(name, seed, cut):
    one = case(OBJECTIVES[name], seed)
    unit = UNITS[one.objective.declared().couples]
    place = max(unit, cut // unit * unit)
    parts = [rows for rows in torch.arange(ROWS).split([place, ROWS - place]) if len(rows)]
    whole, cut_up = one.loss(), one.loss_of_parts(parts)
    assert_close(cut_up, whole, **CLOSE)
    assert_close(one.gradients(cut_up), one.gradients(whole), **CLOSE)


@every_objective
@given(seed=seeds)
def test_the_order_of_rows_changes_nothing(name, seed):
    one = case(OBJECTIVES[name], seed)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    other = reordered(one, order)
    assert_close(other.loss(), one.loss(), **CLOSE)
    back = order.argsort()
    for leaf, slope in other.gradients().items():
        assert_close(slope[back] if slope.dim() else slope, one.gradients()[leaf], **CLOSE)


@every_objective
@given(seed=seeds, before=st.integers(0, 2), after=st.integers(0, 2))
def test_padding_changes_nothing_whatever_is_in_it(name, seed, before, after):
    one = case(OBJECTIVES[name], seed)
    for fill in (0.0, float("nan"), -float("inf")):
        other = padded(one, before, after, fill)
        assert_close(other.loss(), one.loss(), **CLOSE)
        for leaf, slope in other.gradients().items():
            end = slope.shape[1] - after if slope.dim() else None
            inside = slope[:, before:end] if slope.dim() else slope
            assert_close(inside, one.gradients()[leaf], **CLOSE)
            assert slope.isfinite().all()


@every_objective
@given(seed=seeds)
def test_masked_positions_get_exactly_no_gradient(name, seed):
    one = case(OBJECTIVES[name], seed)
    mask, no = one.batch.mask, torch.zeros(ROWS, 1, dtype=torch.bool)
    assert not one.gradients()["logits"][:, :-1][~mask].any()
    states = torch.cat([mask, no], 1) | torch.cat([no, mask], 1)
    for head in one.heads:
        assert not one.gradients()[head][~states].any()


@every_objective
@given(seed=seeds)
def test_autograd_is_the_finite_difference(name, seed):
    one = case(OBJECTIVES[name], seed)
    with recorded() as stopped:
        slopes = one.gradients()
    step = 1e-6
    generator = torch.Generator().manual_seed(seed)
    for leaf, value in one.leaves().items():
        way = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        start, losses = value.detach().clone(), []
        for side in (-1.0, 0.0, 1.0):
            with torch.no_grad(), replayed(stopped):
                value.copy_(start + side * step * way)
                losses.append(one.loss())
        left, right = (losses[1] - losses[0]) / step, (losses[2] - losses[1]) / step
        if (right - left).abs() < 1e-4 * (1 + right.abs()):  # else a kink lies between
            slope = (slopes[leaf] * way).sum()
            # two losses of about 1 differ by rounding of 1e-16 / step = 1e-10, curvature aside
            assert_close(slope, (left + right) / 2, rtol=1e-5, atol=1e-6)


@every_objective
@given(seed=seeds)
def test_autograd_is_the_closed_form(name, seed):
    one = case(OBJECTIVES[name], seed)
    policy = one.policy()
    terms = one.objective(policy, one.batch)
    loss = total_loss(terms, one.objective.weights(terms, one.batch), one.batch)
    assert loss.isfinite()
    if one.objective.coefficient is None:
        return
    slopes = one.objective.slopes(policy, one.batch)
    reached: dict[str, torch.Tensor] = {}
    for place in ("logp", "logit", "entropy", "kl"):
        if (stream := getattr(policy, place)) is not None:
            reached[place] = stream
    reached |= {**policy.heads, **policy.scalars}
    found = torch.autograd.grad(loss, list(reached.values()), allow_unused=True)
    for (place, stream), slope in zip(reached.items(), found, strict=True):
        nothing = torch.zeros_like(stream)
        closed = slopes.get(place, nothing)
        assert_close(closed, nothing if slope is None else slope, **CLOSE)


@every_objective
def test_every_setting_survives_being_written_down(name):
    """Settings are numbers, words, truths and None: what a file can hold."""
    for part in ("loss", "keep", "credit", "weight", "average"):
        values = getattr(OBJECTIVES[name], part).settings.values()
        assert all(isinstance(value, float | int | str | bool | None) for value in values)
