"""The curves that losses are made of: the clipped surrogate, KL estimators, cross-entropies."""

import pytest
import torch
from samples import same

from logratio.numerics import (
    LARGEST_LOG_RATIO,
    clipped_surrogate,
    kl_estimate,
    log1mexp,
    nucleus,
    soft_cross_entropy,
)


def slope_of(function, at):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


# the clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # on policy the slope is A
        (1.2, 2.0, 2.4, 2.4),  # inside
        (1.5, 2.0, 2.6, 0.0),  # a good token raised enough: 1.3 A, no slope
        (1.5, 0.5, 0.65, 0.0),
        (0.5, 2.0, 1.0, 1.0),  # a good token lowered: pulled back
        (1.0, -2.0, -2.0, -2.0),
        (0.9, -2.0, -1.8, -1.8),  # inside
        (0.5, -2.0, -1.6, 0.0),  # a bad token lowered enough: 0.8 A, no slope
        (1.5, -2.0, -3.0, -3.0),  # a bad token raised: pushed back, unclipped
        (1.5, 0.0, 0.0, 0.0),
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_on_each_side_of_an_asymmetric_clip(ratio, advantage, surrogate, slope):
    log_ratio, good = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    value, gradient = clipped_surrogate(log_ratio, good, low=0.2, high=0.3)
    same(value, [[surrogate]])
    same(gradient, [[slope]])
    same(slope_of(lambda x: clipped_surrogate(x, good, low=0.2, high=0.3)[0], log_ratio), [[slope]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual"), [(1.5, 1.0, None), (0.5, -1.0, None), (1.5, -1.0, 1.5)]
)
def test_a_ratio_at_the_clip_itself_still_learns(ratio, advantage, dual):
    log_ratio, good = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    assert log_ratio.exp().item() == ratio
    _, slope = clipped_surrogate(log_ratio, good, low=0.5, high=0.5, dual=dual)
    same(slope, [[ratio * advantage]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (2.0, -1.0, -2.0, -2.0),  # below the cap
        (4.0, -1.0, -3.0, 0.0),  # a bad token raised beyond: the loss stops growing
        (4.0, -2.0, -6.0, 0.0),
        (4.0, 1.0, 1.2, 0.0),  # a good token knows no dual cap
        (4.0, 0.5, 0.6, 0.0),
        (2.0, 1.0, 1.2, 0.0),
        (0.5, -1.0, -0.8, 0.0),
    ],
)
def test_dual_clip_caps_the_loss_of_bad_tokens_only(ratio, advantage, surrogate, slope):
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log()
    good = torch.tensor([[advantage]], dtype=torch.float64)
    value, gradient = clipped_surrogate(log_ratio, good, low=0.2, high=0.2, dual=3.0)
    same(value, [[surrogate]])
    same(gradient, [[slope]])
    dual = {"low": 0.2, "high": 0.2, "dual": 3.0}
    same(slope_of(lambda x: clipped_surrogate(x, good, **dual)[0], log_ratio), [[slope]])


HELD = -485165194.4097903  # e^20


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "dual", "surrogate", "slope"),
    [
        (200.0, 1.0, None, 1.2, 0.0),
        (200.0, 0.0, None, 0.0, 0.0),
        (200.0, -1.0, 3.0, -3.0, 0.0),
        (200.0, -1.0, None, HELD, 0.0),
        (20.0, -1.0, None, HELD, HELD),  # the last ratio that is followed
        (-200.0, 1.0, None, 0.0, 0.0),
    ],
)
def test_a_ratio_beyond_every_number_gives_no_nan(log_ratio, advantage, dual, surrogate, slope):
    at, good = torch.tensor([[log_ratio]]), torch.tensor([[advantage]])
    clips = {"low": 0.2, "high": 0.2, "dual": dual}
    value, gradient = clipped_surrogate(at, good, **clips)
    same(value, [[surrogate]])
    same(gradient, [[slope]])
    same(slope_of(lambda x: clipped_surrogate(x, good, **clips)[0], at), [[slope]])


# KL estimators

LOG_X = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)  # log of reference over policy
KL_VALUES = {
    "k1": [[1.0, 0.0, -2.0]],
    "k2": [[0.5, 0.0, 2.0]],
    "k3": [[0.3678794412, 0.0, 4.3890560989]],  # x - 1 - log x
}
KL_SLOPES = {
    "k1": [[1.0, 1.0, 1.0]],
    "k2": [[1.0, 0.0, -2.0]],
    "k3": [[0.6321205588, 0.0, -6.3890560989]],  # 1 - x
}


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimate_and_its_slope(estimator):
    logp = torch.full_like(LOG_X, -1.5)
    value, slope = kl_estimate(logp, logp + LOG_X, estimator=estimator)
    same(value, KL_VALUES[estimator])
    same(slope, KL_SLOPES[estimator])
    ref = logp + LOG_X
    same(slope_of(lambda x: kl_estimate(x, ref, estimator=estimator)[0], logp), slope)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_corrected_kl_and_its_slope_are_weighed_by_the_ratio(estimator):
    logp = torch.full_like(LOG_X, -1.5)
    ref, old = logp + LOG_X, logp - torch.tensor([[2.0, 0.5, 1.0]]).log()
    plain, pull = kl_estimate(logp, ref, estimator=estimator)
    value, slope = kl_estimate(logp, ref, estimator=estimator, log_ratio=logp - old)
    ratio = torch.tensor([[2.0, 0.5, 1.0]])
    same(value, ratio * plain)
    same(slope, ratio * (plain + pull))
    weighed = slope_of(
        lambda x: kl_estimate(x, ref, estimator=estimator, log_ratio=x - old)[0], logp
    )
    same(weighed, slope)


