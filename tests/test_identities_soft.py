"""Objectives that must agree: SPO, the preferences and the importance network.

Where the other side is a formula it is written out here, from the definitions.
"""

import math

import pytest
import torch
from objectives.compare import agree, changed, fresh, log_ratios, measured, rewarded
from objectives.rows import batch_of, eight_rows, gradients, loss_of, numbers, policy_of
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from logratio.batch import Batch, Policy
from logratio.objective import Objective
from logratio.objectives.dpo import dpo
from logratio.objectives.importance import importance
from logratio.objectives.reward_model import reward_model
from logratio.objectives.sft import sft
from logratio.objectives.spo import spo

# --- SPO and its relatives ---


def test_spo_from_the_groups_own_mean_is_the_variance_within_the_group():
    """AGRO, TBA and VarGrad: the variance of r - beta log-ratio, whose mean needs no stop."""
    policy, batch = fresh()
    assert batch.reward is not None
    left = (batch.reward - 0.3 * log_ratios(policy, batch)).view(2, 4)
    variance = (left - left.mean(1, keepdim=True)).square().mean()
    objective = spo.using(preset="agro", beta=0.3)
    assert_close(loss_of(objective, policy, batch), variance)
    slope = torch.autograd.grad(variance, policy.logp)[0]
    assert_close(gradients(objective, policy, batch)["logp"], slope)


@pytest.mark.parametrize("q0", [0.0, -3.0, "mean", "vargrad"])
def test_spo_in_pairs_is_rebel_wherever_q0_comes_from(q0):
    """((D - D') / eta - (r - r'))^2 against the policy that sampled, at eta = 1 / beta."""
    policy, batch = fresh()
    assert batch.reward is not None
    assert batch.old is not None
    summed = ((policy.logp - batch.old) * batch.mask).sum(1)
    gap = 0.3 * (summed[0::2] - summed[1::2]) - (batch.reward[0::2] - batch.reward[1::2])
    objective = spo.using(preset="rebel", beta=0.3, q0=q0)
    assert_close(loss_of(objective, policy, batch), gap.square().mean())
    slope = torch.autograd.grad(gap.square().mean(), policy.logp)[0]
    assert_close(gradients(objective, policy, batch)["logp"], slope)


def test_a_star_po_at_one_temperature_is_spo_from_the_references_value():
    """Stage 1: V* = beta log mean exp(r / beta) of the reference's samples. Stage 2: a square."""
    policy, batch = fresh()
    samples, beta = numbers([0.0, 1.0, 1.0, -1.0]), 0.5
    best = beta * math.log(sum(math.exp(r / beta) for r in samples.tolist()) / 4)
    batch = changed(
        batch, q0=torch.full((8,), best).double(), q0_samples=torch.full((8,), 4.0).double()
    )
    assert batch.reward is not None
    loss = (beta * log_ratios(policy, batch) - (batch.reward - best)).square().mean()
    objective = spo.using(preset="a_star_po", beta=beta)
    assert_close(loss_of(objective, policy, batch), loss)
    slope = torch.autograd.grad(loss, policy.logp)[0]
    assert_close(gradients(objective, policy, batch)["logp"], slope)


