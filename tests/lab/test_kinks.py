import pytest
import torch

from logratio.lab.kinks import decisions, same


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(max=1.0),
        lambda x: torch.minimum(x, torch.ones(1)),
        lambda x: torch.where(x > 1, x, 0.0),
        lambda x: (x - 1).abs(),
        lambda x: torch.relu(1 - x),
    ],
)
def test_a_corner_changes_a_decision(function):
    left, right, further = (
        decisions(lambda x=x: function(torch.tensor([x]))) for x in (0.9, 1.1, 1.2)
    )
    assert not same(left, right)
    assert same(right, further)


def test_smooth_functions_decide_nothing():
    assert decisions(lambda: torch.nn.functional.softplus(torch.ones(3)).exp().sum()) == []


def test_runs_of_different_length_are_not_alike():
    assert not same([], [torch.tensor(True)])
