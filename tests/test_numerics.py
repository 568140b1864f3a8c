import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import marks, quickly, ragged, same

from logratio.numerics import (
    LARGEST_LOG_RATIO,
    at_next_state,
    backward_scan,
    clipped_surrogate,
    group_extreme,
    group_index,
    group_log_mean_exp,
    group_mean,
    group_sum,
    kl_estimate,
    last_token,
    log1mexp,
    masked_mean,
    masked_sum,
    nucleus,
    recorded,
    replayed,
    soft_cross_entropy,
    stop,
    trace_return,
)

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 9)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(seed, rows, tokens):
    return drawn(seed, rows, tokens) > -0.3


def slope_of(function, at):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


# stop


def test_stop_gives_the_value_without_its_gradient():
    value = torch.tensor([2.0], requires_grad=True)
    assert stop(value).equal(value.detach())
    assert not stop(value).requires_grad


def test_recorded_keeps_what_was_stopped_in_order_and_only_inside():
    with recorded() as kept:
        stop(torch.tensor([1.0]))
        stop(torch.tensor([2.0], requires_grad=True))
    stop(torch.tensor([3.0]))
    assert [value.item() for value in kept] == [1.0, 2.0]
    assert not kept[1].requires_grad


def test_replayed_returns_the_values_whatever_it_is_given_and_only_inside():
    with replayed([torch.tensor([1.0]), torch.tensor([2.0])]):
        assert stop(torch.tensor([7.0])).item() == 1.0
        assert stop(torch.tensor([8.0])).item() == 2.0
    assert stop(torch.tensor([9.0])).item() == 9.0


def test_a_recording_ends_with_an_error_inside():
    with pytest.raises(RuntimeError, match="inside"), recorded() as kept:
        raise RuntimeError("inside")
    with pytest.raises(RuntimeError, match="inside"), replayed([]):
        raise RuntimeError("inside")
    assert stop(torch.tensor([1.0])).item() == 1.0
    assert kept == []


# sums over tokens


def test_masked_sum_and_mean_count_chosen_tokens_only():
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, torch.nan]])
    mask = marks("x.x", "xx.")
    same(masked_sum(values, mask), [5.0, 4.0])
    same(masked_mean(values, mask), [2.5, 2.0])


def test_a_row_without_tokens_has_sum_and_mean_0():
    values, mask = torch.tensor([[torch.nan, torch.inf]]), marks("..")
    assert masked_sum(values, mask).tolist() == [0.0]
    assert masked_mean(values, mask).tolist() == [0.0]


def test_sums_and_means_keep_their_precision():
    for dtype in (torch.float32, torch.float64):
        values = torch.ones(1, 2, dtype=dtype)
        assert masked_sum(values, marks("xx")).dtype == dtype
        assert masked_mean(values, marks("xx")).dtype == dtype


def test_last_token_is_the_last_chosen_one():
    mask = marks("xxx", "x..", ".x.", "x.x", "...")
    assert last_token(mask).equal(marks("..x", "x..", ".x.", "..x", "..."))


# scans


@quickly
@given(seed=seeds, rows=st.integers(1, 3), tokens=sizes)
def test_backward_scan_is_the_loop_from_the_end(seed, rows, tokens):
    values, factors = drawn(seed, rows, tokens), drawn(seed + 1, rows, tokens)
    expected, ahead = torch.zeros_like(values), torch.zeros(rows, dtype=torch.float64)
    for place in reversed(range(tokens)):
        ahead = values[:, place] + factors[:, place] * ahead
        expected[:, place] = ahead
    same(backward_scan(values, factors), expected)


def test_backward_scan_leaves_its_arguments_alone():
    values, factors = torch.tensor([[1.0, 2.0, 3.0]]), torch.full((1, 3), 0.5)
    same(backward_scan(values, factors), [[2.75, 3.5, 3.0]])
    assert values.tolist() == [[1.0, 2.0, 3.0]]
    assert factors.tolist() == [[0.5, 0.5, 0.5]]


def test_backward_scan_of_ten_thousand_tokens_counts_them():
    ones = torch.ones(1, 10_000)
    same(backward_scan(ones, ones)[0, [0, 9_999]], [10_000.0, 1.0])


def test_at_next_state_skips_tokens_that_the_policy_did_not_choose():
    states = torch.tensor([[10.0, 11.0, 12.0, 13.0, 14.0]] * 4)
    mask = marks("xxxx", "x.xx", ".xx.", "....")
    expected = [
        [11.0, 12.0, 13.0, -1.0],
        [12.0, 0.0, 13.0, -1.0],
        [0.0, 12.0, -1.0, 0.0],
        [0.0] * 4,
    ]
    same(at_next_state(states, mask, torch.full((4,), -1.0)), expected)


@quickly
@given(seed=seeds, tokens=sizes)
def test_at_next_state_is_the_loop(seed, tokens):
    states, mask, last = drawn(seed, 3, tokens + 1), holes(seed, 3, tokens), drawn(seed + 1, 3)
    expected = torch.zeros(3, tokens, dtype=torch.float64)
    for row in range(3):
        chosen = mask[row].nonzero().flatten().tolist()
        for here, following in zip(chosen, [*chosen[1:], None], strict=True):
            expected[row, here] = last[row] if following is None else states[row, following]
    same(at_next_state(states, mask, last), expected)


def test_at_next_state_never_reads_a_pad():
    states = torch.tensor([[1.0, 2.0, torch.nan, torch.nan]])
    same(at_next_state(states, marks("xx."), torch.tensor([5.0])), [[2.0, 5.0, 0.0]])


