from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import marks, ragged, same

from logratio.numerics import (
    at_next_state,
    backward_scan,
    group_extreme,
    group_index,
    group_log_mean_exp,
    group_mean,
    group_sum,
    last_token,
    masked_mean,
    masked_sum,
    recorded,
    replayed,
    stop,
    trace_return,
)

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 9)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(seed, rows, tokens):
    return drawn(seed, rows, tokens) > -0.3


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
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, torch.nan], [9.0, 7.0, 9.0]])
    mask = marks("x.x", "xx.", ".x.")
    same(masked_sum(values, mask), [5.0, 4.0, 7.0])
    same(masked_mean(values, mask), [2.5, 2.0, 7.0])


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


@given(seed=seeds, tokens=sizes)
def test_at_next_state_is_the_loop(seed, tokens):
    states, mask, last = drawn(seed, 3, tokens + 1), holes(seed, 3, tokens), drawn(seed + 1, 3)
    expected = torch.zeros(3, tokens, dtype=torch.float64)
    for row in range(3):
        chosen = mask[row].nonzero().flatten().tolist()
        for here, following in pairwise(chosen):
            expected[row, here] = states[row, following]
        expected[row, chosen[-1:]] = last[row]
    same(at_next_state(states, mask, last), expected)


def test_at_next_state_never_reads_a_pad():
    states = torch.tensor([[1.0, 2.0, torch.nan, torch.nan]])
    same(at_next_state(states, marks("xx."), torch.tensor([5.0])), [[2.0, 5.0, 0.0]])


def test_trace_return_mixes_the_next_state_with_the_return_from_there():
    states, last = torch.tensor([[9.0, 1.0, 2.0, 7.0]]), torch.tensor([4.0])
    same(trace_return(states, marks("xxx"), last, trace=0.0), [[1.0, 2.0, 4.0]])
    same(trace_return(states, marks("xxx"), last, trace=1.0), [[4.0, 4.0, 4.0]])
    same(trace_return(states, marks("xxx"), last, trace=0.5), [[2.0, 3.0, 4.0]])


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
    _, size = group_log_mean_exp(torch.tensor([1.0, 0.5]).log(), torch.tensor([0, 0]))
    same(size, [1.8, 1.8])  # 1.5^2 / (1 + 1/4)


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


@given(seed=seeds, shift=st.floats(-50, 50))
def test_log_mean_exp_moves_with_its_values(seed, shift):
    values, group = drawn(seed, 6), torch.tensor([0, 1, 0, 1, 1, 1])
    value, size = group_log_mean_exp(values, group)
    moved, moved_size = group_log_mean_exp(values + shift, group)
    same(moved, value + shift)
    same(moved_size, size)


def test_ragged_rows_are_what_the_tests_say_they_are():
    assert ragged(2, 3).equal(marks("xx.", "xxx"))
