"""Sampler and learner agree: the numbers of the one are those of the other, in every precision."""

import math

import pytest
import torch
from model.models import models

from logratio.collate import collate
from logratio.engine import requests_of
from logratio.engines.local import Local
from logratio.learner import Learner, Update
from logratio.model.load import load
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.objectives import find
from logratio.records import Graded, Problem, Verdict
from logratio.sampler import Sampling

PROBLEMS = [
    Problem(key=str(size), prompt="", prompt_ids=tuple(range(1, size))) for size in (5, 9, 17)
]


def made(model, precision="fp32", temperature=1.0, **settings):
    """Returns a learner of the model, and rollouts that the engine sampled from what it holds."""
    objective = find("grpo")
    network = Network(model, objective.declared(), temperature=temperature)
    learner = Learner(network, objective, Update(precision=precision))
    sampling = Sampling(max_tokens=24, temperature=temperature, **settings)
    rollouts = Local(network, []).generate(requests_of(PROBLEMS, samples=6), sampling)
    return learner, rollouts


def differences(learner, rollouts):
    """Returns |engine's log-prob - learner's| of every token."""
    said = score(learner.network, rollouts)["logp"]
    return torch.cat([
        (said[row, : len(one.ids)].double() - torch.tensor(one.old)).abs()
        for row, one in enumerate(rollouts)
    ])  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma3", "gpt_neox"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 20}])
def test_in_float32(name, settings):
    apart = differences(*made(models()[name].float(), **settings))
    assert apart.mean() < 1e-5
    assert apart.max() < 1e-3


@pytest.mark.parametrize("name", ["tiny", "tiny-gpt2"])
def test_in_bfloat16(name):
    apart = differences(*made(load(name).model, "bf16"))
    assert apart.max() > 0
    assert math.exp(apart.mean()) < 1.03


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_one(precision):
    """At temperature 0.7 and top-k 20: `old` is of the whole softmax at that temperature."""
    model = load("tiny").model
    learner, rollouts = made(model, precision, temperature=0.7, top_k=20)
    graded = [Graded(rollout=one, verdict=Verdict(reward=float(sum(one.ids) % 7)))
              for one in rollouts]  # fmt: skip
    learned = learner.update(collate(graded, learner.objective), rollouts)
    near = 1e-5 if precision == "fp32" else 5e-3  # bf16 rounds each logit to 8 bits
    assert learned.watch["ratio"] == pytest.approx(1, abs=near)


def test_the_learners_step_is_what_is_sampled_next():
    """bf16: masters step, the shared copy follows, and the engine has it."""
    learner, rollouts = made(load("tiny").model, "bf16")
    before = [weight.clone() for weight in learner.network.model.parameters()]
    graded = [Graded(rollout=one, verdict=Verdict(reward=float(sum(one.ids) % 7)))
              for one in rollouts]  # fmt: skip
    learner.optimizer.param_groups[0]["lr"] = 0.1
    learner.rates = [0.05 for _ in learner.rates]
    learner.update(collate(graded, learner.objective), rollouts)
    pairs = learner.masters.pairs
    assert all(weight.dtype == torch.bfloat16 for weight, _ in pairs)
    assert all(torch.equal(weight, master.to(torch.bfloat16)) for weight, master in pairs)
    assert not any(weight is master for weight, master in pairs)
    after = list(learner.network.model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    engine = Local(learner.network, [])
    again = engine.generate(requests_of(PROBLEMS, samples=6), Sampling(max_tokens=24))
    assert math.exp(differences(learner, again).mean()) < 1.03