def test_trace_return_mixes_the_next_state_with_the_return_from_there():
    states, last = torch.tensor([[9.0, 1.0, 2.0, 7.0]]), torch.tensor([4.0])
    same(trace_return(states, marks("xxx"), last, trace=0.0), [[1.0, 2.0, 4.0]])
    same(trace_return(states, marks("xxx"), last, trace=1.0), [[4.0, 4.0, 4.0]])
    same(trace_return(states, marks("xxx"), last, trace=0.5), [[2.0, 3.0, 4.0]])


@quickly
@given(seed=seeds, tokens=sizes, trace=st.floats(0, 1))
def test_trace_return_is_the_loop(seed, tokens, trace):
    states, mask, last = drawn(seed, 3, tokens + 1), holes(seed, 3, tokens), drawn(seed + 1, 3)
    expected = torch.zeros(3, tokens, dtype=torch.float64)
    for row in range(3):
        following = None
        for here in reversed(mask[row].nonzero().flatten().tolist()):
            expected[row, here] = last[row]
            if following is not None:
                ahead = (1 - trace) * states[row, following]
                expected[row, here] = ahead + trace * expected[row, following]
            following = here
    same(trace_return(states, mask, last, trace=trace), expected)


# groups


def test_groups_are_counted_whatever_their_ids_and_order():
    index, size = group_index(torch.tensor([7, 3, 7, -1]))
    assert index.tolist() == [2, 1, 2, 0]
    assert size.tolist() == [2, 1, 2, 1]


def test_sum_mean_and_extremes_of_each_group_stand_at_its_items():
    values, group = torch.tensor([1.0, 2.0, 5.0, -4.0]), torch.tensor([7, 3, 7, 3])
    same(group_sum(values, group), [6.0, -2.0, 6.0, -2.0])
    same(group_mean(values, group), [3.0, -1.0, 3.0, -1.0])
    same(group_extreme(values, group, largest=True), [5.0, 2.0, 5.0, 2.0])
    same(group_extreme(values, group, largest=False), [1.0, -4.0, 1.0, -4.0])


def test_extremes_know_no_zero_of_their_own():
    below, above, group = torch.tensor([-3.0, -2.0]), torch.tensor([3.0, 2.0]), torch.tensor([0, 0])
    same(group_extreme(below, group, largest=True), [-2.0, -2.0])
    same(group_extreme(above, group, largest=False), [2.0, 2.0])


def test_log_mean_exp_is_the_soft_mean_with_its_effective_sample_size():
    values = torch.tensor([0.0, 3.0, 0.0, 3.0]).log()
    value, size = group_log_mean_exp(values, torch.tensor([0, 0, 0, 0]))
    same(value.exp(), [1.5] * 4)  # the mean of 0, 3, 0, 3
    same(size, [2.0] * 4)  # two of the four carry it


def test_log_mean_exp_overflows_nowhere():
    group = torch.tensor([0, 0, 1, 1])
    value, size = group_log_mean_exp(torch.tensor([900.0, 900.0, -900.0, -1e9]), group)
    same(value, [900.0, 900.0, -900.693147, -900.693147])
    same(size, [2.0, 2.0, 1.0, 1.0])


def test_log_mean_exp_of_nothing_but_failures_is_minus_infinity():
    """An outcome with log-reward minus infinity is one that must not happen."""
    value, size = group_log_mean_exp(torch.full((3,), -torch.inf), torch.tensor([0, 0, 1]))
    same(value, [-torch.inf] * 3)
    same(size, [0.0] * 3)


@quickly
@given(seed=seeds, shift=st.floats(-50, 50))
def test_log_mean_exp_moves_with_its_values(seed, shift):
    values, group = drawn(seed, 6), torch.tensor([0, 1, 0, 1, 1, 1])
    value, size = group_log_mean_exp(values, group)
    moved, moved_size = group_log_mean_exp(values + shift, group)
    same(moved, value + shift)
    same(moved_size, size)


# the clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # on policy the slope is A
        (1.2, 2.0, 2.4, 2.4),  # inside
        (1.5, 2.0, 2.6, 0.0),  # a good token raised enough: 1.3 A, no slope
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


@pytest.mark.parametrize(("ratio", "advantage"), [(1.5, 1.0), (0.5, -1.0)])
def test_a_ratio_at_the_clip_itself_still_learns(ratio, advantage):
    log_ratio, good = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    assert log_ratio.exp().item() == ratio
    _, slope = clipped_surrogate(log_ratio, good, low=0.5, high=0.5)
    same(slope, [[ratio * advantage]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope"),
    [
        (2.0, -1.0, -2.0, -2.0),  # below the cap
        (3.0, -1.0, -3.0, -3.0),  # at the cap
        (4.0, -1.0, -3.0, 0.0),  # a bad token raised beyond: the loss stops growing
        (4.0, 1.0, 1.2, 0.0),  # a good token knows no dual cap
        (2.0, 1.0, 1.2, 0.0),
        (0.5, -1.0, -0.8, 0.0),
    ],
)
def test_dual_clip_caps_the_loss_of_bad_tokens_only(ratio, advantage, surrogate, slope):
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log()
    good = torch.tensor([[advantage]], dtype=torch.float64)
    value, gradient = clipped_surrogate(log_ratio, good, low=0.2, high=0.2, dual=3.0)
    same(value, [[surrogate]])
    if ratio != 3.0:  # autograd shares the slope of a tie
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
    with pytest.raises(ValueError, match="the exact KL is read from the head, it is not estimated"):
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


def test_ragged_rows_are_what_the_tests_say_they_are():
    assert ragged(2, 3).equal(marks("xx.", "xxx"))
