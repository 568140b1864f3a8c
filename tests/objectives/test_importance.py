"""The importance network: dloss / df of each pair times df / dhead, at the state of the split."""

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_runs,
    check_slopes,
    check_watch,
    needed,
    needs_of,
    numbers,
    policy_of,
    refusal,
)
from torch.testing import assert_close

from logratio.objectives.importance import importance

HALF = 0.5108256237659907  # log(5 / 3): sigmoid is .625, so f is .5 under a bound of .8
INNER = 0.1875  # .8 * .625 * .375
BOUND = {"bound": 0.8}


def pair_of(one, other, read, *, mean=0.0, variance=1.0, shift=0.0):
    """One pair that shares a token of two, under these statistics of its group."""
    policy = policy_of([[-1.0, -1.0]] * 2, heads={"importance": [[9.0, read, 9.0], [8.0] * 3]})
    batch = batch_of(
        [[1, 1]] * 2, group=[0, 0], pair=[0, 1], reward=[one, other], split=[1, 1],
        mean=[mean] * 2, variance=[variance] * 2, shift=[shift] * 2,
    )  # fmt: skip
    return policy, batch


def on_the_split(slope):
    return [[0, slope, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("one", "other", "settings", "read", "loss", "slope"),
    [
        # f = .5: log 2 pi + log(.75) / 2 + (S - P) / 1.5, and the slopes of the notes
        (1.0, +1.0, BOUND, HALF, 2.3607026968501217, -1.1111111111111112 * INNER),
        (1.0, -1.0, BOUND, HALF, 3.694036030183455, +3.3333333333333335 * INNER),
        # f = -.4 through tanh: df / dhead = .8 * .75
        (
            0.3, 1.2, {"link": "tanh", **BOUND}, -0.5493061443340548,
            2.8328432299798138, -0.9829931972789116 * 0.6,
        ),
        # alike for certain, ever more: the likelihood has no floor but the bound
        (1.0, 1.0, {"link": "tanh"}, 0.0, 2.8378770664093455, -0.99),
        (1.0, 1.0, {"link": "tanh", "bound": 0.9}, 20.0, 1.5338272524722042, 0.0),
        (1.0, 1.0, {"link": "tanh", "bound": 0.99}, 20.0, 0.38187185559757066, 0.0),
        (1.0, 1.0, {"link": "tanh", "bound": 0.999}, 20.0, -0.7694269202600603, 0.0),
    ],
)  # fmt: skip
def test_slope_of_the_normal_likelihood(one, other, settings, read, loss, slope):
    objective = importance.using(**settings)
    policy, batch = pair_of(one, other, read)
    check_losses(objective, policy, batch, pair=[loss])
    check_slopes(objective, policy, batch, importance=on_the_split(slope))


@pytest.mark.parametrize(
    ("reward", "variance", "loss"), [(2.0, 4.0, 3.7469970579700123), (0.5, 0.25, 0.974408335730231)]
)
def test_the_normal_likelihood_is_that_of_rewards_and_not_of_scores(reward, variance, loss):
    """Rewards 2 and 2 around 0 at variance 4 are scores 1 and 1, and cost log 4 more."""
    objective = importance.using(**BOUND)
    policy, batch = pair_of(reward, reward, HALF, variance=variance)
    check_losses(objective, policy, batch, pair=[loss])
    check_slopes(objective, policy, batch, importance=on_the_split(-1.1111111111111112 * INNER))


def test_the_mean_is_taken_off():
    objective = importance.using(kind="product", **BOUND)
    policy, batch = pair_of(3.0, 1.0, HALF, mean=2.0)  # 1 and -1: P = -1
    check_losses(objective, policy, batch, pair=[2.25])


def test_the_shift_is_added_back():
    """Scores 1 and 1, shift .5, variance 2: S = 3 / 2 and P = 1.5 / 2; the slope is then -1."""
    objective = importance.using(**BOUND)
    policy, batch = pair_of(1.0, 1.0, HALF, variance=2.0, shift=0.5)
    check_losses(objective, policy, batch, pair=[2.8871832107434003])
    check_slopes(objective, policy, batch, importance=on_the_split(-INNER))
    assert objective(policy, batch).watch["product"].item() == 0.75


@pytest.mark.parametrize(
    ("one", "other", "loss", "slope"),
    [(1.0, +1.0, 0.25, -1.0), (1.0, -1.0, 2.25, 3.0), (0.5, 1.0, 0.0, 0.0)],
)
def test_slope_of_the_product(one, other, loss, slope):
    """(.5 - P)^2, slope 2 (.5 - P)."""
    objective = importance.using(kind="product", **BOUND)
    policy, batch = pair_of(one, other, HALF)
    check_losses(objective, policy, batch, pair=[loss])
    check_slopes(objective, policy, batch, importance=on_the_split(slope * INNER))


@pytest.mark.parametrize(
    ("one", "other", "loss", "slope"),
    [
        # m = .25, q = .1875, f = .5
        (1.0, 1.0, 1.8562979903656263, -1.2),  # -log(.0625 + .09375), -q / that
        (0.0, 0.0, 0.4212134650763035, -0.2857142857142857),  # -log(.5625 + .09375)
        (1.0, 0.0, 2.367123614131617, +2.0),  # -log(.5 * .1875), 1 / (1 - f)
        (0.0, 1.0, 2.367123614131617, +2.0),
    ],
)
def test_slope_of_the_bernoulli_likelihood(one, other, loss, slope):
    objective = importance.using(kind="bernoulli", **BOUND)
    policy, batch = pair_of(one, other, HALF, mean=0.25, variance=0.1875)
    check_losses(objective, policy, batch, pair=[loss])
    check_slopes(objective, policy, batch, importance=on_the_split(slope * INNER))


@pytest.mark.parametrize(
    ("link", "read", "value", "inner"),
    [
        ("sigmoid", 0.0, 0.4, 0.2),  # .8 / 2, .8 / 4
        ("sigmoid", HALF, 0.5, INNER),
        ("tanh", 0.0, 0.0, 0.8),
        ("tanh", 0.5493061443340548, 0.4, 0.6),
    ],
)
def test_each_link_and_its_slope(link, read, value, inner):
    """Under (f - P)^2 with P = 0 the slope in f is 2 f; at f = 0 take P = -1 / 2 instead."""
    objective = importance.using(kind="product", link=link, **BOUND)
    policy, batch = pair_of(1.0, -0.5, read)
    assert_close(objective(policy, batch).watch["importance"].detach(), numbers([value]))
    slope = 2 * (value + 0.5) * inner
    check_slopes(objective, policy, batch, importance=on_the_split(slope))


def test_the_head_is_read_where_the_first_of_the_pair_was_split():
    """Splits 0, 1 and 2, after a left pad of one in the last two: columns 0, 2 and 3."""
    heads = [[0.0, 9.0, 9.0, 9.0], [9.0] * 4, [9.0, 9.0, 0.0, 9.0], [9.0] * 4,
             [9.0, 9.0, 9.0, 0.0], [9.0] * 4]  # fmt: skip
    policy = policy_of([[-1.0] * 3] * 6, heads={"importance": heads})
    batch = batch_of(
        [[1, 1, 0]] * 2 + [[0, 1, 1]] * 4, pair=[0, 1, 2, 3, 4, 5], split=[0, 0, 1, 1, 2, 2],
        reward=[0.0] * 6, mean=[0.0] * 6, variance=[1.0] * 6, shift=[0.0] * 6,
    )  # fmt: skip
    objective = importance.using(kind="product", **BOUND)
    # f = .4 and P = 0: .8 * .2 a pair, over three pairs
    slope = 0.16 / 3
    rows = [[slope, 0, 0, 0], [0] * 4, [0, 0, slope, 0], [0] * 4, [0, 0, 0, slope], [0] * 4]
    check_slopes(objective, policy, batch, importance=rows)


def test_a_group_of_equal_rewards_counts_nowhere():
    """Two pairs, the second of a group without variance: the first is divided by one pair.

    The second's rewards are half from the mean that it was given, and are not scaled: P = 1/4.
    """
    policy = policy_of([[-1.0, -1.0]] * 4, heads={"importance": [[9.0, HALF, 9.0]] * 4})
    batch = batch_of(
        [[1, 1]] * 4, group=[0, 0, 1, 1], pair=[0, 1, 2, 3], reward=[1.0, 1.0, 1.0, 1.0],
        split=[1] * 4, mean=[0.0, 0.0, 0.5, 0.5], variance=[1.0, 1.0, 0.0, 0.0], shift=[0.0] * 4,
    )  # fmt: skip
    nothing = [[0, 0, 0]] * 3
    product = importance.using(kind="product", **BOUND)
    check_losses(product, policy, batch, pair=[0.25, 0.0625])
    check_slopes(product, policy, batch, importance=[[0, -INNER, 0], *nothing])
    check_watch(product, policy, batch, importance=[0.5, 0.5], product=[1.0, 0.25])
    normal = importance.using(**BOUND)
    # log 2 pi + log(.75) / 2 + (.5 - .25) / 1.5
    check_losses(normal, policy, batch, pair=[2.3607026968501217, 1.8607026968501217])
    check_slopes(normal, policy, batch, importance=[[0, -1.1111111111111112 * INNER, 0], *nothing])


@pytest.mark.parametrize(("one", "other"), [(1.0, 1.0), (1.0, 0.0)])
def test_a_certain_group_has_chance_one_under_the_bernoulli(one, other):
    policy, batch = pair_of(one, other, HALF, mean=1.0, variance=0.0)
    objective = importance.using(kind="bernoulli", **BOUND)
    check_losses(objective, policy, batch, pair=[0.0])
    check_slopes(objective, policy, batch, importance=[[0] * 3] * 2)


def test_from_rewards_to_slopes():
    """Rewards 1, 1, 0, 0 in pairs of equals: v' = .25, products .25, so shift .25 and P = 1."""
    batch = batch_of(
        [[1, 1]] * 4, group=[0] * 4, pair=[0, 1, 2, 3], reward=[1.0, 1.0, 0.0, 0.0], split=[1] * 4
    )  # fmt: skip
    policy = policy_of([[-1.0, -1.0]] * 4, heads={"importance": [[9.0, HALF, 9.0]] * 4})
    objective = importance.using(kind="product", **BOUND)
    ready = objective.prepare(batch)
    assert_close(ready.stream("variance"), numbers([0.5] * 4))
    assert_close(ready.stream("shift"), numbers([0.25] * 4))
    row, nothing = [0, -INNER / 2, 0], [0, 0, 0]
    check_slopes(objective, policy, ready, importance=[row, nothing, row, nothing])


def test_what_importance_is_made_of():
    assert importance.name == "importance"
    assert importance.loss.resolved() == {"kind": "normal", "link": "sigmoid", "bound": 0.99}
    assert (importance.keep.name, importance.credit.name) == ("varied_groups", "pairs")
    assert importance.credit.resolved() == {"corrected": True}
    assert (importance.weight.name, importance.average.name) == ("uniform", "per_informative_pair")
    assert dict(importance.presets) == {
        "as_written": {"bound": 0.999999, "credit.corrected": False}
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "as_written"},
        {"kind": "product"},
        {"kind": "bernoulli"},
        {"link": "tanh", "credit.corrected": False},
    ],
)
def test_each_setting_runs_on_what_it_asks_for(settings):
    objective = importance.using(**settings)
    wanted = needs_of("pair", "reward", "split", heads={"importance"}, couples="pair")
    assert needed(objective) == wanted
    assert objective.loss.declared().streams == {
        "pair", "reward", "split", "mean", "variance", "shift"
    }  # fmt: skip
    check_runs(objective)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_a_bound_that_is_none(bound):
    sentence = f"`bound` is {bound}, but it must be a number in (0, 1)"
    assert refusal(importance.using, bound=bound) == sentence


