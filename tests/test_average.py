import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import batch, marks, ragged, same

from logratio import average
from logratio.average import AVERAGES
from logratio.settings import Refused

SETTINGS = {"fixed_length": {"length": 8}}
TOKEN_AVERAGES = ["per_token", "per_sequence", "fixed_length", "per_group_token", "summed"]
token_averages = pytest.mark.parametrize("name", TOKEN_AVERAGES)


def part(name, **settings):
    return AVERAGES[name].using(**SETTINGS.get(name, {}), **settings)


def weights(name, rows, unit="token", **settings):
    return part(name, **settings)(rows, unit)


TWO = {"mask": marks("xx....", "xxxxxx"), "reward": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("name", "first", "second", "total"),
    [
        ("per_token", 1.0, 1.0, 8.0),
        ("per_sequence", 1 / 2, 1 / 6, 2.0),
        ("fixed_length", 1 / 8, 1 / 8, 2.0),
        ("per_group_token", 1 / 8, 1 / 8, 1.0),
        ("summed", 1.0, 1.0, 2.0),
    ],
)
def test_weights_of_responses_of_two_and_six_tokens(name, first, second, total):
    found = weights(name, batch(**TWO))
    same(found.each, [[first] * 2 + [0.0] * 4, [second] * 6])
    same(found.total, total)


def test_per_sequence_is_the_mean_of_each_row_whatever_its_length():
    found = weights("per_sequence", batch(marks("x...", "x.x.", "xxxx"), reward=[0.0] * 3))
    same(found.each, [[1.0, 0, 0, 0], [0.5, 0, 0.5, 0], [0.25] * 4])
    same(found.total, 3.0)


def test_per_group_token_gives_each_prompt_the_same_say():
    mask = marks("xx..", "xx..", "x...", "....", "....")
    found = weights("per_group_token", batch(mask, group=[4, 4, 1, 0, 0], reward=[0.0] * 5))
    same(found.each, [[0.25, 0.25, 0, 0]] * 2 + [[1.0, 0, 0, 0], [0.0] * 4, [0.0] * 4])
    same(found.total, 2.0)  # two prompts have tokens


def test_per_group_token_divides_by_a_whole_number_of_prompts():
    """In float32 the weights of these rows add up to 2.9999998."""
    rows = batch(ragged(41, 47, 49), group=[0, 1, 2], dtype=torch.float32)
    found = weights("per_group_token", rows)
    assert found.total.item() == 3.0


def test_per_sequence_of_sequences_counts_rows_with_tokens():
    found = weights("per_sequence", batch(marks("xx", "..", ".x"), reward=[0.0] * 3), "sequence")
    same(found.each, [1.0, 0.0, 1.0])
    same(found.total, 2.0)


def test_per_pair_weighs_the_first_row_of_each_whole_pair():
    mask = marks("x.", "xx", "xx", "..", "x.")
    found = weights("per_pair", batch(mask, pair=[1, 0, 2, 3, -1], reward=[0.0] * 5), "pair")
    same(found.each, [0.0, 1.0, 0.0, 0.0, 0.0])
    same(found.total, 1.0)


@pytest.mark.parametrize("name", ["per_sequence", "summed"])
def test_drawn_divides_by_what_was_sampled_rather_than_kept(name):
    rows = batch(marks("xx", "x.", ".."), reward=[0.0] * 3, drawn=[4.0, 2.0, 9.0])
    found, kept = weights(name, rows, count="drawn"), weights(name, rows)
    same(found.each, kept.each)
    same(found.total, 6.0)
    same(kept.total, 2.0)
    assert weights(name, rows, count="kept").total == kept.total


def test_drawn_counts_for_sequences_too():
    rows = batch(marks("xx", "x."), reward=[0.0] * 2, drawn=[4.0, 1.0])
    same(weights("per_sequence", rows, "sequence", count="drawn").total, 5.0)


CUT = {"group": [0, 0, 1, 1], "reward": [0.0] * 4, "pair": [0, 1, 2, 3]}


@pytest.mark.parametrize("name", [*TOKEN_AVERAGES, "per_pair"])
def test_rows_left_out_as_truncated_train_nothing_and_count_for_nothing(name):
    unit = "pair" if name == "per_pair" else "token"
    rows = batch(ragged(2, 3, 1, 4), truncated=[0.0, 0.0, 1.0, 1.0], **CUT)
    found = weights(name, rows, unit, truncated="leave_out")
    alone = weights(name, rows.rows(slice(0, 2)), unit)
    same(found.each[:2], alone.each)
    assert (found.each[2:] == 0).all()
    same(found.total, alone.total)
    counted = weights(name, rows, unit)
    assert (counted.each[2:] > 0).any()
    assert counted.total > found.total


def test_a_pair_with_a_truncated_side_is_left_out():
    rows = batch(ragged(2, 3, 1, 4), truncated=[0.0, 1.0, 0.0, 0.0], **CUT)
    found = weights("per_pair", rows, "pair", truncated="leave_out")
    same(found.each, [0.0, 0.0, 1.0, 0.0])
    same(found.total, 1.0)


