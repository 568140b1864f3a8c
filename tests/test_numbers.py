"""The numbers of `algorithms.md`, sections 0 to 9: each test is named after what it shows.

A number is compared at the digits that the report prints.
"""

import pytest
import torch
from samples import batch, graded, learned, marks, ragged, rewarded, same

from logratio import credit
from logratio.collate import collate
from logratio.controller import AdaptiveKL
from logratio.lab import dense
from logratio.numerics import clipped_surrogate, kl_estimate
from logratio.objectives import find
from logratio.part import Needs

THIRD = 0.5773502692  # 1 / sqrt(3)


def printed(value, digits):
    """Returns nested lists of numbers rounded as they are printed."""
    found = value.detach().tolist() if isinstance(value, torch.Tensor) else value
    if isinstance(found, list):
        return [printed(one, digits) for one in found]
    return round(found, digits) + 0.0


def advantages(*rewards, **settings):
    return credit.group(rewarded(*rewards), **settings)["advantage"][:, 0]


# 0. The shared contract


@pytest.mark.parametrize(
    ("average", "loss", "weights"),
    [("per_sequence", 0.0, [1 / 4, 1 / 12]), ("per_token", 0.5, [1 / 8, 1 / 8])],
)
def test_the_first_loss_of_two_lengths_is_0_or_a_half_with_a_gradient(average, loss, weights):
    """0.3: advantages +1 and -1 on 2 and 6 tokens; a zero loss with a gradient is normal."""
    rows = batch(ragged(2, 6), reward=[1.0, 0.0], old=torch.zeros(2, 6).double())
    value, slopes = learned(find("grpo").using(average=average), rows, logp=[[0.0] * 6] * 2)
    same(value, loss)
    same(slopes["logp"][:, 0], [-weights[0], weights[1]])


@pytest.mark.parametrize(
    ("rewards", "spread", "expected"),
    [
        ([1, 0, 0, 1], "population", [1.0, -1.0, -1.0, 1.0]),
        ([1, 0, 0, 1], "sample", [0.866, -0.866, -0.866, 0.866]),
        ([1, 0, 0, 1], "none", [0.5, -0.5, -0.5, 0.5]),
        ([1, 0, 0, 0], "population", [1.732, -0.577, -0.577, -0.577]),
        ([1, 0, 0, 0], "sample", [1.5, -0.5, -0.5, -0.5]),
        ([1, 0, 0, 0], "none", [0.75, -0.25, -0.25, -0.25]),
    ],
)
def test_binary_rewards_of_four_rollouts(rewards, spread, expected):
    """0.6."""
    found = advantages(*map(float, rewards), spread=spread)
    assert printed(found, 3) == expected


@pytest.mark.parametrize("rewards", [[0.7] * 7, [1.0, 1.0, 1.0, 1.0 + 1e-6]])
def test_equal_and_nearly_equal_rewards_give_no_advantage(rewards):
    """0.6: under an epsilon seven float32 rewards of 0.7 would be 0.856 each."""
    reward = torch.tensor(rewards, dtype=torch.float32)
    found = credit.group(batch(ragged(*[1] * len(rewards)), reward=reward))["advantage"]
    assert (found == 0).all()


# 1. SFT


@pytest.mark.parametrize("words", [2, 7, 50])
def test_uniform_logits_cost_log_of_the_vocabulary(words):
    """1.4."""
    ids, mask = torch.tensor([[0, 1, 1], [1, 0, 0]]), ragged(3, 1)
    policy = dense.read(torch.zeros(2, 4, words, dtype=torch.float64), ids)
    loss, _ = learned(find("sft"), batch(mask), logp=policy.logp)
    same(loss.double(), torch.tensor(float(words)).double().log())