def test_k3_stops_growing_where_it_would_overflow():
    assert LARGEST_LOG_RATIO == 20.0
    logp = torch.zeros(1, 3, dtype=torch.float64)
    ref = torch.tensor([[20.0, 20.5, 800.0]], dtype=torch.float64)
    value, slope = kl_estimate(logp, ref, estimator="k3")
    most = 485165194.4097903 - 21  # e^20 - 1 - 20
    same(value, [[most, most, most]])
    same(slope, [[-485165194.4097903 + 1, 0.0, 0.0]])
    same(slope_of(lambda x: kl_estimate(x, ref, estimator="k3")[0], logp), slope)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_corrected_kl_holds_its_ratio_where_that_would_overflow(estimator):
    logp = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    ref, old = logp - 1, torch.tensor([[-20.0, -21.0, -900.0]], dtype=torch.float64)
    plain, pull = kl_estimate(logp, ref, estimator=estimator)
    value, slope = kl_estimate(logp, ref, estimator=estimator, log_ratio=logp - old)
    largest = 485165194.4097903  # e^20
    same(value, largest * plain)
    same(slope, largest * (pull + plain * torch.tensor([[1.0, 0.0, 0.0]])))
    weighed = slope_of(
        lambda x: kl_estimate(x, ref, estimator=estimator, log_ratio=x - old)[0], logp
    )
    same(weighed, slope)


def test_the_exact_kl_is_not_estimated():
    with pytest.raises(
        ValueError, match=r"^the exact KL is read from the head, it is not estimated from a sample$"
    ):
        kl_estimate(LOG_X, LOG_X, estimator="exact")


# cross-entropy, nucleus, log1mexp


def test_soft_cross_entropy_inside():
    half, quarter = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    value, slope = soft_cross_entropy(half, quarter, edge=0.01)
    same(value, [0.6931471806])  # both outcomes have log 2
    same(slope, [0.5])  # (1/2 - 1/4) / (1 - 1/2)


def test_soft_cross_entropy_goes_on_as_a_line_past_its_edge():
    target = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64).log()
    x = torch.tensor([-0.5, 0.0, 2.0], dtype=torch.float64)
    value, slope = soft_cross_entropy(x, target, edge=0.5)
    steep = (0.6065306597 - 0.5) / 0.3934693403
    at_edge = 0.5 * 0.5 + 0.5 * 0.9327521296  # -log p = 1/2, -log(1 - p) = 0.9328
    same(value, [at_edge, at_edge + 0.5 * steep, at_edge + 2.5 * steep])
    same(slope, [steep] * 3)
    same(slope_of(lambda at: soft_cross_entropy(at, target, edge=0.5)[0], x), slope)


def test_soft_cross_entropy_of_sure_success_and_failure():
    x, target = torch.tensor([-0.5, -0.5]), torch.tensor([0.0, -torch.inf])
    value, slope = soft_cross_entropy(x, target, edge=0.01)
    same(value, [0.5, 0.9327521296])  # -log p and -log(1 - p)
    same(slope, [-1.0, 1.5414940825])  # -1 and p / (1 - p)


ROW = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]).log()


@pytest.mark.parametrize(
    ("top_p", "top_k", "count"),
    [(0.4, None, 1), (0.6, None, 2), (0.9, None, 3), (1.0, None, 4), (0.9, 2, 2), (1.0, 1, 1),
     (0.4, 3, 1), (1e-9, None, 1), (1.0, 9, 4)],
)  # fmt: skip
def test_nucleus_is_the_fewest_likely_tokens_that_hold_top_p(top_p, top_k, count):
    chosen = torch.arange(4) < count
    assert nucleus(ROW, top_p=top_p, top_k=top_k).equal(torch.stack([chosen, chosen.flip(0)]))


def test_nucleus_ends_where_its_share_is_reached():
    row = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64).log()
    assert nucleus(row, top_p=0.5, top_k=None).tolist() == [[True, False, False, False]]
    assert nucleus(row, top_p=1.0, top_k=None).tolist() == [[True] * 4]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-1e-12, -27.63102111592905),  # log 1e-12 - 5e-13
        (-0.5, -0.9327521295671886),
        (-0.6931471805599453, -0.6931471805599453),  # log 1/2, where the two formulas meet
        (-1.0, -0.4586751453870819),
        (-40.0, -4.248354255291589e-18),  # -e^-40
        (-800.0, 0.0),
    ],
)
def test_log1mexp_is_accurate_to_the_last_digits(x, expected):
    value = log1mexp(torch.tensor([x], dtype=torch.float64))
    assert value.item() == pytest.approx(expected, rel=1e-15, abs=0)


def test_log1mexp_has_a_finite_slope_at_both_ends():
    x = torch.tensor([-1e-6, -1.0, -800.0], dtype=torch.float64)
    same(slope_of(log1mexp, x), [-999999.5000000833, -0.5819767069, 0.0])