def test_truncated_may_be_a_truth_value_or_a_number():
    for truncated in ([False, True], [0, 1], [0.0, 1.0]):
        rows = batch(ragged(1, 1), reward=[0.0, 0.0], truncated=truncated)
        same(weights("per_token", rows, truncated="leave_out").each, [[1.0], [0.0]])


@token_averages
def test_a_batch_without_tokens_weighs_nothing_and_divides_by_nothing(name):
    found = weights(name, batch(marks("..", ".."), reward=[0.0, 0.0]))
    same(found.each, [[0.0, 0.0]] * 2)
    same(found.total, 0.0)


@token_averages
@given(
    lengths=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    cut=st.sampled_from([2, 4]),
)
def test_totals_and_weights_of_a_batch_are_those_of_its_parts(name, lengths, cut):
    rows = batch(ragged(*lengths, longest=5), group=[0, 0, 1, 1, 2, 2], reward=[0.0] * 6)
    whole = weights(name, rows)
    parts = [weights(name, rows.rows(slice(0, cut))), weights(name, rows.rows(slice(cut, None)))]
    same(whole.total, parts[0].total + parts[1].total)
    same(whole.each, torch.cat([parts[0].each, parts[1].each]))


@token_averages
@given(lengths=st.lists(st.integers(0, 4), min_size=4, max_size=4), order=st.permutations(range(4)))
def test_order_and_padding_do_not_matter(name, lengths, order):
    group = torch.tensor([0, 0, 1, 1])
    rows = batch(ragged(*lengths, longest=4), group=group, reward=[0.0] * 4)
    mixed = ragged(*(lengths[i] for i in order), longest=9)
    found = weights(name, batch(mixed, group=group[list(order)], reward=[0.0] * 4))
    plain = weights(name, rows)
    same(found.each[:, :4], plain.each[list(order)])
    same(found.each[:, 4:], torch.zeros(4, 5))
    same(found.total, plain.total)


@token_averages
def test_weights_take_the_precision_of_the_batch(name):
    for dtype in (torch.float32, torch.float64):
        found = weights(name, batch(ragged(2, 3), reward=[0.0, 0.0], dtype=dtype))
        assert found.each.dtype == found.total.dtype == dtype
    rows = batch(ragged(2), reward=[0.0])
    assert weights("per_sequence", rows, "sequence").each.dtype == torch.float64
    paired = batch(ragged(2, 2), reward=[0.0, 0.0], pair=[0, 1])
    assert weights("per_pair", paired, "pair").each.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "unit", "wanted"),
    [
        ("per_token", "sequence", "token"),
        ("per_token", "pair", "token"),
        ("per_sequence", "pair", "token or a sequence"),
        ("per_pair", "token", "pair"),
        ("per_pair", "sequence", "pair"),
        ("fixed_length", "sequence", "token"),
        ("per_group_token", "sequence", "token"),
        ("summed", "pair", "token"),
    ],
)
def test_an_average_of_another_kind_of_item_is_refused(name, unit, wanted):
    says = f"^`average` is `{name}`, which averages the losses of a {wanted}, not of a {unit}$"
    with pytest.raises(Refused, match=says):
        weights(name, batch(ragged(1, 1), pair=[0, 1], reward=[0.0, 0.0]), unit)


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("per_token", {"truncated": "count"}),
        ("per_sequence", {"truncated": "count", "count": "kept"}),
        ("per_pair", {"truncated": "count"}),
        ("fixed_length", {"length": 8, "truncated": "count"}),
        ("per_group_token", {"truncated": "count"}),
        ("summed", {"truncated": "count", "count": "kept"}),
    ],
)
def test_default_settings_and_needs(name, defaults):
    assert AVERAGES[name].name == name
    assert part(name).resolved() == defaults
    assert part(name).declared().streams == set()
    assert part(name, truncated="leave_out").declared().streams == {"truncated"}
    if "count" in defaults:
        assert part(name, count="drawn").declared().streams == {"drawn"}
        both = part(name, count="drawn", truncated="leave_out")
        assert both.declared().streams == {"truncated", "drawn"}


def test_every_average_is_in_the_table():
    assert set(AVERAGES) == {*TOKEN_AVERAGES, "per_pair"}


@pytest.mark.parametrize("length", [0, -1, 1.5])
def test_a_fixed_length_is_a_whole_number_from_1(length):
    with pytest.raises(Refused, match=rf"`length` is {length}, but it must be a whole number in"):
        AVERAGES["fixed_length"].using(length=length)
    assert AVERAGES["fixed_length"].using(length=1).resolved()["length"] == 1


def test_defaults_hold_for_a_plain_call():
    rows = batch(ragged(1, 2), reward=[0.0, 0.0], truncated=[1.0, 1.0], drawn=[5.0, 5.0])
    assert average.per_token(rows, "token").total == 3
    assert average.per_sequence(rows, "token").total == 2
    assert average.per_group_token(rows, "token").total == 1
    assert average.summed(rows, "token").total == 2
    assert average.fixed_length(rows, "token", length=2).total == 2
