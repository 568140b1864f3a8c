"""Objectives that must agree: GRPO and its relatives, SFT, PPO and QPO.

SPO, the preferences and the importance network are in test_identities_soft.py.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from objectives.compare import agree, changed, fresh, log_ratios, measured, rewarded
from objectives.rows import eight_rows, gradients, loss_of
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from logratio.batch import Policy
from logratio.lab import dense
from logratio.objectives.dapo import dapo
from logratio.objectives.grpo import grpo
from logratio.objectives.ppo import ppo
from logratio.objectives.qpo import qpo
from logratio.objectives.rft import rft
from logratio.objectives.sft import sft
from logratio.objectives.variance_grpo import variance_grpo

# --- GRPO and its relatives ---


def test_gspo_on_one_token_is_grpo_on_one_token():
    batch = rewarded(mask=torch.arange(5).expand(8, 5) < 1)
    for settings in ({}, {"clip": 0.05}, {"beta": 0.1}):
        agree(grpo.using(ratio="sequence", **settings), grpo.using(**settings), batch)


def test_dapo_with_equal_clips_on_equal_lengths_is_grpo():
    batch = rewarded(mask=torch.ones(8, 5, dtype=torch.bool))
    agree(dapo.using(clip_high=0.2), grpo, batch)
    agree(dapo.using(clip_high=None, average="per_sequence"), grpo)
    agree(dapo, grpo.using(clip_high=0.28, average="per_token"))


def test_variance_grpo_at_strength_zero_is_grpo_to_the_last_bit():
    (loss, slope), (other_loss, other_slope) = (
        measured(variance_grpo.using(preset="off")),
        measured(grpo),
    )
    assert loss.item() == other_loss.item()
    assert slope.tolist() == other_slope.tolist()


def test_a_constant_importance_is_grpo():
    """What is left to decide is then the same at every token."""
    batch = rewarded(importance=torch.full((8, 6), 0.25).double())
    agree(variance_grpo.using(**{"weight.form": "remaining"}), grpo, batch)


def test_a_dual_clip_that_nothing_reaches_is_no_dual_clip():
    agree(grpo.using(dual=1e3), grpo)


def test_an_upper_clip_like_the_lower_is_the_default():
    agree(grpo.using(clip=0.1, clip_high=0.1), grpo.using(clip=0.1))
    agree(ppo.using(clip=0.1, clip_high=0.1), ppo.using(clip=0.1))


def test_on_policy_no_clip_and_no_cap_matters():
    """At ratio 1: plain, narrow, wide, CISPO and GSPO all have the slope -A."""
    _, slope = measured(grpo, on_policy=True)
    for settings in ({"clip": 1e-3}, {"clip": 1.0}, {"surrogate": "cispo"}, {"ratio": "sequence"}):
        assert_close(measured(grpo.using(**settings), on_policy=True)[1], slope)


def test_cispo_under_its_cap_is_grpo_without_a_clip():
    """Its gradient, that is: the ratio is a constant of CISPO's loss."""
    wide = {"clip": 1.0, "clip_high": 50.0}
    _, slope = measured(grpo.using(surrogate="cispo", **wide))
    assert_close(slope, measured(grpo.using(**wide))[1])


def test_sampling_from_the_full_law_needs_no_correction():
    batch = eight_rows()[0]
    agree(grpo.using(behaviour_cap=2.0), grpo, changed(batch, behaviour=batch.stream("old")))


def test_process_supervision_of_one_step_is_outcome_supervision():
    batch = eight_rows()[0]
    ends = torch.arange(5) == batch.mask.sum(1, keepdim=True) - 1
    judged = changed(
        batch, step_end=ends, step_reward=torch.where(ends, batch.stream("reward")[:, None], 0.0)
    )
    agree(grpo.using(preset="process"), grpo, judged)
    # and so is a row without any step
    nothing = torch.zeros(8, 5, dtype=torch.bool)
    agree(grpo.using(preset="process"), grpo, changed(batch, step_end=nothing))


def test_leave_one_out_is_the_group_mean_times_g_over_g_less_one():
    plain = {"credit.spread": "none"}
    loss, slope = measured(grpo.using(**plain))
    found = measured(grpo.using(**plain, **{"credit.center": "leave_one_out"}))
    assert_close(found, (4 / 3 * loss, 4 / 3 * slope))


def test_grpo_does_not_see_scale_or_shift_of_the_reward_and_dr_grpo_sees_scale():
    reward = eight_rows()[0].stream("reward")
    moved = rewarded(reward=1000 * reward - 7)
    assert_close(measured(grpo, moved), measured(grpo))
    plain = grpo.using(preset="dr_grpo", **{"average.length": 5})
    loss, slope = measured(plain)
    assert_close(measured(plain, moved), (1000 * loss, 1000 * slope))


def test_the_corrected_k3_has_on_policy_the_slope_of_k2():
    """log policy / ref: both then follow the reverse KL."""
    equal = {"reward": torch.ones(8, dtype=torch.float64)}
    corrected = grpo.using(beta=0.5, estimator="k3", corrected=True)
    _, slope = measured(corrected, rewarded(**equal), on_policy=True)
    squared = measured(grpo.using(beta=0.5, estimator="k2"), rewarded(**equal), on_policy=True)[1]
    assert_close(slope, squared)


def test_equal_rewards_leave_the_kl_alone():
    batch = rewarded(reward=torch.full((8,), 0.7, dtype=torch.float64))
    _, slope = measured(grpo, batch)
    assert slope.abs().max() == 0
    assert measured(grpo.using(beta=0.1), batch)[1].abs().max() > 0