def tree(seed: int = 0):
    """Gives every text of two tokens out of three, and the log-probs of a policy at each token."""
    source = torch.Generator().manual_seed(seed)

    def table(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    first, second = table(3).requires_grad_(), table(3, 3).requires_grad_()
    reference, reward = (table(3), table(3, 3)), table(9)
    texts = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def logp(start: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        begin = start.log_softmax(0)[texts[:, 0]]
        return torch.stack([begin, rest.log_softmax(1)[texts[:, 0], texts[:, 1]]], 1)

    batch = Batch(
        mask=torch.ones(9, 2, dtype=torch.bool), group=torch.zeros(9, dtype=torch.long),
        reward=reward, ref=logp(*reference),
    )  # fmt: skip
    return (first, second), logp(first, second), batch


def test_on_policy_spo_is_the_policy_gradient_with_a_kl():
    """Expected over the texts: -2 beta times the slope of E r - beta KL, whatever Q0 is."""
    tables, logp, batch = tree()
    beta = 0.7
    chance = logp.sum(1).exp()
    assert batch.reward is not None
    assert batch.ref is not None
    gain = (chance * (batch.reward - beta * (logp - batch.ref).sum(1))).sum()
    wanted = torch.autograd.grad(gain, tables, retain_graph=True)
    for q0 in (0.0, -2.0):
        terms = spo.using(beta=beta, q0=q0)(Policy(logp=logp), batch).terms
        expected = (chance.detach() * terms["soft"].loss).sum()
        found = torch.autograd.grad(expected, tables, retain_graph=True)
        for slope, of_gain in zip(found, wanted, strict=True):
            assert_close(slope, -2 * beta * of_gain)


@pytest.mark.parametrize("kind", ["squared", "cross_entropy"])
def test_at_the_soft_optimum_every_text_is_exactly_right(kind):
    """Policy ref e^(r / beta) / Z and Q0 = beta log Z: Q is the reward of each of nine texts."""
    _, _, batch = tree()
    beta = 0.7
    assert batch.reward is not None
    assert batch.ref is not None
    reward = batch.reward - 3  # below 0, which the cross-entropy asks for
    chance = batch.ref.sum(1).exp() * (reward / beta).exp()
    best = (chance / chance.sum()).view(3, 3)
    start = best.sum(1, keepdim=True)
    logp = torch.stack([start.expand(3, 3), best / start], 2).log().view(9, 2)
    batch = changed(batch, reward=reward)
    objective = spo.using(kind=kind, beta=beta, q0=beta * chance.sum().log().item())
    policy = Policy(logp=logp.requires_grad_())
    assert_close(objective(policy, batch).watch["q_terminal"].detach(), reward)
    assert gradients(objective, policy, batch)["logp"].abs().max() < 1e-12
    if kind == "squared":
        assert loss_of(objective, policy, batch) < 1e-24


def test_spo_does_not_see_a_shift_of_reward_and_q0_together():
    agree_under(spo.using(q0=0.2), 0.0, spo.using(q0=5.2), 5.0)


@pytest.mark.parametrize("q0", ["vargrad", "mean"])
def test_spo_from_the_group_does_not_see_a_shift_of_the_reward(q0):
    agree_under(spo.using(q0=q0), 0.0, spo.using(q0=q0), 5.0)


def agree_under(one: Objective, shift: float, other: Objective, other_shift: float) -> None:
    reward = eight_rows()[0].stream("reward")
    first = measured(one, rewarded(reward=reward + shift))
    second = measured(other, rewarded(reward=reward + other_shift))
    assert_close(first, second)


def test_scaling_reward_beta_and_q0_scales_spos_loss_by_the_square():
    reward = eight_rows()[0].stream("reward")
    loss, slope = measured(spo.using(q0=0.2, beta=0.1))
    scaled = measured(spo.using(q0=0.6, beta=0.3), rewarded(reward=3 * reward))
    assert_close(scaled, (9 * loss, 9 * slope))


def test_kimis_slope_is_a_policy_gradient_with_a_pull_on_the_log_ratio():
    """-1 / (2 tau) times it is (r - mean r) dlog pi - tau / 2 d(log-ratio)^2."""
    policy, batch = fresh()
    assert batch.reward is not None
    assert batch.old is not None
    tau = 0.3
    ratio = ((policy.logp - batch.old) * batch.mask).sum(1)
    mean = batch.reward.view(2, 4).mean(1).repeat_interleave(4)
    gain = ((batch.reward - mean) * ratio - tau / 2 * ratio.square()).mean()
    slope = torch.autograd.grad(gain, policy.logp)[0]
    found = gradients(spo.using(preset="kimi", beta=tau), policy, batch)["logp"]
    assert_close(found, -2 * tau * slope)


def test_certain_success_under_the_cross_entropy_is_sft():
    """Reward 0: -Q / beta, whose slope is -1 on every token, summed."""
    batch = rewarded(reward=torch.zeros(8, dtype=torch.float64))
    soft = measured(spo.using(kind="cross_entropy", q0=-1.0, beta=0.1), batch)[1]
    assert_close(soft, measured(sft.using(average="summed"), batch)[1])


def test_ipo_is_a_pair_of_spo_whose_rewards_are_half_over_beta_apart():
    """(D - D' - 1 / (2 beta))^2."""
    reward = torch.tensor([2.5, 0.0] * 4, dtype=torch.float64)
    pair = spo.using(kind="pair", beta=1.0, q0=0.0, average="per_pair")
    agree(dpo.using(kind="ipo", beta=0.2), pair, rewarded(reward=reward))


# --- preferences ---


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_dpo_is_bradley_terry_on_beta_times_the_summed_log_ratio(beta):
    policy, batch = fresh()
    score = beta * log_ratios(policy, batch)
    last = batch.mask.sum(1)
    heads = torch.zeros(8, 6, dtype=torch.float64).index_put((torch.arange(8), last), score)
    scored = Policy(logp=policy.logp.detach(), heads={"score": heads})
    loss = loss_of(reward_model.using(pooling="last"), scored, batch)
    assert_close(loss_of(dpo.using(beta=beta), policy, batch), loss)
    slope = torch.autograd.grad(loss, policy.logp)[0]
    assert_close(gradients(dpo.using(beta=beta), policy, batch)["logp"], slope)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "robust"])
