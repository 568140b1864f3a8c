import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import batch, marks, ragged, same

from logratio import weight
from logratio.settings import Refused
from logratio.weight import WEIGHTS


def deciding(mask, importance, **settings):
    return weight.variance(batch(mask, importance=importance, reward=[0.0] * len(mask)), **settings)


def test_default_settings_and_needs():
    assert {name: part.resolved() for name, part in WEIGHTS.items()} == {
        "uniform": {},
        "variance": {
            "strength": 0.5, "form": "increment", "lowest": 0.1, "highest": 5.0, "over": "row"
        },
        "top_entropy": {"share": 0.2},
        "random": {"share": 0.2, "seed": 0},
    }  # fmt: skip
    assert [part.name for part in WEIGHTS.values()] == list(WEIGHTS)
    assert {name: set(part.declared().streams) for name, part in WEIGHTS.items()} == {
        "uniform": set(),
        "variance": {"importance"},
        "top_entropy": {"entropy"},
        "random": set(),
    }


def test_uniform_is_1_on_chosen_tokens():
    found = weight.uniform(batch(marks("x.x", "..."), reward=[0.0, 0.0]))
    same(found, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert found.dtype == torch.float64
    assert weight.uniform(batch(marks("x"))).dtype == torch.float32


# the variance mask


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # increments 0.4, 0.1, 0: relative to their mean 2.4, 0.6, 0
        ({"strength": 1.0, "lowest": 0.0}, [2.4, 0.6, 0.0]),
        ({"strength": 0.5}, [1.7, 0.8, 0.5]),
        ({}, [1.7, 0.8, 0.5]),
        ({"strength": 0.25}, [1.35, 0.9, 0.75]),
        ({"strength": 1.0}, [2.4 / 3.1 * 3, 0.6 / 3.1 * 3, 0.1 / 3.1 * 3]),
        ({"strength": 1.0, "lowest": 0.0, "highest": 1.5}, [1.5 / 2.1 * 3, 0.6 / 2.1 * 3, 0.0]),
        # unresolved 1, 0.6, 0.5: the column's first number stands before every token
        ({"form": "remaining", "strength": 1.0, "lowest": 0.0}, [0.7 / 0.6, 1.0, 0.5 / 0.6]),
    ],
)
def test_variance_mask_of_three_tokens(settings, expected):
    importance = [[0.3, 0.4, 0.5, 0.45, 7.0]]
    same(deciding(marks("xxx."), importance, **settings), [[*expected, 0.0]])


def test_a_mask_is_scaled_after_it_is_clipped():
    found = deciding(ragged(4), [[0.0, 1.0, 1.0, 1.0, 1.0]], strength=1.0, lowest=0.0, highest=2.0)
    same(found, [[4.0, 0.0, 0.0, 0.0]])  # 4 is clipped to 2, and the mean must be 1


def test_the_first_chosen_token_starts_from_importance_0():
    short = deciding(marks("xx"), [[0.3, 0.4, 1.0]], strength=1.0, lowest=0.0)
    padded = deciding(marks(".xx"), [[9.0, 0.3, 0.4, 1.0]], strength=1.0, lowest=0.0)
    same(short, [[0.8, 1.2]])
    same(padded, [[0.0, 0.8, 1.2]])


def test_tokens_that_the_policy_did_not_choose_have_no_say():
    found = deciding(marks("x.x"), [[0.0, 0.25, 0.5, 1.25]], strength=1.0, lowest=0.0)
    same(found, [[0.5, 0.0, 1.5]])  # 0.25 before the gap, 0.75 after it


def test_over_says_what_has_mean_1():
    mask, importance = marks("xx", "x."), [[0.0, 0.1, 0.4], [0.0, 0.2, 0.0]]
    settings = {"strength": 1.0, "lowest": 0.0}
    same(deciding(mask, importance, over="row", **settings), [[0.5, 1.5], [1.0, 0.0]])
    same(deciding(mask, importance, over="batch", **settings), [[0.5, 1.5], [1.0, 0.0]])
    importance = [[0.0, 0.1, 0.2], [0.0, 0.4, 0.0]]
    same(deciding(mask, importance, over="row", **settings), [[1.0, 1.0], [1.0, 0.0]])
    same(deciding(mask, importance, over="batch", **settings), [[0.5, 0.5], [2.0, 0.0]])


