"""Where SPO's Q0 comes from, how many samples carry it, and who must have one."""

from math import log

import pytest
from objectives.rows import (
    batch_of,
    check_losses,
    check_slopes,
    check_watch,
    loss_of,
    numbers,
    policy_of,
    refusal,
)
from torch.testing import assert_close

from logratio.objectives.spo import spo


def four(**streams):
    """Responses to two prompts; log-ratios .2 + .2 and -.2, and twice .5, to a reference at -3."""
    policy = policy_of([[-2.8, -2.8], [-3.2, -9.0], [-2.5, -9.0], [-2.5, -9.0]])
    given = {"reward": [-1.0, -0.5, -2.0, -2.0], "group": [4, 4, 9, 9], **streams}
    mask = [[1, 1], [1, 0], [1, 0], [1, 0]]
    return policy, batch_of(mask, ref=[[-3.0, -3.0]] * 4, **given)


@pytest.mark.parametrize(
    ("q0", "start", "other", "samples"),
    [
        # r - beta log-ratio at beta .5: -1.2 and -.4, and twice -2.25
        ("vargrad", -0.8, -2.25, [2.0, 2.0]),
        ("mean", -0.75, -2.0, [2.0, 2.0]),
        (-0.3, -0.3, -0.3, [0.0, 0.0]),
        (2, 2.0, 2.0, [0.0, 0.0]),
        # .5 log of the mean of e^-2 and e^-1; (e^-2 + e^-1)^2 / (e^-4 + e^-2) samples
        ("policy", -0.6899427465208612, -2.0, [1.6480542736638854, 2.0]),
        # ... of e^-2.4 and e^-.8
        ("policy_weighted", -0.6546232198358032, -2.25, [1.3879781898744896, 2.0]),
    ],
)
def test_where_q0_comes_from(q0, start, other, samples):
    objective = spo.setting("beta", 0.5).setting("q0", q0)
    policy, batch = four()
    ends = [start + 0.2, start - 0.1, other + 0.25, other + 0.25]
    check_watch(
        objective, policy, batch,
        q0=[start] * 2 + [other] * 2, q0_samples=[samples[0]] * 2 + [samples[1]] * 2,
        q_terminal=ends, cumulative_advantage=[0.2, -0.1, 0.25, 0.25],
    )  # fmt: skip
    off = [q - r for q, r in zip(ends, [-1.0, -0.5, -2.0, -2.0], strict=True)]
    check_losses(objective, policy, batch, soft=[x * x for x in off])
    # 2 beta (Q - r) over four rows: no gradient goes through Q0
    each = [x / 4 for x in off]
    slopes = [[each[0]] * 2, [each[1], 0], [each[2], 0], [each[3], 0]]
    check_slopes(objective, policy, batch, logp=slopes)


def test_q0_of_the_reference_is_a_column():
    objective = spo.using(beta=0.5, q0="reference")
    policy, batch = four(q0=[-0.4, -0.4, -1.0, -1.0], q0_samples=[8.0, 8.0, 16.0, 16.0])
    check_watch(
        objective, policy, batch, q0=[-0.4, -0.4, -1.0, -1.0], q0_samples=[8.0, 8.0, 16.0, 16.0],
        q_terminal=[-0.2, -0.5, -0.75, -0.75], cumulative_advantage=[0.2, -0.1, 0.25, 0.25],
    )  # fmt: skip


@pytest.mark.parametrize("q0", ["vargrad", "mean", "policy_weighted", "policy"])
def test_a_group_of_one_has_no_q0_of_its_own(q0):
    objective = spo.setting("q0", q0)
    batch = batch_of([[1]], ref=[[-3.0]], reward=[0.0])
    assert refusal(objective, policy_of([[-3.0]]), batch) == (
        "`group` 0 has 1 rollout(s), but a group baseline needs at least 2 for each prompt"
    )


