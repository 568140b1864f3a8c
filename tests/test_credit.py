import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import batch, marks, ragged, rewarded, same

from logratio import credit
from logratio.credit import CREDITS
from logratio.part import Refused

rewards = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=6, max_size=6)
OWNERS = [4, 2, 4, 2, 2, 4]
spreads = pytest.mark.parametrize("spread", ["population", "sample", "batch", "none"])


def advantages(found):
    """Returns the first token's advantage of every row."""
    return found["advantage"][:, 0]


def outcome(*numbers, group=None, **settings):
    return advantages(credit.group(rewarded(*numbers, group=group), **settings))


# the defaults, and what each credit reads and makes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", {}),
        ("plain", {}),
        (
            "group",
            {
                "center": "mean",
                "spread": "population",
                "kl": 0.0,
                "estimator": "k1",
                "signed": False,
                "overlong_limit": None,
                "overlong_cache": None,
            },
        ),
        ("process", {"spread": "population"}),
        (
            "gae",
            {
                "discount": 1.0,
                "trace": 0.95,
                "kl": 0.05,
                "estimator": "k1",
                "rewards": "outcome",
                "truncated": "end",
                "whiten": True,
            },
        ),
        ("pairs", {"corrected": True}),
    ],
)
def test_default_settings(name, expected):
    assert CREDITS[name].name == name
    assert CREDITS[name].resolved() == expected


@pytest.mark.parametrize(
    ("name", "settings", "streams", "makes"),
    [
        ("none", {}, set(), set()),
        ("plain", {}, {"reward"}, {"advantage"}),
        ("group", {}, {"reward"}, {"advantage"}),
        ("group", {"kl": 0.1}, {"reward", "old", "ref"}, {"advantage"}),
        ("group", {"kl": 0.1, "estimator": "exact"}, {"reward", "old_kl"}, {"advantage"}),
        ("group", {"estimator": "exact"}, {"reward"}, {"advantage"}),
        ("process", {}, {"reward", "step_reward", "step_end"}, {"advantage"}),
        ("gae", {}, {"reward", "value", "old", "ref"}, {"advantage", "returns"}),
        ("gae", {"kl": 0.0}, {"reward", "value"}, {"advantage", "returns"}),
        ("gae", {"estimator": "exact"}, {"reward", "value", "old_kl"}, {"advantage", "returns"}),
        (
            "gae",
            {"kl": 0.0, "rewards": "steps", "truncated": "bootstrap"},
            {"step_reward", "value", "truncated"},
            {"advantage", "returns"},
        ),
        ("pairs", {}, {"reward", "pair"}, {"mean", "variance", "shift"}),
    ],
)
def test_declared_streams(name, settings, streams, makes):
    declared = CREDITS[name].using(**settings).declared()
    assert declared.streams == streams
    assert declared.makes == makes


def test_every_credit_is_in_the_table():
    assert set(CREDITS) == {"none", "plain", "group", "process", "gae", "pairs"}


def test_settings_are_keyword_only():
    for part in CREDITS.values():
        kinds = [p.kind for p in inspect.signature(part.function).parameters.values()]
        assert set(kinds[1:]) <= {inspect.Parameter.KEYWORD_ONLY}


# none, plain


def test_none_makes_nothing():
    assert credit.none(rewarded(1.0, 0.0)) == {}


def test_plain_is_the_reward_on_chosen_tokens():
    found = credit.plain(batch(marks("xx.", "x.x"), reward=[2.0, -1.0]))
    same(found["advantage"], [[2.0, 2.0, 0.0], [-1.0, 0.0, -1.0]])


# group


def test_group_is_the_z_score_of_each_group_on_chosen_tokens():
    mask = marks("xx.", "x.x", "xxx", "x..")
    found = credit.group(batch(mask, reward=[1.0, 0.0, 6.0, 2.0], group=[5, 5, 3, 3]))
    assert set(found) == {"advantage"}
    same(found["advantage"], [[1.0, 1.0, 0.0], [-1.0, 0.0, -1.0], [1.0] * 3, [-1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.224744871, 0.0, -1.224744871]),  # deviation sqrt(2/3)
        ({"spread": "sample"}, [1.0, 0.0, -1.0]),  # deviation 1
        ({"spread": "none"}, [1.0, 0.0, -1.0]),
        ({"spread": "none", "center": "leave_one_out"}, [1.5, 0.0, -1.5]),  # 2 - (1 + 0) / 2
        ({"center": "leave_one_out"}, [1.837117307, 0.0, -1.837117307]),
        ({"spread": "none", "signed": True}, [2.0, 0.0, -2.0]),
    ],
)
def test_each_way_to_centre_and_scale(settings, expected):
    same(outcome(2.0, 1.0, 0.0, **settings), expected)