def test_a_model_sure_of_the_next_token_costs_nothing_only_under_the_right_shift():
    """1.4: the row of logits before a token is the one that predicts it."""
    prompt, ids = 3, torch.tensor([[4, 0, 1, 2]])
    states = torch.cat([torch.tensor([[prompt]]), ids], 1)
    sure = 50.0 * torch.nn.functional.one_hot((states + 1) % 5, 5).double()
    loss, _ = learned(find("sft"), batch(ragged(4)), logp=dense.read(sure, ids).logp)
    same(loss.double(), 0.0)
    late = dense.read(sure.roll(1, 1), ids).logp
    assert learned(find("sft"), batch(ragged(4)), logp=late)[0] > 10


def test_exactly_the_tokens_of_the_response_are_trained():
    """1.4: the first token after the prompt and the stop token too."""
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    policy = dense.read(logits, torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0]]))
    rows = find("sft").prepare(batch(ragged(4, 2)))
    find("sft")(policy, rows).terms["nll"].loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(2).gt(0).equal(marks("xxxx.", "xx..."))


# 2. The reward model


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "slope"),
    [(2.0, 2.0, 0.6931, 0.5), (2.0, 0.5, 0.2014, 0.1824), (0.5, 2.0, 1.7014, 0.8176)],
)
def test_bradley_terry_at_no_margin_and_at_one_and_a_half(chosen, rejected, loss, slope):
    """2.4."""
    rows = batch(ragged(1, 1), pair=[0, 1])
    scores = {"score": [[0.0, chosen], [0.0, rejected]]}
    value, slopes = learned(find("reward_model"), rows, logp=[[0.0]] * 2, heads=scores)
    assert printed(value, 4) == loss
    assert printed(slopes["score"][:, 1], 4) == [-slope, slope]


# 3. RFT


def test_rft_divides_by_all_samples_or_by_the_kept_ones():
    """3.1: two of eight samples were kept, so the two readings differ by a factor of four."""
    rows = batch(ragged(1, 3), reward=[1.0, 1.0], drawn=[4.0, 4.0])
    logp = [[-1.0, 0.0, 0.0], [-1.0, -2.0, -3.0]]
    kept, _ = learned(find("rft").using(preset="offline"), rows, logp=logp)
    drawn, _ = learned(find("rft").using(preset="as_written"), rows, logp=logp)
    same(kept, 1.5)
    same(drawn, 0.375)
    same(learned(find("sft").using(average="per_sequence"), rows, logp=logp)[0], kept)


def test_samples_of_a_prompt_without_any_kept_one_count_too():
    """3.1: the expectation is over all that was sampled."""
    drawn = [graded(1.0), graded(0.0), *[graded(0.0, group=1)] * 4, graded(2.0, group=2)]
    found = collate(drawn, find("rft").using(preset="as_written"))
    same(found.stream("drawn").sum(), 7.0)
    assert found.group.tolist() == [0, 2]


def test_nothing_kept_is_no_loss_and_no_gradient():
    """3.4."""
    rows = batch(marks("..", ".."), reward=[0.0, 0.0], drawn=[4.0, 4.0])
    for preset in ("offline", "online", "as_written"):
        objective = find("rft").using(preset=preset)
        loss, slopes = learned(objective, rows, logp=[[-1.0, -2.0]] * 2)
        assert loss == 0
        assert (slopes["logp"] == 0).all()


# 4. PPO


@pytest.mark.parametrize(
    ("trace", "advantage", "returns"),
    [
        (0.95, [0.76075, 0.485, 0.3], [0.96075, 0.985, 1.0]),
        (1.0, [0.8, 0.5, 0.3], [1.0, 1.0, 1.0]),
        (0.0, [0.3, 0.2, 0.3], [0.5, 0.7, 1.0]),
    ],
)
def test_generalised_advantages_of_three_tokens(trace, advantage, returns):
    """4.4: r = (0, 0, 1), V = (0.2, 0.5, 0.7); trace 1 is the return less V, trace 0 one step."""
    rows = batch(ragged(3), reward=[1.0], value=[[0.2, 0.5, 0.7, 0.0]])
    found = credit.gae(rows, trace=trace, kl=0.0, whiten=False)
    same(found["advantage"], [advantage])
    same(found["returns"], [returns])


