"""The learner: one step is one gradient, however the batch is cut, and it goes downhill."""

import math
from dataclasses import replace

import pytest
import torch
from model.models import models
from torch.testing import assert_close

from logratio.batch import Batch
from logratio.collate import collate
from logratio.learner import Learner, Stopped, Update
from logratio.model.load import load
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.objectives.dpo import dpo
from logratio.objectives.grpo import grpo
from logratio.objectives.ppo import ppo
from logratio.objectives.sft import sft
from logratio.records import Graded, Rollout, Verdict
from logratio.settings import Refused

PROMPTS = ((5, 6, 7), (8, 9))
ANSWERS = ((10, 11, 12, 0), (13, 0), (14, 15, 0), (16, 17, 18, 19, 0), (20, 0), (21, 22, 0))


def graded(*, pairs=False):
    """Returns three answers to each of two prompts; as pairs, the first two of each."""
    made = []
    for place, ids in enumerate(ANSWERS):
        rollout = Rollout(
            problem=str(place // 3), group=place // 3, index=place % 3,
            prompt_ids=PROMPTS[place // 3], ids=ids, old=(-3.0,) * len(ids),
        )  # fmt: skip
        side = place % 3
        if not pairs:
            made.append(Graded(rollout=rollout, verdict=Verdict(reward=float(place % 3 == 1))))
        elif side < 2:
            verdict = Verdict(reward=float(1 - side))
            made.append(Graded(rollout=rollout, verdict=verdict, pair=place // 3, side=side))
    return made


def setting(objective, **how):
    """Returns a learner on a fresh tiny model, with a batch and its rollouts."""
    rows = graded(pairs=objective.declared().couples == "pair")
    torch.manual_seed(0)
    model = models()["gpt2"].float()
    network = Network(model, objective.declared())
    rollouts = [one.rollout for one in rows]
    batch = scored(collate(rows, objective), network, rollouts)
    return Learner(network, objective, Update(**how)), batch, rollouts


def scored(batch, network, rollouts):
    """Returns the batch with what frozen models say: here the policy itself, a little off."""
    said = score(network, rollouts)
    values = said.get("value")
    columns = {**batch.columns} if values is None else {**batch.columns, "value": values}
    return replace(batch, ref=said["logp"] + 0.1 * batch.mask, columns=columns)


def gradients(learner, batch, rollouts):
    learner.optimizer.zero_grad()
    loss, watch = learner.backward(learner.objective.prepare(batch), rollouts, reference=None)
    return loss, watch, [p.grad.clone() for p in learner.parameters if p.grad is not None]


@pytest.mark.parametrize(
    "objective",
    [sft, grpo.using(beta=0.1), grpo.using(average="per_group_token"), ppo, dpo],
    ids=lambda objective: objective.name,
)
def test_how_the_batch_is_cut_changes_nothing(objective):
    learner, batch, rollouts = setting(objective)
    whole = gradients(learner, batch, rollouts)
    learner.how = replace(learner.how, budget=9)
    assert len(learner.cut(batch, rollouts)) > 1
    parts = gradients(learner, batch, rollouts)
    assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-6)
    assert_close(parts[1], whole[1], rtol=1e-5, atol=1e-6)
    assert_close(parts[2], whole[2], rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_on_policy_the_ratio_is_one():
    learner, batch, rollouts = setting(grpo)
    batch = replace(batch, old=score(learner.network, rollouts)["logp"])
    learned = learner.update(batch, rollouts)
    assert_close(learned.watch["ratio"], 1.0, rtol=0, atol=1e-6)
    assert learned.watch["clip_low"] == learned.watch["clip_high"] == 0.0
    assert learned.grad_norm > 0


def test_sft_learns_its_answers_by_heart():
    learner, batch, rollouts = setting(sft, lr=1e-2)
    losses = [learner.update(batch, rollouts).loss for _ in range(60)]
    assert losses[0] > 3
    # the three answers to a prompt differ in their first token: log 3 once in 3.2 tokens remains
    assert losses[-1] < 0.5


def test_the_head_has_its_own_rate():
    learner, batch, rollouts = setting(ppo, lr=1e-6, head_lr=1e-2)
    (head, _) = learner.network.heads["value"].parameters()
    before = head.detach().clone()
    learner.update(batch, rollouts)
    moved = head.detach() - before
    assert_close(moved.abs().max(), torch.tensor(1e-2), rtol=1e-2, atol=0)  # Adam's step


def test_the_rate_rises_and_falls():
    learner, batch, rollouts = setting(sft, lr=1e-3, warmup=2, steps=6)
    rates = [learner.update(batch, rollouts).lr for _ in range(7)]
    assert_close(rates, [5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4, 0.0], rtol=1e-9, atol=0)


def test_the_gradient_is_clipped():
    learner, batch, rollouts = setting(sft, clip_norm=0.01)
    norms: list[float] = []

    def note(*_):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in learner.parameters)))

    learner.optimizer.register_step_pre_hook(note)
    learned = learner.update(batch, rollouts)
    assert learned.grad_norm > 0.01
    assert_close(norms, [0.01], rtol=1e-4, atol=0)
    assert all(p.grad is None for p in learner.parameters)  # sampling needs the memory


def test_a_gradient_that_is_not_finite_is_skipped_and_many_stop_the_run():
    learner, batch, rollouts = setting(grpo, patience=2)
    weight = next(learner.network.model.parameters())
    before = weight.detach().clone()
    weight.data[5, 0] = float("nan")
    assert learner.update(batch, rollouts).skipped
    assert_close(weight.detach()[6], before[6], rtol=0, atol=0)
    with pytest.raises(Stopped, match="2 gradients in a row"):
        learner.update(batch, rollouts)


def test_a_finite_gradient_ends_the_run_of_bad_ones():
    learner, batch, rollouts = setting(grpo, patience=2)
    learner.bad = 1
    assert not learner.update(batch, rollouts).skipped
    assert learner.bad == 0


def test_a_model_that_can_not_learn_is_refused():
    network = Network(load("tiny").model, sft.declared())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(Refused, match="no parameter that can be trained"):
        Learner(network, sft, Update())


def test_rollouts_of_another_batch_are_refused():
    learner, batch, rollouts = setting(sft)
    with pytest.raises(Refused, match="made of other ones"):
        learner.update(batch, rollouts[:-1])
    assert isinstance(batch, Batch)