def test_batch_spread_divides_by_the_deviation_of_all_rewards():
    found = outcome(1.0, 0.0, 5.0, 2.0, group=[0, 0, 1, 1], spread="batch")
    deviation = 3.5**0.5  # mean 2: (1 + 4 + 9 + 0) / 4
    same(found, [0.5 / deviation, -0.5 / deviation, 1.5 / deviation, -1.5 / deviation])


@spreads
@pytest.mark.parametrize("center", ["mean", "leave_one_out"])
def test_equal_rewards_teach_exactly_nothing(spread, center):
    for dtype in (torch.float32, torch.float64):
        group = [0] * 7 + [1, 1]
        reward = torch.tensor([0.7] * 7 + [1.0, 0.0], dtype=dtype)
        rows = batch(ragged(*[1] * 9), group=group, reward=reward)
        found = credit.group(rows, center=center, spread=spread)
        assert found["advantage"].dtype == dtype
        assert (found["advantage"][:7] == 0).all()
        assert (found["advantage"][7:] != 0).all()


@pytest.mark.parametrize(
    ("low", "high", "equal"),
    [
        (0.0, 1e-6, True),  # up to 1e-6 ...
        (0.0, 1.0001e-6, False),
        (0.0, -1e-6, True),
        (100.0, 100.00009, True),  # ... times the size of the rewards, where that is above 1
        (100.0, 100.00011, False),
        (-100.0, -100.00009, True),
        (-100.00011, -100.0, False),
        (-100.00009, 0.0, False),
        (100.0, 100.00010000005, True),  # the size is that of the larger one
        (-100.0, -100.00010000005, True),
    ],
)
def test_degenerate_means_a_range_below_a_millionth_of_the_size(low, high, equal):
    reward, owner = torch.tensor([low, high], dtype=torch.float64), torch.tensor([0, 0])
    assert credit.degenerate(reward, owner).tolist() == [equal, equal]


def test_degenerate_looks_at_each_group_alone():
    reward, owner = torch.tensor([1.0, 1.0, 2.0, 3.0, 1.0]), torch.tensor([0, 0, 1, 1, 2])
    assert credit.degenerate(reward, owner).tolist() == [True, True, False, False, True]


@spreads
@given(reward=rewards)
def test_advantages_of_a_group_add_to_zero(spread, reward):
    found = outcome(*reward, group=OWNERS, spread=spread)
    group = torch.tensor(OWNERS)
    same(found[group == 4].sum(), 0.0)
    same(found[group == 2].sum(), 0.0)


@spreads
@given(reward=rewards, shift=st.sampled_from([-4.0, 0.5, 32.0]))
def test_a_constant_added_to_all_rewards_changes_nothing(spread, reward, shift):
    moved = outcome(*(one + shift for one in reward), group=OWNERS, spread=spread)
    same(moved, outcome(*reward, group=OWNERS, spread=spread))


@given(reward=rewards, scale=st.sampled_from([0.5, 4.0, 1000.0]))
def test_scaling_changes_nothing_under_a_spread_and_everything_without(reward, scale):
    for spread in ("population", "sample", "batch"):
        scaled = outcome(*(scale * one for one in reward), group=OWNERS, spread=spread)
        same(scaled, outcome(*reward, group=OWNERS, spread=spread))
    scaled = outcome(*(scale * one for one in reward), group=OWNERS, spread="none")
    same(scaled, scale * outcome(*reward, group=OWNERS, spread="none"))


