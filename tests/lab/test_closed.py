"""The closed forms against brute force, and against the numbers of the reference report."""

import math

import pytest
import torch
from torch.testing import assert_close

from logratio.lab import closed, dense
from logratio.lab.tree import Tree, paths, random_world
from logratio.part import needs

WORLD = random_world(5)
REFERENCE = WORLD.tree.law(WORLD.reference)
BANDIT = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
REWARD = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)


def worth(law, temperature):
    kl = (law.exp() * (law - REFERENCE)).sum(-1)
    return (law.exp() * WORLD.reward).sum(-1) - temperature * kl


def printed(values, *expected):
    """Holds numbers to the digits that the report prints."""
    assert [round(value, 4) for value in values.flatten().tolist()] == list(expected)


def test_no_law_is_worth_more_than_the_exponential_tilt():
    best = closed.exponential_tilt(REFERENCE, WORLD.reward, 0.3)
    assert_close(worth(best, 0.3), closed.soft_value(REFERENCE, WORLD.reward, 0.3))
    generator = torch.Generator().manual_seed(0)
    for size in (0.01, 0.1, 1.0):
        noise = torch.randn(best.shape, generator=generator, dtype=torch.float64)
        other = closed.normalised(best + size * noise)
        assert (worth(other, 0.3) < worth(best, 0.3)).all()


def test_the_tilts_of_the_bandit():
    printed(closed.exponential_tilt(BANDIT, REWARD, 1.0).exp(), 0.4711, 0.4333, 0.0956)
    printed(closed.rational_tilt(BANDIT, REWARD, 1.0).exp(), 0.5144, 0.3600, 0.1256)
    printed(closed.soft_value(BANDIT, REWARD, 1.0), 0.1433)


@pytest.mark.parametrize(
    ("temperature", "value"), [(0.01, -0.0415233), (0.1, -0.22626), (1.0, -0.45785)]
)
def test_the_soft_value_of_guessing_a_number(temperature, value):
    reward = -torch.arange(100, dtype=torch.float64)[None] / 99
    uniform = torch.full_like(reward, -math.log(100))
    assert closed.soft_value(uniform, reward, temperature).item() == pytest.approx(value, abs=5e-6)


def test_the_rational_tilt_is_its_own_equation():
    law = closed.rational_tilt(REFERENCE, WORLD.reward, 0.4).exp()
    mean = (law * WORLD.reward).sum(-1, keepdim=True)
    assert_close(law.sum(-1), torch.ones(3, dtype=torch.float64))
    assert_close(law, REFERENCE.exp() * 0.4 / (0.4 + mean - WORLD.reward))


def test_soft_values_are_those_of_the_rest_of_the_tree():
    tree = WORLD.tree
    values = closed.soft_values(tree, WORLD.reference, WORLD.reward, 0.3)
    assert_close(values[:, 0], closed.soft_value(REFERENCE, WORLD.reward, 0.3))
    assert_close(values[:, tree.first(tree.length) :], WORLD.reward)
    best = tree.table(closed.exponential_tilt(REFERENCE, WORLD.reward, 0.3))
    gain = 0.3 * (best - WORLD.reference.log_softmax(-1))  # of each token: Q - V
    for depth in range(tree.length):
        now, after = tree.level(values, depth), tree.level(values, depth + 1)
        assert_close(tree.level(gain, depth), after.view(3, -1, 4) - now[..., None])


def test_what_is_kept_keeps_its_shares():
    kept = WORLD.reward > -0.8
    law = closed.conditioned(REFERENCE, kept).exp()
    assert not law[~kept].any()
    assert_close(law, REFERENCE.exp() * kept / (REFERENCE.exp() * kept).sum(-1, keepdim=True))


def test_preferences_are_bradley_terry():
    score = closed.preference(torch.tensor(1.5), torch.tensor(0.0))
    assert_close(score.log(), torch.tensor(-0.2014), atol=5e-5, rtol=0)


LEAVES = torch.tensor([[0.2, 0.8, 0.5, 0.5]], dtype=torch.float64)
UNIFORM = torch.zeros(1, 7, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("solution", "first", "success"),
    [
        ({"trace": 1.0}, 0.5, 0.6324),
        ({"trace": 0.0}, 0.7647, 0.7024),
        ({"best": True}, 0.8, 0.7118),
    ],
)
def test_the_odds_tilts_of_two_binary_steps(solution, first, success):
    tree = Tree(vocabulary=2, length=2)
    behaviour = UNIFORM.log_softmax(-1)
    logits, _ = closed.odds_tilt(tree, UNIFORM, LEAVES, gain=1.0, behaviour=behaviour, **solution)
    table = logits.softmax(-1)
    printed(table[0, 1:3], 0.0588, 0.9412, 0.5, 0.5)
    assert table[0, 0, 0].item() == pytest.approx(first, abs=5e-5)
    reached = (tree.law(logits).exp() * LEAVES).sum().item()
    assert reached == pytest.approx(success, abs=5e-5)


def test_the_offset_makes_log_probs_a_classifier():
    tree = Tree(vocabulary=2, length=1)
    success = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    reference = torch.zeros(1, 3, 2, dtype=torch.float64)
    logits, offset = closed.odds_tilt(tree, reference, success, gain=1.0)
    printed(logits[0, 0].softmax(-1), 0.7941, 0.2059)
    assert offset[0, 0].item() == pytest.approx(-1.310, abs=5e-4)
    read = logits[0, 0].log_softmax(-1) - reference[0, 0].log_softmax(-1) + offset[0, 0]
    assert_close(torch.sigmoid(read), success[0])


def test_the_two_kls_of_the_report():
    policy = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64).log()
    other = torch.tensor([[[0.9, 0.1]]], dtype=torch.float64).log()
    printed(closed.row_kl(policy, other), 0.5108)
    printed(closed.row_kl(other, policy), 0.3681)
    printed(closed.row_square(policy, other), 0.7339)


def test_visits_add_up_to_the_kl_of_whole_sequences():
    tree = WORLD.tree
    policy, law = WORLD.behaviour, tree.law(WORLD.behaviour)
    visits = closed.visits(tree, policy)
    slow = torch.zeros_like(visits)
    for leaf, path in enumerate(paths(tree)):
        slow[:, path] += law.exp()[:, leaf, None]
    assert_close(visits, slow)
    whole = (law.exp() * (law - REFERENCE)).sum(-1)
    assert_close((visits * closed.row_kl(policy, WORLD.reference)).sum(-1), whole)


def test_the_gradient_of_a_head_is_autograds():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits, reference = draw(2, 4, 5).requires_grad_(), draw(2, 4, 5)
    ids = torch.randint(5, (2, 3), generator=generator)
    asked = needs(policy=["logit", "entropy", "kl"])
    policy = dense.read(logits, ids, needs=asked, reference=reference)
    slopes = {name: draw(2, 3) for name in ("logp", "logit", "entropy", "kl")}
    total = sum((slope * policy.stream(name)).sum() for name, slope in slopes.items())
    (expected,) = torch.autograd.grad(total, logits)
    assert_close(closed.head_gradient(logits.detach(), reference, ids, slopes), expected)
