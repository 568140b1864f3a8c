"""The bench itself: that its expectations are exact, and that a wrong claim fails."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from logratio.lab import kl
from logratio.lab.bench import all_pairs, optimised, start, variation
from logratio.lab.claims import every_claim, regressions
from logratio.lab.tree import random_world

CLAIMS = {f"{claim.experiment.objective.name} {claim.case}": claim for claim in every_claim()}
BANDITS = {claim.case: claim for claim in kl.bandits()}
NAMED = {"sft", "rft", "reward_model", "dpo", "ppo", "grpo", "qpo", "spo"}


def test_every_method_with_a_closed_form_is_claimed():
    assert {name.partition(" ")[0] for name in CLAIMS} == NAMED
    said = " ".join(CLAIMS)
    for word in ("monte_carlo", "bootstrap", "q_learning", "td", "a_star_po", "rebel", "kimi"):
        assert word in said


@pytest.mark.parametrize("name", CLAIMS)
def test_no_gradient_is_left_at_the_closed_form(name):
    claim = CLAIMS[name]
    for slope in claim.experiment.gradient(claim.optimum).values():
        assert slope.abs().max() < 1e-9


@pytest.mark.parametrize("name", CLAIMS)
def test_an_optimiser_has_a_way_to_go(name):
    claim = CLAIMS[name]
    goal = claim.experiment.law(claim.optimum)
    assert variation(claim.experiment.law(start(claim)), goal) > 0.1


def test_the_loss_is_the_expectation_over_the_policy():
    world = random_world(1, length=1)
    claim = next(one for one in CLAIMS.values() if "k3 in the loss, one" in one.case)
    experiment = claim.experiment
    share = world.reference.softmax(-1)[:, 0]
    assert_close(experiment.share({"logits": world.reference}), share.flatten())
    policy = random_world(2, length=1).reference
    logp = policy[:, 0].log_softmax(-1)
    x = (world.reference[:, 0].log_softmax(-1) - logp).exp()
    mean = world.reward.mean(-1, keepdim=True)
    slow = (
        -(logp.exp() * (world.reward - mean)).sum() + 0.7 * (logp.exp() * (x - 1 - x.log())).sum()
    )
    assert_close(experiment.loss({"logits": policy}), slow)


def test_pairs_come_both_ways_round_as_often_as_they_are_preferred():
    world = random_world()
    chance = torch.arange(3 * 64 * 64, dtype=torch.float64).view(3, 64, 64)
    data = all_pairs(world, chance)
    chosen, other = slice(0, None, 2), slice(1, None, 2)
    first, second = data.sequence[chosen], data.sequence[other]
    assert_close(data.share[chosen], chance[data.problem[chosen], first, second])
    assert set(first.tolist()) == set(range(64))
    assert torch.equal(data.pair, torch.arange(len(data.pair)))


def test_a_claim_about_the_wrong_law_fails():
    claim = next(regressions(random_world()))
    wrong = replace(claim, optimum={"logits": random_world(7).reference}, steps=20)
    row = wrong.row()
    assert not row.passed
    assert row.measured["gradient"] > 1e-3
    assert row.measured["variation"] > 0.1


def test_a_start_at_the_wrong_value_off_policy_ends_elsewhere():
    """Only on policy is Q0 a mere baseline."""
    off, *_, on = regressions(random_world())
    columns = {**off.experiment.columns, "q0": off.experiment.columns["q0"] + 0.5}
    moved = replace(off, experiment=replace(off.experiment, columns=columns), steps=60)
    goal = off.experiment.law(off.optimum)
    assert variation(off.experiment.law(optimised(moved)), goal) > 0.01
    assert on.experiment.objective.loss.settings["q0"] == 0.5


@pytest.mark.parametrize("name", BANDITS)
def test_the_numbers_of_the_bandit_leave_no_gradient(name):
    claim = BANDITS[name]
    slope = claim.experiment.gradient(claim.optimum)["logits"]
    assert slope.abs().max() < 1e-4


def test_every_estimator_adds_up_and_points_where_the_report_says():
    rows = list(kl.rows())
    assert len(rows) == 18
    assert all(row.passed for row in rows)