@spreads
@given(reward=rewards, order=st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(spread, reward, order):
    mixed = outcome(*(reward[i] for i in order), group=[OWNERS[i] for i in order], spread=spread)
    same(mixed, outcome(*reward, group=OWNERS, spread=spread)[list(order)])


@spreads
@given(reward=rewards)
def test_leave_one_out_is_the_mean_form_times_size_over_size_less_one(spread, reward):
    whole = outcome(*reward, group=OWNERS, spread=spread, center="leave_one_out")
    same(whole, outcome(*reward, group=OWNERS, spread=spread) * 3 / 2)


@pytest.mark.parametrize(("estimator", "cost"), [("k1", 0.75), ("k2", 0.15625), ("exact", 0.5)])
def test_kl_in_the_reward_is_summed_over_chosen_tokens(estimator, cost):
    mask = marks("xx.", "xxx")
    streams = {
        "old": [[-1.0, -1.0, 5.0], [-1.0, -1.0, -1.0]],
        "ref": [[-1.5, -1.25, 9.0], [-1.0, -1.0, -1.0]],  # k1 .5 + .25, k2 .125 + .03125
        "old_kl": [[0.25, 0.25, 7.0], [0.0, 0.0, 0.0]],
    }
    found = credit.group(
        batch(mask, reward=[1.0, 1.0], **streams), kl=0.5, estimator=estimator, spread="none"
    )
    same(advantages(found), [-0.25 * cost, 0.25 * cost])  # mean of -cost / 2 and 0


def test_signed_comes_before_kl_and_length():
    mask = ragged(4, 2)
    found = credit.group(
        batch(mask, reward=[1.0, 0.0]), spread="none", signed=True, overlong_limit=5,
        overlong_cache=2,
    )  # fmt: skip
    same(advantages(found), [0.75, -0.75])  # 1 - 1/2 against -1


# DAPO's length reward


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0), (11, -1.0)]
)
def test_overlong_penalty_falls_over_the_cache(length, penalty):
    found = credit.overlong_penalty(batch(ragged(length)), limit=10, cache=4)
    same(found, [penalty])


def test_overlong_penalty_counts_chosen_tokens_and_is_off_by_default():
    mask = marks("xx..xx..")
    same(credit.overlong_penalty(batch(mask), limit=5, cache=5), [-0.8])
    same(credit.overlong_penalty(batch(mask), limit=None, cache=None), [0.0])


@pytest.mark.parametrize(("limit", "cache"), [(5, None), (None, 5), (4, 5)])
def test_half_a_length_reward_is_refused(limit, cache):
    says = f"`overlong_limit` is {limit} and `overlong_cache` is {cache}, but both must be given"
    with pytest.raises(Refused, match=says):
        credit.overlong_penalty(batch(ragged(1)), limit=limit, cache=cache)


# small groups


@pytest.mark.parametrize("name", ["group", "process"])
def test_a_group_of_one_is_refused(name):
    streams = {"step_end": [[True]] * 3, "step_reward": [[1.0]] * 3}
    says = r"`group` 8 has 1 rollout\(s\), but a group baseline needs at least 2 for each prompt"
    with pytest.raises(Refused, match=says):
        CREDITS[name](rewarded(1.0, 0.0, 1.0, group=[3, 3, 8], **streams))


def test_a_corrected_pair_needs_a_third_rollout():
    says = r"`group` 6 has 2 rollout\(s\), but a group baseline needs at least 3 for each prompt"
    two = rewarded(1.0, 0.0, group=[6, 6], pair=[0, 1])
    with pytest.raises(Refused, match=says):
        credit.pairs(two)
    same(credit.pairs(two, corrected=False)["variance"], [0.25, 0.25])


@pytest.mark.parametrize("name", ["plain", "group"])
def test_advantages_keep_the_precision_of_rewards(name):
    for dtype in (torch.float32, torch.float64):
        found = CREDITS[name](rewarded(1.0, 0.0, dtype=dtype))
        assert found["advantage"].dtype == dtype


def test_padding_changes_no_advantage():
    short, long = ragged(2, 1), ragged(2, 1, longest=5)
    found = credit.group(batch(long, reward=[3.0, 1.0]))["advantage"]
    same(found[:, :2], credit.group(batch(short, reward=[3.0, 1.0]))["advantage"])
    same(found[:, 2:], torch.zeros(2, 3))
