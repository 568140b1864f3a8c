"""Nothing is made on the default device: here that is `meta`, where no number can be read."""

import warnings

import pytest
import torch
from samples import batch, groups, marks, noise, same

from logratio.average import AVERAGES
from logratio.credit import CREDITS
from logratio.lab import dense
from logratio.objective import total_loss, watched
from logratio.objectives import find, names
from logratio.weight import WEIGHTS

MASK = marks("xxxx", "x.x.", "xx..", ".xxx")
ROWS = groups(
    MASK,
    group=[0] * 4,
    reward=[0.0, 1.0, 1.0, 0.0],
    pair=[0, 1, 2, 3],
    drawn=[2.0] * 4,
    entropy=noise(3, 4, 4).abs(),
    importance=noise(4, 4, 5).sigmoid(),
    margin=[0.1] * 4,
    q0=[-0.1] * 4,
    q0_samples=[4.0] * 4,
    ref_logit=noise(5, 4, 4),
    split=[0.0, 0.0, 1.0, 1.0],
    step_end=[[True] * 4] * 4,
    step_reward=noise(6, 4, 4),
    truncated=[0.0, 1.0, 0.0, 0.0],
    value=noise(7, 4, 5),
)


def elsewhere(function):
    """Returns what a function gives while every tensor made without a device has no numbers."""
    with torch.device("meta"):
        return function()


@pytest.mark.parametrize("name", CREDITS)
def test_credits_stay_where_the_batch_is(name):
    for key, found in elsewhere(lambda: CREDITS[name](ROWS)).items():
        assert found.device.type == "cpu"
        same(found, CREDITS[name](ROWS)[key])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_stay_where_the_batch_is(name):
    same(elsewhere(lambda: WEIGHTS[name](ROWS)), WEIGHTS[name](ROWS))


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_stay_where_the_batch_is(name):
    part = AVERAGES[name].using(**({"length": 4} if name == "fixed_length" else {}))
    unit = "pair" if name == "per_pair" else "token"
    found, expected = elsewhere(lambda: part(ROWS, unit)), part(ROWS, unit)
    same(found.each, expected.each)
    same(found.total, expected.total)


@pytest.mark.parametrize("name", names())
def test_objectives_stay_where_the_batch_is(name):
    objective = find(name)
    declared = objective.declared()
    logits, ids = noise(8, 4, 5, 6), torch.tensor([[0, 1, 2, 3]] * 4)
    heads = {head: noise(9, 4, 5) for head in declared.heads}
    scalars = {scalar: torch.tensor(0.2).double() for scalar in declared.scalars}
    reference = noise(10, 4, 5, 6)

    def trained():
        policy = dense.read(
            logits, ids, needs=declared, reference=reference, heads=heads, scalars=scalars
        )
        rows = objective.prepare(ROWS)
        terms = objective(policy, rows)
        weights = objective.weights(terms, rows)
        slopes = objective.slopes(policy, rows)
        return [
            total_loss(terms, weights, rows),
            *watched(terms, weights, rows).values(),
            *slopes.values(),
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found, expected in zip(elsewhere(trained), trained(), strict=True):
            same(found, expected)


def test_a_batch_is_cleaned_where_it_is():
    rows = batch(marks("x."), old=torch.tensor([[1.0, torch.nan]]), value=[[1.0, 2.0, torch.nan]])
    found = elsewhere(rows.clean)
    assert found.stream("old").tolist() == [[1.0, 0.0]]
    assert found.stream("value").tolist() == [[1.0, 2.0, 0.0]]