def test_a_constant_value_is_a_baseline():
    """4.4."""
    rows = batch(ragged(3), reward=[2.0], value=[[0.5] * 4])
    same(credit.gae(rows, trace=1.0, kl=0.0, whiten=False)["advantage"], [[1.5] * 3])


@pytest.mark.parametrize(("ratio", "surrogate", "slope"), [(1.5, -1.5, -1.5), (0.5, -0.8, 0.0)])
def test_a_bad_token_takes_the_smaller_of_the_two_surrogates(ratio, surrogate, slope):
    """4.2: code in the wild takes the larger, -1.2 and -0.5, which inverts the trust region."""
    log_ratio = torch.tensor([[ratio]], dtype=torch.float64).log()
    found = clipped_surrogate(log_ratio, -torch.ones(1, 1).double(), low=0.2, high=0.2)
    same(found[0], [[surrogate]])
    same(found[1], [[slope]])


def test_at_the_first_step_the_slope_is_minus_the_advantage():
    """4.1, the notebook's red question: the ratio is 1 in value, not in slope."""
    rows = batch(ragged(2, 2), reward=[1.0, 0.0], old=[[-1.0, -2.0]] * 2)
    _, slopes = learned(find("grpo").using(average="summed"), rows, logp=[[-1.0, -2.0]] * 2)
    same(slopes["logp"], [[-0.5, -0.5], [0.5, 0.5]])


def test_the_defaults_of_ppo_are_those_of_the_classic_trainer():
    """4.3."""
    ppo = find("ppo")
    loss, advantage = ppo.loss.resolved(), ppo.credit.resolved()
    assert (loss["clip"], loss["value_clip"], loss["value"]) == (0.2, 0.2, 0.1)
    assert (advantage["discount"], advantage["trace"], advantage["kl"]) == (1.0, 0.95, 0.05)


def test_the_adaptive_kl_moves_by_at_most_a_fifth_of_its_gain():
    """4.3: the coefficient times 1 + K clip(KL / target - 1, -0.2, 0.2)."""
    steered = AdaptiveKL(coefficient=0.05, target=6.0, gain=0.5)
    found = [steered.after(kl=kl).coefficient for kl in (0.0, 6.0, 6.6, 60.0)]
    assert found == pytest.approx([0.045, 0.05, 0.0525, 0.055])


# 5. KL estimators

EXACT = Needs(policy=frozenset({"kl"}))
HALF, SKEWED = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.9, 0.1]]).double().log()


@pytest.mark.parametrize(
    ("estimator", "values", "mean"),
    [
        ("k1", [-0.5878, 1.6094], 0.5108),
        ("k2", [0.1727, 1.2951], 0.7339),  # printed .1728, half the square of the rounded k1
        ("k3", [0.2122, 0.8094], 0.5108),
    ],
)
def test_estimates_of_the_kl_of_a_fair_and_a_skewed_coin(estimator, values, mean):
    """5: the true KL is 0.5108, so k1 and k3 are unbiased and k2 is not."""
    found, _ = kl_estimate(HALF, SKEWED, estimator=estimator)
    assert printed(found[0], 4) == values
    assert printed(found.mean(), 4) == mean


def test_the_exact_kl_of_the_two_coins():
    """5: 0.5108, and 0.3681 the other way round."""
    for left, right, kl in ((HALF, SKEWED, 0.5108), (SKEWED, HALF, 0.3681)):
        logits, reference = (coin[:, None].expand(1, 2, 2) for coin in (left, right))
        policy = dense.read(logits, torch.tensor([[0]]), needs=EXACT, reference=reference)
        assert printed(policy.stream("kl"), 4) == [[kl]]


REFERENCE = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).log()
POLICY = torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64).log()


def expected_gradient(coefficient, logp):
    """Returns the gradient in the logits of a loss with this slope at each sampled token."""
    weighed = logp.exp() * coefficient
    return weighed - logp.exp() * weighed.sum()


