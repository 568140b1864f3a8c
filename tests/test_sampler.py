"""Drawing tokens: uniforms that depend on nothing else, and the distribution that was asked for."""

import pytest
import torch
from torch.testing import assert_close

from logratio.sampler import Sampling, allowed, draw, inverted, key_of, uniforms
from logratio.settings import Refused

ROWS = 20_000


def splitmix(key, position):
    """Returns the same number in plain Python integers."""
    mask = 2**64 - 1
    state = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) * 2.0**-53


def test_uniforms_are_splitmix():
    keys = [key_of(0, "train", step) for step in range(50)]
    places = list(range(50))
    found = uniforms(torch.tensor(keys), torch.tensor(places)).tolist()
    assert found == [splitmix(key, place) for key, place in zip(keys, places, strict=True)]


def test_uniforms_fill_the_unit_interval():
    found = uniforms(torch.full((ROWS,), key_of("a")), torch.arange(ROWS))
    assert found.min() >= 0
    assert found.max() < 1
    counts = torch.histc(found.float(), 20, 0, 1)
    assert ((counts - ROWS / 20).square() / (ROWS / 20)).sum() < 43.8  # chi-square, 19 df, p .001


def test_a_key_is_the_same_everywhere_and_differs_by_every_part():
    assert key_of(1, "train", "p") == key_of(1, "train", "p") == -9000242467271761627
    assert len({key_of(1, 2), key_of(12), key_of("1", 2), key_of(2, 1), key_of(1, 2, 0)}) == 5


SHARES = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25])


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({}, [0.4, 0.1, 0.2, 0.05, 0.25]),
        ({"top_k": 2}, [0.4, 0, 0, 0, 0.25]),
        ({"top_p": 0.6}, [0.4, 0, 0, 0, 0.25]),  # .4 is not enough, with .25 it is
        ({"top_p": 0.3}, [0.4, 0, 0, 0, 0]),
        ({"min_p": 0.5}, [0.4, 0, 0.2, 0, 0.25]),
        ({"min_p": 0.3, "top_k": 2}, [0.4, 0, 0, 0, 0.25]),
        ({"temperature": 0.5}, [0.16, 0.01, 0.04, 0.0025, 0.0625]),
    ],
)
def test_what_is_drawn_follows_the_law(settings, law):
    goal = torch.tensor(law) / sum(law)
    sampling = Sampling(**settings)
    logits = (SHARES.log() + 3).repeat(ROWS, 1)
    drawn = draw(logits, uniforms(torch.full((ROWS,), key_of(1)), torch.arange(ROWS)), sampling)
    counts = torch.bincount(drawn.ids, minlength=5)
    assert not counts[goal == 0].any()
    expected = ROWS * goal[goal > 0]
    chi = ((counts[goal > 0] - expected).square() / expected).sum()
    assert chi < 18.5  # 4 degrees of freedom at most, p .001
    whole = SHARES ** (1 / sampling.temperature)
    whole = whole / whole.sum()
    assert_close(drawn.old, whole.log()[drawn.ids])
    assert_close(drawn.behaviour, goal.log()[drawn.ids])
    assert_close(drawn.entropy[0], -(whole * whole.log()).sum())


def test_greedy_takes_the_most_likely():
    drawn = draw(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.99]), Sampling(temperature=0))
    assert drawn.ids.tolist() == [1]
    assert_close(drawn.old, torch.tensor([[0.0, 3.0, 1.0]]).log_softmax(-1)[:, 1])


def test_a_banned_token_is_not_drawn_but_stands_in_the_softmax():
    logits = SHARES.log().repeat(1000, 1)
    uniform = uniforms(torch.full((1000,), key_of(2)), torch.arange(1000))
    drawn = draw(logits, uniform, Sampling(min_tokens=1), banned=[0, 2])
    assert set(drawn.ids.tolist()) == {1, 3, 4}
    assert_close(drawn.old, SHARES.log()[drawn.ids])
    assert_close(drawn.behaviour, (SHARES / 0.4).log()[drawn.ids])
    greedy = draw(logits[:1], uniform[:1], Sampling(temperature=0), banned=[0])
    assert greedy.ids.tolist() == [4]


def test_the_inverse_is_the_running_sum():
    """Over several blocks, against the plain definition; never outside the support."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(50, 1000, generator=generator, dtype=torch.float64)
    share = share * (torch.rand(50, 1000, generator=generator) < 0.1)
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    sums = share.cumsum(-1)
    plain = (sums > (uniform * sums[:, -1])[:, None]).int().argmax(-1)
    assert inverted(share, uniform).tolist() == plain.tolist()
    almost = torch.full((50,), 1 - 2.0**-53, dtype=torch.float64)
    assert (share.gather(1, inverted(share, almost)[:, None]) > 0).all()


def test_ties_go_to_the_lower_id():
    assert allowed(torch.full((1, 4), 0.25), Sampling(top_k=2)).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1.0}, r"`temperature` is -1.0, but it must be a number in \[0, inf\)"),
        ({"top_k": 0}, "`top_k` is 0, but it must be a whole number"),
        ({"top_p": 0.0}, r"`top_p` is 0.0, but it must be a number in \(0, 1\]"),
        ({"min_tokens": 200}, "`min_tokens` is 200, but it must be at least 0 and at most"),
    ],
)
def test_what_is_refused(settings, said):
    with pytest.raises(Refused, match=said):
        Sampling(**settings)
