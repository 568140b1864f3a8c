"""What QPO's classifier is regressed on: the reward, or the success expected at the next state."""

import math
import warnings

import pytest
from objectives.rows import (
    batch_of,
    check_runs,
    check_slopes,
    needed,
    needs_of,
    numbers,
    policy_of,
)
from torch.testing import assert_close

from logratio.objectives.qpo import qpo

PLAIN = {"offset": "none", "c": 0.0}
VALUES = [9.0, 0.1, 0.2, 0.3]  # expected before each of three tokens, and after the last
STATISTICS = {"next_value": [VALUES]}


def quiet(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qpo.using(**PLAIN, **settings)


def targets_of(objective, mask, reward, **streams):
    """Gives the targets of one row whose values are those above."""
    zeros = [[0.0] * 3]
    policy = policy_of(zeros, statistics=STATISTICS)
    batch = batch_of([mask], ref=zeros, reward=[reward], **streams)
    return policy, batch, objective(policy, batch).watch["target"]


@pytest.mark.parametrize(
    ("settings", "streams", "expected"),
    [
        ({"target": "monte_carlo"}, {}, [1.0, 1.0, 1.0]),
        ({"target": "bootstrap"}, {}, [0.1, 0.2, 1.0]),
        ({"target": "q_learning"}, {}, [0.1, 0.2, 1.0]),
        # .5 of the next value and .5 of the next target: .1 + .5, then .05 + .3
        ({"target": "td", "trace": 0.5}, {}, [0.35, 0.6, 1.0]),
        # .02 + .9, then .01 + .828
        ({"target": "td"}, {}, [0.838, 0.92, 1.0]),
        ({"target": "td", "trace": 0.0}, {}, [0.1, 0.2, 1.0]),
        ({"target": "td", "trace": 1.0}, {}, [1.0, 1.0, 1.0]),
        # cut off: the value after the last token stands for the reward
        ({"target": "bootstrap", "truncated": "bootstrap"}, {"truncated": [1]}, [0.1, 0.2, 0.3]),
        ({"target": "bootstrap", "truncated": "bootstrap"}, {"truncated": [0]}, [0.1, 0.2, 1.0]),
        ({"target": "bootstrap", "truncated": "reward"}, {"truncated": [1]}, [0.1, 0.2, 1.0]),
        (
            {"target": "td", "trace": 0.5, "truncated": "bootstrap"},
            {"truncated": [1]},
            [0.175, 0.25, 0.3],
        ),
        (
            {"target": "td", "trace": 1.0, "truncated": "bootstrap"},
            {"truncated": [1]},
            [0.3, 0.3, 0.3],
        ),
        # a lagged copy's values come as a column
        (
            {"target": "bootstrap", "lagged": True},
            {"next_value": [[9.0, 0.6, 0.7, 0.8]]},
            [0.6, 0.7, 1.0],
        ),
        (
            {"target": "td", "trace": 0.5, "lagged": True, "truncated": "bootstrap"},
            {"next_value": [[9.0, 0.6, 0.7, 0.8]], "truncated": [1]},
            [0.675, 0.75, 0.8],
        ),
    ],
)
def test_each_target_and_the_slope_to_it(settings, streams, expected):
    """At l = 0 the slope of a token is 1/2 less its target, over three."""
    objective = qpo.using(**PLAIN, **settings)
    policy, batch, found = targets_of(objective, [1, 1, 1], 1.0, **streams)
    assert_close(found, numbers([expected]))
    check_slopes(objective, policy, batch, logp=[[(0.5 - x) / 3 for x in expected]])


@pytest.mark.parametrize(
    ("settings", "mask", "expected"),
    [
        ({"target": "monte_carlo"}, [1, 0, 1], [1.0, 0.0, 1.0]),
        # from the first token the policy comes to choose again at column 2
        ({"target": "bootstrap"}, [1, 0, 1], [0.2, 0.0, 1.0]),
        ({"target": "td", "trace": 0.5}, [1, 0, 1], [0.6, 0.0, 1.0]),
        ({"target": "bootstrap"}, [1, 1, 0], [0.1, 1.0, 0.0]),
        ({"target": "bootstrap"}, [0, 1, 1], [0.0, 0.2, 1.0]),
        ({"target": "bootstrap"}, [0, 0, 0], [0.0, 0.0, 0.0]),
    ],
)
def test_what_the_policy_did_not_write_is_passed_over(settings, mask, expected):
    found = targets_of(qpo.using(**PLAIN, **settings), mask, 1.0)[2]
    assert_close(found, numbers([expected]))


def value_of(objective, row, reference, *, state=None, **scalars):
    """Gives the declared statistic of one state, of logits with these exponentials."""
    statistic = objective.declared().statistics["next_value"]
    logits = [numbers([values]).log() for values in (row, reference)]
    known = {name: numbers(value) for name, value in scalars.items()}
    given = None if state is None else numbers([state])
    return statistic.function(*logits, given, known)


# policy (.8, .2) against reference (.5, .5): odds 1.6 and .4, success 8/13 and 2/7
EVEN = ([0.8, 0.2], [0.5, 0.5])
DOUBLE = ([1.6, 0.4], [0.5, 0.5])  # the same, at twice the logits' level
UNEVEN = ([0.8, 0.2], [0.3, 0.7])  # odds 8/3 and 2/7, success 8/11 and 2/9


@pytest.mark.parametrize(
    ("settings", "rows", "expected"),
    [
        ({"target": "bootstrap"}, EVEN, 0.8 * 8 / 13 + 0.2 * 2 / 7),
        ({"target": "td"}, EVEN, 0.8 * 8 / 13 + 0.2 * 2 / 7),
        ({"target": "q_learning"}, EVEN, 8 / 13),
        ({"target": "bootstrap"}, DOUBLE, 0.8 * 8 / 13 + 0.2 * 2 / 7),
        # raw logits hold their level: odds 3.2 and .8
        ({"target": "bootstrap", "reading": "logit"}, DOUBLE, 0.8 * 3.2 / 4.2 + 0.2 * 0.8 / 1.8),
        ({"target": "q_learning", "reading": "logit"}, DOUBLE, 3.2 / 4.2),
        # gain 2: roots of the odds, 2 and 1 of (4, 1) / (1, 1)
        ({"target": "bootstrap", "gain": 2.0}, ([0.8, 0.2], [0.2, 0.8]), 0.8 * 2 / 3 + 0.2 / 3),
        # only what the reference would say
        ({"target": "q_learning"}, UNEVEN, 8 / 11),
        ({"target": "q_learning", "top_k": 1}, UNEVEN, 2 / 9),
        ({"target": "q_learning", "top_k": 2}, UNEVEN, 8 / 11),
        ({"target": "q_learning", "top_p": 0.6}, UNEVEN, 2 / 9),
        ({"target": "q_learning", "top_p": 0.8}, UNEVEN, 8 / 11),
        # three quarters are held by the one of three to one: odds .2 / .75
        ({"target": "q_learning", "top_p": 0.75}, ([0.8, 0.2], [1.0, 3.0]), 4 / 19),
        # A = 1: odds times the reference, which is the policy itself
        ({"target": "bootstrap", "A": 1.0}, UNEVEN, 0.8 * 4 / 9 + 0.2 / 6),
        (
            {"target": "bootstrap", "A": 1.0, "reading": "logit"},
            UNEVEN,
            0.8 * 4 / 9 + 0.2 / 6,
        ),
        # ... times the raw reference, at ten times its level; the policy ten times below
        (
            {"target": "bootstrap", "A": 1.0, "reading": "logit", "centred": False},
            ([0.8, 0.2], [3.0, 7.0]),
            0.8 * 4 / 9 + 0.2 / 6,
        ),
        (
            {"target": "bootstrap", "A": 1.0, "reading": "logit", "centred": True},
            ([0.8, 0.2], [3.0, 7.0]),
            0.8 * 0.08 / 1.08 + 0.2 * 0.02 / 1.02,
        ),
    ],
)
def test_the_success_expected_at_a_state(settings, rows, expected):
    assert_close(value_of(quiet(**settings), *rows), numbers([expected]))


def test_a_fixed_and_a_learned_c_and_a_and_an_offset():
    """Twice the odds: 3.2 and .8."""
    expected = numbers([0.8 * 3.2 / 4.2 + 0.2 * 0.8 / 1.8])
    double = math.log(2)
    fixed = qpo.using(target="bootstrap", offset="none", c=double)
    assert_close(value_of(fixed, *EVEN, c=99.0), expected)
    learned = qpo.using(target="bootstrap", offset="none", c="learned")
    assert_close(value_of(learned, *EVEN, c=double), expected)
    head = qpo.using(target="bootstrap", offset="head", c=0.0)
    assert_close(value_of(head, *EVEN, state=double), expected)
    log_sum_exp = qpo.using(target="bootstrap", c=0.0)
    assert_close(value_of(log_sum_exp, *DOUBLE), expected)
    # A = -1: odds over the reference's half, doubled again
    with pytest.warns(UserWarning, match="`A` is not 0"):
        prior = qpo.using(target="bootstrap", A="learned", **PLAIN)
    assert_close(value_of(prior, *EVEN, A=-1.0), expected)


def test_the_best_is_at_least_the_mean():
    """Property 5 of the notes: equal only where the policy says nothing but the best."""
    best, mean = (qpo.using(target=name, **PLAIN) for name in ("q_learning", "bootstrap"))
    for rows in (EVEN, UNEVEN, ([0.1, 0.9], [0.6, 0.4])):
        assert value_of(best, *rows) > value_of(mean, *rows)
    sure = ([1.0, 1e-300], [0.5, 0.5])
    assert_close(value_of(best, *sure), value_of(mean, *sure))


@pytest.mark.parametrize(
    ("settings", "streams", "statistics", "state"),
    [
        ({"target": "bootstrap"}, [], {"next_value"}, None),
        ({"target": "q_learning", "top_k": 3, "top_p": 0.9}, [], {"next_value"}, None),
        ({"target": "td"}, [], {"next_value"}, None),
        ({"target": "td", "trace": 1.0}, [], {"next_value"}, None),
        ({"target": "td", "truncated": "bootstrap"}, ["truncated"], {"next_value"}, None),
        ({"target": "bootstrap", "lagged": True}, ["next_value"], set(), None),
        (
            {"target": "q_learning", "lagged": True, "truncated": "bootstrap"},
            ["next_value", "truncated"],
            set(),
            None,
        ),
        ({"target": "bootstrap", "offset": "head"}, [], {"next_value"}, "offset"),
        ({"target": "bootstrap", "offset": "log_sum_exp"}, [], {"next_value"}, None),
    ],
)
def test_each_target_runs_on_what_it_asks_for(settings, streams, statistics, state):
    objective = qpo.using(**{**PLAIN, **settings})
    raw = settings.get("offset") == "log_sum_exp"
    assert needed(objective) == needs_of(
        "reward",
        "ref_logit" if raw else "ref",
        *streams,
        policy={"logit"} if raw else set(),
        heads={"offset"} if state else set(),
        statistics=statistics,
    )
    for statistic in objective.declared().statistics.values():
        assert (statistic.reference, statistic.state) == (True, state)
    check_runs(objective)