def test_an_unknown_kind_and_link():
    assert refusal(importance.using, kind="gauss") == (
        "`kind` is 'gauss', but it must be one of 'normal', 'product', 'bernoulli'"
    )
    assert refusal(importance.using, link="exp") == (
        "`link` is 'exp', but it must be one of 'sigmoid', 'tanh'"
    )


@pytest.mark.parametrize("reward", [0.4, 2.0, -1.0])
def test_the_bernoulli_likelihood_is_for_right_and_wrong(reward):
    objective = importance.using(kind="bernoulli")
    assert refusal(objective, *pair_of(reward, 1.0, HALF, mean=0.5)) == (
        f"`reward` holds {sorted([reward, 1.0])}, but `kind` 'bernoulli' is for rewards of 0 and 1"
    )


@pytest.mark.parametrize(("split", "length"), [(-1, 2), (3, 2), (2, 1)])
def test_a_split_outside_the_row(split, length):
    policy, batch = pair_of(1.0, 0.0, HALF)
    mask = [[1] * length + [0] * (2 - length), [1, 1]]
    wrong = batch_of(
        mask, pair=[0, 1], group=[0, 0], reward=[1.0, 0.0], split=[split, 0],
        mean=[0.5] * 2, variance=[1.0] * 2, shift=[0.0] * 2,
    )  # fmt: skip
    del batch
    assert refusal(importance, policy, wrong) == (
        f"`split` holds {split} in a row of {length} tokens, but it must be at least 0 and "
        "at most the length"
    )