@pytest.mark.parametrize(
    ("estimator", "corrected", "direction"),
    [
        ("k1", False, "none"),
        ("k2", False, "reverse"),
        ("k3", False, "forward"),
        ("k3", True, "reverse"),
        ("k1", True, "reverse"),
    ],
)
def test_which_divergence_each_estimator_descends_inside_the_loss(estimator, corrected, direction):
    """5: k1 has none, k3 has KL(reference, policy); weighed by a ratio of 1 both are right."""
    log_ratio = torch.zeros_like(POLICY) if corrected else None
    _, slope = kl_estimate(POLICY, REFERENCE, estimator=estimator, log_ratio=log_ratio)
    logits = POLICY.clone().requires_grad_()
    logp = logits.log_softmax(-1)
    divergence = {
        "none": 0 * logp.sum(),
        "reverse": (logp.exp() * (logp - REFERENCE)).sum(),
        "forward": (REFERENCE.exp() * (REFERENCE - logp)).sum(),
    }[direction]
    same(expected_gradient(slope, POLICY), torch.autograd.grad(divergence, logits)[0])


@pytest.mark.parametrize(
    ("estimator", "settled"),
    [
        ("k2", [0.4711, 0.4333, 0.0956]),  # the exponential tilt
        ("k3", [0.5144, 0.36, 0.1256]),  # the rational tilt
        ("k1", [1.0, 0.0, 0.0]),  # collapse on the best
    ],
)
def test_where_each_estimator_lets_a_bandit_settle(estimator, settled):
    """5: rewards (1, 0, -1), reference (.2, .5, .3), coefficient 1, exact expectations."""
    reward, logp = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64), REFERENCE
    for _ in range(200):
        _, slope = kl_estimate(logp, REFERENCE, estimator=estimator)
        advantage = reward - (logp.exp() * reward).sum()
        logp = (logp - 0.3 * (slope - advantage)).log_softmax(-1)
    assert printed(logp.exp()[0], 4) == settled


# 6. DPO

PREFERENCE = {"pair": [0, 1], "ref": [[0.0, 0.0]] * 2}
LOG_RATIOS = [[0.4, 0.2], [-0.3, 0.0]]


@pytest.mark.parametrize(
    ("normalise", "loss", "slopes"),
    [
        ("sum", 0.649159, [[-0.047752] * 2, [0.047752, 0.0]]),
        ("length", 0.663597, [[-0.024250] * 2, [0.048500, 0.0]]),
    ],
)
def test_dpo_of_two_tokens_against_one(normalise, loss, slopes):
    """6.4: h = 0.09 and 0.06; sigmoid(-h) = 0.485004 in the second."""
    rows = batch(ragged(2, 1), **PREFERENCE)
    value, found = learned(find("dpo").using(normalise=normalise), rows, logp=LOG_RATIOS)
    assert printed(value, 6) == loss
    assert printed(found["logp"], 6) == slopes


def test_dpo_starts_at_log_2_and_a_swapped_pair_differs_by_its_margin():
    """6.4: L(h) - L(-h) = -h."""
    at_reference, found = learned(
        find("dpo"), batch(ragged(2, 1), **PREFERENCE), logp=[[0.0] * 2] * 2
    )
    assert printed(at_reference, 4) == 0.6931
    same(found["logp"], [[-0.05, -0.05], [0.05, 0.0]])
    swapped = batch(ragged(2, 1), **{**PREFERENCE, "pair": [1, 0]})
    right, _ = learned(find("dpo"), batch(ragged(2, 1), **PREFERENCE), logp=LOG_RATIOS)
    wrong, _ = learned(find("dpo"), swapped, logp=LOG_RATIOS)
    same(right - wrong, -0.09)


def test_the_mean_form_is_the_sum_form_at_beta_over_the_length():
    """6.4: at equal lengths; a prefix that both share then cancels in both."""
    rows, logp = batch(ragged(2, 2), **PREFERENCE), [[0.4, 0.2], [0.4, -0.3]]
    mean, found = learned(find("dpo").using(normalise="length", beta=0.2), rows, logp=logp)
    total, other = learned(find("dpo").using(normalise="sum", beta=0.1), rows, logp=logp)
    same(mean, total)
    same(found["logp"], other["logp"])
    same(found["logp"].sum(0), [0.0, 0.0])