def test_dpo_per_token_is_dpo_summed_at_beta_over_the_length(kind):
    batch = rewarded(mask=torch.ones(8, 5, dtype=torch.bool))
    per_token = dpo.using(kind=kind, beta=0.5, normalise="length")
    agree(per_token, dpo.using(kind=kind, beta=0.1), batch)


def test_robust_and_smoothed_dpo_without_smoothing_are_plain():
    agree(dpo.using(kind="robust"), dpo)
    agree(dpo.using(smoothing=0.0), dpo)


def test_the_mean_of_the_scores_is_the_score_of_the_mean_hidden_state():
    """For a linear head: two names for one pooling."""
    batch = eight_rows()[0]
    hidden = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head = numbers([0.5, -1.0, 2.0])
    policy = Policy(logp=torch.zeros(8, 5, dtype=torch.float64), heads={"score": hidden @ head + 7})
    tokens = batch.mask.double() / batch.mask.sum(1, keepdim=True)
    pooled = (hidden[:, 1:] * tokens[:, :, None]).sum(1) @ head + 7
    objective = reward_model.using(pooling="mean")
    assert_close(objective(policy, batch).watch["score"], pooled)
    assert_close(loss_of(objective, policy, batch), -logsigmoid(pooled[0::2] - pooled[1::2]).mean())


# --- the importance network ---


def pair_at(f: float, one: float, other: float, *, mean: float = 0.0, variance: float = 1.0):
    """One pair at this correlation, under a bound of .8."""
    read = math.atanh(f / 0.8)
    policy = policy_of([[-1.0]] * 2, heads={"importance": [[read, 0.0]] * 2})
    batch = batch_of(
        [[1]] * 2, group=[0, 0], pair=[0, 1], reward=[one, other], split=[0, 0],
        mean=[mean] * 2, variance=[variance] * 2, shift=[0.0] * 2,
    )  # fmt: skip
    return policy, batch


NORMAL = importance.using(link="tanh", bound=0.8)


def test_two_rewards_that_vary_as_they_should_have_their_product_for_a_correlation():
    """a^2 + b^2 = 2: the likelihood is best at f = a b exactly."""
    a = math.sqrt(1 + math.sqrt(0.75))  # a^2 + (.5 / a)^2 = 2
    for f, sign in ((0.4, -1), (0.5, 0), (0.6, 1)):
        slope = gradients(NORMAL, *pair_at(f, a, 0.5 / a))["importance"][0, 0].item()
        assert round(slope, 12) * sign > 0 if sign else abs(slope) < 1e-12


@pytest.mark.parametrize("kind", ["normal", "product", "bernoulli"])
def test_which_of_a_pair_comes_first_does_not_matter(kind):
    objective = importance.using(kind=kind, link="tanh", bound=0.8)
    losses = [loss_of(objective, *pair_at(0.3, *p, mean=0.4)) for p in ((1.0, 0.0), (0.0, 1.0))]
    assert_close(losses[0], losses[1])


def test_scaling_the_reward_adds_its_log_to_the_likelihood():
    """R to 3 R + 5, the mean and the variance with it: log v grows by 2 log 3, no slope changes."""
    plain, scaled = pair_at(0.3, 1.0, 0.2), pair_at(0.3, 8.0, 5.6, mean=5.0, variance=9.0)
    assert_close(loss_of(NORMAL, *scaled) - loss_of(NORMAL, *plain), numbers(2 * math.log(3)))
    slopes = [gradients(NORMAL, *given)["importance"] for given in (plain, scaled)]
    assert_close(slopes[0], slopes[1])
