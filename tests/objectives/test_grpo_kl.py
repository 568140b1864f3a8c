"""GRPO's KL to the reference: each estimator's slope, with and without the correction."""

from math import log

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_slopes,
    check_watch,
    policy_of,
    refusal,
)

from logratio.objectives.grpo import grpo


def token(log_x, *, ratio=1.0, **streams):
    """One token without advantage: log x = log ref / policy, and this ratio to the sampler."""
    policy = policy_of([[-1.0]], kl=[[0.6]])
    batch = batch_of(
        [[1]], old=[[-1.0 - log(ratio)]], ref=[[-1.0 + log_x]], advantage=[[0.0]], **streams
    )  # fmt: skip
    return policy, batch


# x = e^-.5 = .60653 where the policy has gained, e^.5 = 1.64872 where it has lost
ESTIMATES = [
    ("k1", -0.5, +0.5, 1.0),  # -log x
    ("k1", +0.5, -0.5, 1.0),
    ("k2", -0.5, 0.125, +0.5),  # (log x)^2 / 2, slope -log x
    ("k2", +0.5, 0.125, -0.5),
    ("k3", -0.5, 0.1065306597126334, +0.3934693402873666),  # x - 1 - log x, slope 1 - x
    ("k3", +0.5, 0.1487212707001282, -0.6487212707001282),
    ("k3", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("estimator", "log_x", "value", "slope"), ESTIMATES)
def test_slope_of_each_estimator(estimator, log_x, value, slope):
    objective = grpo.using(beta=2.0, estimator=estimator)
    policy, batch = token(log_x)
    check_losses(objective, policy, batch, policy=[[0.0]], kl=[[value]])
    check_slopes(objective, policy, batch, logp=[[2 * slope]])
    check_watch(
        objective, policy, batch,
        ratio=[[1.0]], clip_low=[[0.0]], clip_high=[[0.0]], kl=[[value]],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "log_x", "ratio", "value", "slope"),
    [
        # at ratio 1: the estimate, and its slope and the estimate together
        ("k1", -0.5, 1.0, +0.5, 1.5),
        ("k2", -0.5, 1.0, 0.125, 0.625),
        ("k3", -0.5, 1.0, 0.1065306597126334, 0.5),  # k3 + 1 - x = -log x: the reverse KL's own
        # at ratio 2 twice that
        ("k1", -0.5, 2.0, +1.0, 3.0),
        ("k2", -0.5, 2.0, 0.25, 1.25),
        ("k3", -0.5, 2.0, 0.2130613194252668, 1.0),
        ("k3", +0.5, 2.0, 0.2974425414002564, -1.0),
        ("k3", -0.5, 0.5, 0.0532653298563167, 0.25),
    ],
)
def test_slope_of_each_corrected_estimator(estimator, log_x, ratio, value, slope):
    objective = grpo.using(beta=2.0, estimator=estimator, corrected=True)
    policy, batch = token(log_x, ratio=ratio)
    check_losses(objective, policy, batch, policy=[[0.0]], kl=[[value]])
    check_slopes(objective, policy, batch, logp=[[2 * slope]])


def test_the_correction_is_off_unless_asked_for():
    policy, batch = token(-0.5, ratio=2.0)
    check_losses(grpo.using(beta=1.0, estimator="k1"), policy, batch, policy=[[0.0]], kl=[[0.5]])


@pytest.mark.parametrize(
    ("log_x", "value", "slope"),
    [
        (20.0, 485165174.4097903, -485165194.4097903),  # e^20 - 21, 1 - e^20
        (21.0, 485165174.4097903, 0.0),  # held there: it pushes no more
    ],
)
def test_k3_is_held_where_it_would_overflow(log_x, value, slope):
    objective = grpo.using(beta=1.0)
    policy, batch = policy_of([[-21.0]]), token(0.0)[1]
    policy = policy_of([[-1.0 - log_x]])
    batch = batch_of([[1]], old=[[-1.0 - log_x]], ref=[[-1.0]], advantage=[[0.0]])
    check_losses(objective, policy, batch, policy=[[0.0]], kl=[[value]])
    check_slopes(objective, policy, batch, logp=[[slope]])