# 7. GRPO, 8. process supervision


@pytest.mark.parametrize(("right", "size"), [(1, 4), (3, 8), (7, 8)])
def test_binary_advantages_follow_the_success_rate(right, size):
    """7.4: sqrt((1 - p) / p) and -sqrt(p / (1 - p)) under the population deviation."""
    found = advantages(*[1.0] * right, *[0.0] * (size - right))
    p = right / size
    same(found[0], ((1 - p) / p) ** 0.5)
    same(found[-1], -((p / (1 - p)) ** 0.5))


def test_a_thousandfold_reward_changes_grpo_nowhere_and_dr_grpo_a_thousandfold():
    """7.4."""
    found = {}
    for scale in (1.0, 1000.0):
        rows = batch(ragged(1, 2), reward=[scale, 0.0], old=[[0.0] * 2] * 2)
        for preset in ({}, {"preset": "dr_grpo", "average.length": 2}):
            _, slopes = learned(find("grpo").using(**preset), rows, logp=[[0.0] * 2] * 2)
            found[scale, len(preset)] = slopes["logp"]
    same(found[1000.0, 0], found[1.0, 0])
    same(found[1000.0, 2], 1000 * found[1.0, 2])


def test_a_steps_reward_reaches_its_own_and_all_earlier_tokens():
    """8.4: steps [[1, 0], [0, 0]]; pool mean 0.25 and deviation 0.4330."""
    rows = batch(
        ragged(4, 2), reward=[0.0, 0.0], step_end=marks(".x.x", "xx.."),
        step_reward=[[0.0, 1.0, 0.0, 0.0], [0.0] * 4],
    )  # fmt: skip
    found = printed(credit.process(rows)["advantage"], 4)
    assert found == [[1.1547, 1.1547, -0.5774, -0.5774], [-1.1547, -0.5774, 0.0, 0.0]]


# 9. DAPO


@pytest.mark.parametrize(
    ("limit", "cache", "length", "penalty"),
    [
        (20480, 4096, 16384, 0.0),
        (20480, 4096, 18432, -0.5),
        (20480, 4096, 20480, -1.0),
        (20480, 4096, 20481, -1.0),
        (32, 8, 24, 0.0),
        (32, 8, 28, -0.5),
        (32, 8, 32, -1.0),
    ],
)
def test_the_length_reward_falls_over_the_cache(limit, cache, length, penalty):
    """9.4."""
    found = credit.overlong_penalty(batch(ragged(length)), limit=limit, cache=cache)
    assert found.tolist() == [penalty]


@pytest.mark.parametrize(
    ("high", "before", "most"), [(0.2, 0.01, 0.012), (0.28, 0.01, 0.0128), (0.2, 0.9, 1.0)]
)
def test_the_ceiling_of_a_probability_is_multiplicative(high, before, most):
    """9.4: why a higher clip protects rare tokens; at 0.9 it never binds."""
    good = torch.ones(1, 1).double()
    below, above = (torch.tensor([[most * by / before]]).double().log() for by in (0.999, 1.001))
    assert clipped_surrogate(below, good, low=0.2, high=high)[1] > 0
    assert (clipped_surrogate(above, good, low=0.2, high=high)[1] > 0) == (most == 1.0)


def test_the_defaults_of_dapo_are_the_papers():
    """9.3."""
    written = find("dapo").using(preset="as_written")
    assert (written.loss.resolved()["clip"], written.loss.resolved()["clip_high"]) == (0.2, 0.28)
    limits = written.credit.resolved()
    assert (limits["overlong_limit"], limits["overlong_cache"]) == (20480, 4096)
    assert limits["signed"] is True
    assert (find("dapo").average.name, find("dapo").keep.name) == ("per_token", "mixed_groups")
