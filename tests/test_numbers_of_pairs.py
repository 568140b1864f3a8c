"""The numbers of `algorithms.md`, section 12: the variance network and the mask made of it."""

import pytest
import torch
from samples import batch, learned, ragged, same

from logratio import credit, weight
from logratio.objectives import find
from logratio.objectives.importance import pair_loss


def printed(value, digits):
    """Returns numbers rounded as they are printed."""
    return [round(one, digits) + 0.0 for one in value.detach().flatten().tolist()]


def pairs(*rewards, mean=0.0, variance=1.0):
    """Returns pairs of rewards with the statistics of their group given."""
    flat = [reward for pair in rewards for reward in pair]
    count = len(flat)
    streams = {"mean": [mean] * count, "variance": [variance] * count, "shift": [0.0] * count}
    return batch(ragged(*[1] * count), reward=flat, pair=list(range(count)), **streams)


def at(f, count=1):
    return torch.full((count,), f, dtype=torch.float64)


@pytest.mark.parametrize(
    ("f", "loss"), [(0.0, 2.838), (0.9, 1.534), (0.99, 0.382), (0.999, -0.769)]
)
def test_two_equal_rewards_would_send_f_to_1_without_end(f, loss):
    """12.2: so the head's bound is 0.99."""
    assert printed(pair_loss(at(f), pairs((1.0, 1.0)), "normal")[0], 3) == [loss]
    assert find("importance").loss.resolved()["bound"] == 0.99


@pytest.mark.parametrize(
    ("f", "pair", "slope"),
    [(0.5, (1.0, 1.0), -1.1111), (0.5, (1.0, -1.0), 3.3333), (-0.4, (0.3, 1.2), -0.98299)],
)
def test_slopes_of_the_normal_likelihood(f, pair, slope):
    """12.2."""
    found = pair_loss(at(f), pairs(pair), "normal")[1]
    assert found.item() == pytest.approx(slope, abs=5e-5)


def root(rows, kind="normal"):
    """Returns the f in (-1, 1) at which the slope, summed over pairs, is 0."""
    low, high, count = -0.999, 0.999, len(rows.mask) // 2
    for _ in range(34):
        middle = (low + high) / 2
        rises = pair_loss(at(middle, count), rows, kind)[1].sum() > 0
        low, high = (low, middle) if rises else (middle, high)
    return low


@pytest.mark.parametrize(
    ("tenths", "mean", "expected"), [(8, 0.5, 0.36), (1, 0.5, 0.64), (5, 0.9, 0.229)]
)
def test_the_likeliest_f_of_a_prefix_that_succeeds_this_often(tenths, mean, expected):
    """12.2: V = .8 and .1 at mean 1/2 give 1 - Var / v exactly; V = .5 at mean .9 does not."""
    fail = 10 - tenths
    counts = {(1.0, 1.0): tenths**2, (0.0, 0.0): fail**2}
    counts |= {(1.0, 0.0): tenths * fail, (0.0, 1.0): tenths * fail}
    drawn = [pair for pair, count in counts.items() for _ in range(count)]
    assert round(root(pairs(*drawn, mean=mean, variance=mean * (1 - mean))), 3) == expected


def test_the_likeliest_f_of_normal_pairs_is_their_correlation():
    """12.5, item 4: the report's sample of correlation 0.4 has its root at 0.3986.

    Ours is made to have exactly the moments that it was drawn with.
    """
    drawn = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    independent = torch.linalg.qr(drawn).Q * 200**0.5
    root_of_covariance = torch.tensor([[1.0, 0.0], [0.4, 0.84**0.5]], dtype=torch.float64)
    rows = pairs(*(independent @ root_of_covariance.T).tolist())
    for kind in ("normal", "product"):
        assert root(rows, kind) == pytest.approx(0.4, abs=1e-9)