def test_the_exact_kl_is_read_from_the_policy():
    objective = grpo.using(beta=2.0, estimator="exact")
    policy, batch = token(-0.5)
    check_losses(objective, policy, batch, policy=[[0.0]], kl=[[0.6]])
    check_slopes(objective, policy, batch, logp=[[0]], kl=[[2.0]])
    assert objective(policy, batch).watch["kl"].item() == 0.6


def test_surrogate_and_kl_add_up():
    """-A at ratio 1 and beta (1 - x): -2 + .5 * .39347."""
    objective = grpo.using(beta=0.5)
    policy = policy_of([[-1.0]])
    batch = batch_of([[1]], old=[[-1.0]], ref=[[-1.5]], advantage=[[2.0]])
    check_slopes(objective, policy, batch, logp=[[-1.8032653298563167]])


def test_the_kl_keeps_weight_one_where_the_surrogate_has_none():
    objective = grpo.using(beta=1.0, estimator="k2")
    policy = policy_of([[-1.0, -1.0]])
    batch = batch_of(
        [[1, 1]], old=[[-1.0] * 2], ref=[[-1.5] * 2], advantage=[[2.0] * 2], weight=[[0.0, 3.0]]
    )  # fmt: skip
    check_slopes(objective, policy, batch, logp=[[0.25, -3.0 + 0.25]])


def test_the_kl_is_of_each_token_even_under_a_sequence_ratio():
    objective = grpo.using(beta=1.0, estimator="k1", corrected=True, ratio="sequence")
    policy = policy_of([[log(2), 0.0]])
    batch = batch_of([[1, 1]], old=[[0.0, 0.0]], ref=[[0.0, 0.0]], advantage=[[0.0, 0.0]])
    # 2 (log 2 + 1) and 1 (0 + 1), over two tokens
    check_slopes(objective, policy, batch, logp=[[1.6931471805599454, 0.5]])


def test_without_beta_there_is_no_kl():
    policy, batch = token(-0.5)
    check_losses(grpo, policy, batch, policy=[[0.0]])
    check_watch(grpo, policy, batch, ratio=[[1.0]], clip_low=[[0.0]], clip_high=[[0.0]])


def test_the_kl_in_the_reward_is_centred_with_it():
    """Rewards 1 and 1, sampled KL .5 and 1.5 at .1: .95 and .85, so +-.05 and +-1."""
    objective = grpo.using(**{"credit.kl": 0.1, "credit.spread": "none"})
    batch = objective.prepare(
        batch_of(
            [[1], [1]], group=[0, 0], reward=[1.0, 1.0], old=[[-1.0]] * 2, ref=[[-1.5], [-2.5]]
        )
    )
    check_slopes(objective, policy_of([[-1.0]] * 2), batch, logp=[[-0.025], [0.025]])


SAMPLED = "a `beta` with a sampled `estimator`"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": -0.1}, "`beta` is -0.1, but it must be a number in [0, inf)"),
        (
            {"beta": 0.04, "credit.kl": 0.1},
            "`beta` is 0.04 and `credit.kl` is 0.1: the KL goes into the loss or the reward, "
            "so set one of them to 0",
        ),
        ({"estimator": "k2"}, "`estimator` is 'k2', but only a `beta` above 0 reads it"),
        ({"corrected": True}, f"`corrected` is True, but only {SAMPLED} reads it"),
        (
            {"corrected": True, "beta": 0.1, "estimator": "exact"},
            f"`corrected` is True, but only {SAMPLED} reads it",
        ),
        (
            {"beta": 0.1, "estimator": "k4"},
            "`estimator` is 'k4', but it must be one of 'k1', 'k2', 'k3', 'exact'",
        ),
        ({"corrected": 1}, "`corrected` is 1, but it must be true or false"),
    ],
)
def test_what_is_refused(settings, sentence):
    assert refusal(grpo.using, **settings) == sentence


def test_a_credit_without_a_kl_of_its_own_goes_with_a_beta():
    assert grpo.using(beta=0.1, credit="process").credit.name == "process"