# --- supervised and policy-gradient limits ---


def test_rft_that_keeps_everything_is_sft():
    agree(rft, sft.using(preset="as_written"))
    agree(rft.using(average="per_token"), sft)


def test_rft_over_all_samples_is_grpo_with_the_acceptance_for_its_advantage():
    """At ratio 1: eight were drawn, the reward kept those of 1, and the rest has slope 0."""
    batch = eight_rows()[0]
    accepted = batch.stream("reward") > 0
    kept = replace(batch, pair=None).rows(accepted)
    kept = changed(kept, drawn=torch.full((int(accepted.sum()),), 8 / int(accepted.sum())).double())
    _, ids, logits, _ = eight_rows()
    for preset, average in (("as_written", "per_sequence"), ("online", "summed")):
        leaf = logits.clone().requires_grad_()
        logp = dense.taken(leaf.log_softmax(-1), ids)
        policy = Policy(logp=logp[accepted])
        found = torch.autograd.grad(loss_of(rft.using(preset=preset), policy, kept), leaf)[0]
        _, slope = measured(grpo.using(credit="plain", average=average), on_policy=True)
        assert_close(found, slope)


@pytest.mark.parametrize("constant", [0.0, 0.4])
def test_ppo_without_discount_trace_or_kl_is_reinforce_with_a_constant_baseline(constant):
    """A = R - b on every token, for a value that is b everywhere and 0 after the end."""
    batch = eight_rows()[0]
    valued = changed(batch, value=torch.full((8, 6), constant).double())
    objective = ppo.using(
        value=0.0,
        average="summed",
        **{"credit.kl": 0.0, "credit.trace": 1.0, "credit.discount": 1.0, "credit.whiten": False},
    )
    _, ids, logits, _ = eight_rows()
    leaf = logits.requires_grad_()
    logp = dense.taken(leaf.log_softmax(-1), ids)
    text = (logp * batch.mask).sum(1)
    loss = -((batch.stream("reward") - constant) * text).mean()
    wanted = torch.autograd.grad(loss, leaf)[0]
    assert_close(measured(objective, valued, on_policy=True)[1], wanted)


def test_ppo_and_grpo_share_their_surrogate():
    """With the same advantages, REINFORCE's, and no weight on the value."""
    credit = {"credit.kl": 0.0, "credit.trace": 1.0, "credit.whiten": False}
    batch = rewarded(value=torch.zeros(8, 6, dtype=torch.float64))
    settings = {"clip": 0.1, "clip_high": 0.3, "dual": 1.2, "average": "per_token"}
    agree(ppo.using(value=0.0, **credit, **settings), grpo.using(credit="plain", **settings), batch)


# --- QPO ---


def test_raw_logits_are_log_probs_with_the_log_sum_exp_for_an_offset():
    for settings in ({}, {"target": "bootstrap"}, {"target": "q_learning"}, {"gain": 0.5}):
        raw = qpo.using(reading="logit", offset="none", **settings)
        agree(raw, qpo.using(reading="logprob", offset="log_sum_exp", **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(qpo.using(reading="logit", offset="none", A=0.5), qpo.using(A=0.5))


def test_a_head_that_says_the_log_sum_exp_is_that_offset():
    batch, ids, logits, reference = eight_rows()
    gain = 2.0
    apart = (logits.logsumexp(-1) - reference.logsumexp(-1)) / gain
    with_head = qpo.using(offset="head", c=0.1, gain=gain)
    policy = dense.read(logits, ids, needs=with_head.declared(), heads={"offset": apart})
    raw = qpo.using(offset="log_sum_exp", c=0.1, gain=gain)
    other = dense.read(logits, ids, needs=raw.declared())
    assert_close(loss_of(with_head, policy, batch), loss_of(raw, other, batch))


def test_on_one_token_every_target_is_the_reward():
    batch = rewarded(mask=torch.arange(5).expand(8, 5) < 1)
    for target in ("bootstrap", "q_learning", "td"):
        agree(qpo.using(target=target), qpo, batch)


def test_td_reaches_from_bootstrap_to_monte_carlo():
    agree(qpo.using(target="td", trace=0.0), qpo.using(target="bootstrap"))
    agree(qpo.using(target="td", trace=1.0), qpo)
    cut = {"truncated": "bootstrap"}
    agree(qpo.using(target="td", trace=0.0, **cut), qpo.using(target="bootstrap", **cut))


def test_qpo_on_one_token_is_an_implicit_process_reward_model():
    """Binary cross-entropy of beta times the summed log-ratio, at beta = 1 / gain."""
    policy, batch = fresh()
    batch = changed(batch, mask=torch.arange(5).expand(8, 5) < 1)
    assert batch.reward is not None
    loss = binary_cross_entropy_with_logits(0.5 * log_ratios(policy, batch), batch.reward)
    objective = qpo.using(offset="none", c=0.0, gain=2.0)
    assert_close(loss_of(objective, policy, batch), loss)
    slope = torch.autograd.grad(loss, policy.logp)[0]
    assert_close(gradients(objective, policy, batch)["logp"], slope)


def test_a_top_k_of_the_whole_vocabulary_restricts_nothing():
    full = qpo.using(target="q_learning")
    agree(qpo.using(target="q_learning", top_k=7), full)
    apart = measured(qpo.using(target="q_learning", top_k=1))[0] - measured(full)[0]
    assert apart.abs() > 1e-4