def test_a_learned_q0_learns_at_the_state_where_the_response_begins():
    """The first row begins after a left pad; Q = .3 + .2 and -.1 - .1, rewards 0 and -1."""
    objective = spo.using(beta=0.5, q0="learned")
    policy = policy_of(
        [[7.0, -2.6], [-3.2, -3.0]], heads={"q0": [[5.0, 0.3, 6.0], [-0.1, 6.0, 6.0]]}
    )
    batch = batch_of([[0, 1], [1, 1]], ref=[[-3.0, -3.0]] * 2, reward=[0.0, -1.0])
    check_watch(
        objective, policy, batch, q0=[0.3, -0.1], q0_samples=[1.0, 1.0], q_terminal=[0.5, -0.2],
        cumulative_advantage=[0.2, -0.1],
    )  # fmt: skip
    check_slopes(
        objective, policy, batch,
        logp=[[0, 0.25], [0.4, 0.4]], q0=[[0, 0.5, 0], [0.8, 0, 0]],
    )  # fmt: skip


def test_a_learned_q0_under_the_cross_entropy_has_slope_one_over_beta():
    objective = spo.using(beta=0.5, kind="cross_entropy", q0="learned")
    policy = policy_of([[-3.0]], heads={"q0": [[-log(2), 0.0]]})
    batch = batch_of([[1]], ref=[[-3.0]], reward=[-log(2) / 2])
    check_slopes(objective, policy, batch, logp=[[-1 / 3]], q0=[[-2 / 3, 0]])


def test_a_learned_q0_under_pairs():
    objective = spo.using(beta=0.5, kind="pair", q0="learned", average="per_pair")
    policy = policy_of([[-2.6], [-3.2]], heads={"q0": [[0.1, 0.0], [0.1, 0.0]]})
    batch = batch_of([[1], [1]], pair=[0, 1], ref=[[-3.0]] * 2, reward=[1.0, 0.0])
    # .3 - 1 = -.7
    check_slopes(
        objective, policy, batch, logp=[[-0.7], [0.7]], q0=[[-1.4, 0], [1.4, 0]]
    )  # fmt: skip


def test_the_sum_is_over_the_tokens_and_the_mean_over_the_responses():
    objective = spo.using(beta=0.5, q0=0.0)
    policy, batch = four(reward=[0.2, 0.9, 0.25, 0.25])
    # only the second is off, by -1, over four
    check_slopes(objective, policy, batch, logp=[[0, 0], [-1 / 4, 0], [0, 0], [0, 0]])
    assert_close(loss_of(objective, policy, batch), numbers(1 / 4))


@pytest.mark.parametrize("q0", ["policy", "policy_weighted"])
def test_a_prompt_without_any_success_teaches_nothing(q0):
    """Rewards of -inf alone: Q0 is -inf as well, the policy's chance of success 0, and right."""
    objective = spo.setting("kind", "cross_entropy").setting("q0", q0)
    policy = policy_of([[-2.0], [-3.2]])
    batch = batch_of([[1], [1]], group=[0, 0], ref=[[-3.0]] * 2, reward=[-float("inf")] * 2)
    check_losses(objective, policy, batch, soft=[0.0, 0.0])
    check_slopes(objective, policy, batch, logp=[[0], [0]])


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "squared", "q0": 0.0},
        {"kind": "pair", "q0": 0.0, "average": "per_pair"},
        {"kind": "cross_entropy", "q0": "vargrad"},
        {"kind": "cross_entropy", "q0": "mean"},
    ],
)
def test_an_endless_penalty_is_refused_where_it_would_be_averaged_or_squared(settings):
    batch = batch_of(
        [[1], [1]], group=[0, 0], pair=[0, 1], ref=[[-3.0]] * 2, reward=[0.0, -float("inf")]
    )
    sentence = refusal(spo.using(**settings), policy_of([[-3.0]] * 2), batch)
    assert sentence.startswith("`reward` holds -inf")