def test_the_likelihood_knows_no_side_and_no_scale():
    """12.5, items 5 and 6; the scale adds its logarithm twice, once for each reward."""
    f = at(0.3)
    plain = pair_loss(f, pairs((0.4, 1.3)), "normal")[0]
    same(pair_loss(f, pairs((1.3, 0.4)), "normal")[0], plain)
    moved = pair_loss(f, pairs((5.8, 7.6), mean=5.0, variance=4.0), "normal")[0]
    same(moved, plain + 2 * torch.tensor(2.0).double().log())
    product = 0.6  # a^2 + b^2 = 2: the minimiser is a b
    b = ((2 + 2 * product) ** 0.5 + (2 - 2 * product) ** 0.5) / 2
    assert root(pairs((product / b, b))) == pytest.approx(product, abs=1e-9)


def test_pairs_of_a_group_of_eight_look_less_alike_than_they_are():
    """12.2: at correlation 1/2, E variance is .8125 and E product .3125 instead of 1 and .5."""
    covariance = torch.eye(8).double()
    covariance[torch.arange(8), torch.arange(8) ^ 1] = 0.5
    variance, product, corrected = torch.zeros(3, dtype=torch.float64)
    for column in torch.linalg.cholesky(covariance).T:  # a quadratic's mean over a root's columns
        rows = batch(ragged(*[1] * 8), reward=column, pair=list(range(8)))
        off = column - column.mean()
        variance = variance + credit.pairs(rows, corrected=False)["variance"][0]
        product = product + (off[::2] * off[1::2]).mean()
        corrected = corrected + credit.pairs(rows)["variance"][0]
    same(torch.stack([variance, product, corrected]), [0.8125, 0.3125, 1.0])


def test_groups_without_variance_change_neither_loss_nor_slope():
    """12.5, item 7; 12.2: a jitter on the covariance would add -11.978 for each such pair."""
    head = [[0.2, 0.0]] * 4
    mixed = {"reward": [1.0, 0.0, 1.0, 1.0], "pair": [0, 1, 2, 3], "split": [0.0] * 4}
    rows = batch(ragged(1, 1, 1, 1), **mixed)
    loss, slopes = learned(find("importance"), rows, logp=[[0.0]] * 4, heads={"importance": head})
    more = batch(
        ragged(*[1] * 7), reward=[*mixed["reward"], 0.7, 0.7, 0.7], split=[0.0] * 7,
        pair=[0, 1, 2, 3, 4, 5, -1], group=[0] * 4 + [1] * 3,
    )  # fmt: skip
    heads = {"importance": [*head, *[[0.9, 0.0]] * 3]}
    found, more_slopes = learned(find("importance"), more, logp=[[0.0]] * 7, heads=heads)
    same(found, loss)
    same(more_slopes["importance"][:4], slopes["importance"])
    assert (more_slopes["importance"][4:] == 0).all()


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ([0.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0]),  # the first token decides
        ([0.0, 0.0, 0.18, 0.18], [0.0, 3.0, 0.0]),  # the tree of 10.6: .82 is reward noise
    ],
)
def test_the_increment_puts_all_weight_on_the_deciding_token(importance, expected):
    """12.5, items 2 and 3."""
    rows = batch(ragged(3), reward=[0.0], importance=[importance])
    same(weight.variance(rows, strength=1.0, lowest=0.0), [expected])


def test_a_flat_importance_is_grpo_to_the_last_bit():
    """12.5, item 1."""
    streams = {"reward": [1.0, 0.0], "old": [[-0.3, -1.7, -0.2]] * 2}
    logp = [[-0.25, -1.9, -0.1], [-0.3, -1.5, 0.0]]
    plain, slopes = learned(find("grpo"), batch(ragged(3, 2), **streams), logp=logp)
    for flat, settings in ((0.0, {}), (0.37, {"weight.strength": 0.0})):
        rows = batch(ragged(3, 2), importance=[[flat] * 4] * 2, **streams)
        loss, found = learned(find("variance_grpo").using(**settings), rows, logp=logp)
        assert loss.equal(plain)
        assert found["logp"].equal(slopes["logp"])
