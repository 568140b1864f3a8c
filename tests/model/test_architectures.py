"""Every architecture is served exactly by the engine and the route that the probe finds for it."""

import pytest
import torch
from model.architectures import ARCHITECTURES, PAGE, moved, page
from model.models import distinct
from torch.testing import assert_close

from logratio.engine import find, requests_of
from logratio.model.network import Network
from logratio.model.pack import packs
from logratio.model.probe import probe
from logratio.model.scorer import score
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling

HANDFUL = ("Bloom", "Cohere 2", "Mamba")
REST = [pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES if name not in HANDFUL]
END = 0
CLOSE = 1e-4  # of the largest: float32 in weights so loud that each layer adds to its rounding


def problems(*lengths):
    generator = torch.Generator().manual_seed(3)
    return [
        Problem(
            key=str(place),
            prompt="",
            prompt_ids=tuple(torch.randint(1, 50, (n,), generator=generator).tolist()),
        )
        for place, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("name", [*HANDFUL, *REST])
def test_an_architecture_is_served_exactly(name):
    model = ARCHITECTURES[name].made()
    assert moved(model) >= 0.3
    assert distinct(model) >= 10
    network = Network(model, needs(policy=["entropy"]))
    assert network.route.name == ARCHITECTURES[name].route, network.route.why
    engine = find(network.route.engine)(network, [END], slots=4)
    greedy_is_the_models_own(engine)
    rollouts = log_probs_are_the_learners(engine)
    packed_is_one_by_one(network, rollouts)


def greedy_is_the_models_own(engine):
    """Ragged prompts beside each other, each against the model's `generate` alone, in float32."""
    requests = requests_of(problems(9, 4, 1), samples=1)
    sampling = Sampling(max_tokens=14, temperature=0.0)
    for rollout in engine.generate(requests, sampling):
        prompt = torch.tensor([rollout.prompt_ids])
        whole = engine.network.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=14,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
        )
        assert whole[0, prompt.shape[1] :].tolist() == list(rollout.ids)


def log_probs_are_the_learners(engine):
    """Of sampled tokens; returns the rollouts."""
    engine.network.readout = Network(engine.network.model, needs(), temperature=0.7).readout
    requests = requests_of(problems(9, 4), samples=3)
    rollouts = engine.generate(requests, Sampling(max_tokens=14, temperature=0.7, top_k=20))
    said = score(engine.network, rollouts)
    apart = torch.cat([
        said["logp"][row, : len(one.ids)].double() - torch.tensor(one.old, dtype=torch.float64)
        for row, one in enumerate(rollouts)
    ]).abs()  # fmt: skip
    assert apart.mean() < 1e-5
    assert apart.max() < 1e-3
    return rollouts


def packed_is_one_by_one(network, rollouts):
    """Log-probs, and their slope in every weight, against each sequence alone."""
    weights = [weight for weight in network.model.parameters() if weight.requires_grad]
    ours, theirs = torch.zeros(()), torch.zeros(())
    for pack in packs(rollouts, budget=60):
        policy = network(pack)
        for place, row in enumerate(pack.rows.tolist()):
            truth = alone(network.model, rollouts[row])
            found = policy.logp[place, : len(truth)]
            assert_close(found, truth, rtol=0, atol=CLOSE)
            each = torch.arange(1.0, len(truth) + 1)
            ours, theirs = ours + found @ each, theirs + truth @ each
    found, wanted = (
        torch.autograd.grad(end, weights, allow_unused=True, materialize_grads=True)
        for end in (ours, theirs)
    )
    largest = max(slope.abs().max() for slope in wanted)
    assert largest > 1
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= CLOSE * largest


def alone(model, rollout):
    """Returns the log-probs of one rollout by the model's own forward at temperature 0.7."""
    ids = torch.tensor([rollout.prompt_ids + rollout.ids])
    logits = model(ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / 0.7
    return logits.log_softmax(-1).gather(1, torch.tensor(rollout.ids)[:, None])[:, 0]


def test_the_page_lists_every_architecture():
    cells = [line.split(" | ") for line in PAGE.read_text().splitlines() if "`" in line]
    listed = {line[0].removeprefix("| "): line[2] for line in cells if len(line) == 5}
    expected = {name: architecture.route for name, architecture in ARCHITECTURES.items()}
    assert listed == expected, WRITE


@pytest.mark.slow
def test_the_page_says_what_the_probe_says():
    routes = {name: probe(architecture.made()) for name, architecture in ARCHITECTURES.items()}
    assert PAGE.read_text() == page(routes), WRITE


WRITE = "PYTHONPATH=tests python -m model.architectures writes docs/models.md anew"