@pytest.mark.parametrize("form", ["increment", "remaining"])
def test_where_nothing_decides_every_token_weighs_1(form):
    flat = {"increment": 0.0, "remaining": 1.0}[form]
    for lowest in (0.0, 0.1):
        settings = {"form": form, "strength": 1.0, "lowest": lowest}
        found = deciding(marks("xx.", "..."), [[flat] * 4, [flat] * 4], **settings)
        assert found.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@given(
    seed=st.integers(0, 2**31 - 1),
    form=st.sampled_from(["increment", "remaining"]),
    over=st.sampled_from(["row", "batch"]),
)
def test_strength_0_is_weight_1_to_the_last_bit_and_the_mean_is_always_1(seed, form, over):
    source = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, 5, generator=source) < 0.7
    mask[:, 0] = True
    importance = torch.rand(3, 6, generator=source, dtype=torch.float64)
    assert deciding(mask, importance, strength=0.0, form=form, over=over).equal(mask.double())
    found = deciding(mask, importance, form=form, over=over)
    same(found[~mask].sum(), 0.0)
    rows = mask.sum(1) if over == "row" else mask.sum()
    same(found.sum(1) if over == "row" else found.sum(), rows.double())


def test_a_shrinking_importance_is_no_negative_weight():
    found = deciding(ragged(3), [[0.0, 0.5, 0.2, 0.4]], strength=1.0, lowest=0.0)
    same(found, [[0.5 / 0.7 * 3, 0.0, 0.2 / 0.7 * 3]])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("strength", 1.1, "a number in [0, 1]"),
        ("strength", -0.1, "a number in [0, 1]"),
        ("lowest", -0.1, "a number in [0, 1]"),
        ("lowest", 1.1, "a number in [0, 1]"),
        ("highest", 0.9, "a number in [1, inf)"),
        ("form", "decrement", "one of 'increment', 'remaining'"),
        ("over", "group", "one of 'row', 'batch'"),
    ],
)
def test_a_mask_beyond_its_bounds_is_refused(name, value, allowed):
    with pytest.raises(Refused) as refused:
        WEIGHTS["variance"].using(**{name: value})
    assert str(refused.value) == f"`{name}` is {value!r}, but it must be {allowed}"


def test_bounds_themselves_are_allowed():
    part = WEIGHTS["variance"].using(strength=1, lowest=1, highest=1)
    rows = batch(ragged(2), reward=[0.0], importance=[[0.0, 0.0, 1.0]])
    same(part(rows), [[1.0, 1.0]])
    WEIGHTS["variance"].using(strength=0, lowest=0)


# a share of the tokens


ENTROPY = [[0.5, 0.1, 0.9, 99.0], [0.3, 0.7, 99.0, 99.0]]
SPOTS = marks("xxx.", "xx..")


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, ["..x.", "...."]),
        (0.4, ["..x.", ".x.."]),
        (0.6, ["x.x.", ".x.."]),
        (1.0, ["xxx.", "xx.."]),
        (0.01, ["..x.", "...."]),  # at least one
        (0.29, ["..x.", "...."]),  # 1.45 tokens are one
        (0.31, ["..x.", ".x.."]),  # 1.55 are two
    ],
)
def test_top_entropy_takes_the_share_over_the_whole_batch(share, expected):
    rows = batch(SPOTS, reward=[0.0, 0.0], entropy=ENTROPY)
    same(weight.top_entropy(rows, share=share), marks(*expected).double())


def test_top_entropy_takes_a_fifth_by_default_and_all_of_a_tie():
    same(weight.top_entropy(batch(SPOTS, entropy=ENTROPY)), marks("..x.", "....").double())
    tied = batch(ragged(5), entropy=[[0.5, 0.2, 0.5, 0.1, 0.1]])
    same(weight.top_entropy(tied), marks("x.x..").double())


@pytest.mark.parametrize("name", ["top_entropy", "random"])
def test_no_token_no_weight(name):
    rows = batch(marks("..", ".."), entropy=[[1.0, 1.0]] * 2, reward=[0.0, 0.0])
    assert WEIGHTS[name](rows).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", ["top_entropy", "random"])
@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_a_share_is_above_0_and_at_most_1(name, share):
    with pytest.raises(Refused) as refused:
        WEIGHTS[name].using(share=share)
    assert str(refused.value) == f"`share` is {share}, but it must be a number in (0, 1]"
    WEIGHTS[name].using(share=1)


def test_random_takes_the_same_share_and_a_seed_decides_which():
    rows = batch(ragged(100, 60), reward=[0.0, 0.0])
    found = weight.random(rows)
    assert found.dtype == torch.float64
    assert found.sum() == 32
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert (found[~rows.mask] == 0).all()
    assert found.equal(weight.random(rows, seed=0))
    assert not found.equal(weight.random(rows, seed=1))
    assert weight.random(rows, share=0.5).sum() == 80
    assert weight.random(rows, share=1.0).equal(rows.mask.double())


def test_padding_does_not_change_which_tokens_a_seed_takes():
    short = weight.random(batch(ragged(4, 7), reward=[0.0, 0.0]), share=0.5)
    long = weight.random(batch(ragged(4, 7, longest=30), reward=[0.0, 0.0]), share=0.5)
    same(long[:, :7], short)
    same(long[:, 7:], torch.zeros(2, 23))
