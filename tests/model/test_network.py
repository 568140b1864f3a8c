"""Packed and shared equals one by one: every stream and every gradient, on real architectures."""

from dataclasses import replace

import pytest
import torch
from model.models import models, rollouts
from torch.testing import assert_close

from logratio.lab import dense
from logratio.model.network import Network
from logratio.model.pack import packs
from logratio.objectives.qpo import qpo
from logratio.part import Needs

ROWS = rollouts((0, 5, 4), (1, 3, 6), (0, 5, 2), (0, 5, 7), (1, 3, 1))
MODELS = models()
every_model = pytest.mark.parametrize("name", MODELS)
# Norms and rotary tables compute in float32 inside a float64 model, except in GPT-2
TOLERANCE = {"gpt2": 1e-12, "qwen2": 1e-6, "gemma3": 1e-6, "gpt_neox": 1e-6}


def networks(name):
    """Returns a network that is asked for everything there is, and its reference."""
    objective = qpo.using(target="bootstrap", offset="head")
    needs = replace(objective.declared(), policy=frozenset(["logit", "entropy", "kl"]))
    network = Network(MODELS[name], needs, temperature=0.8).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.heads.parameters():
        parameter.data.normal_(generator=generator)
    return network, Network(models()[name].double(), Needs(), temperature=0.8)


def alone(network, reference, rollout):
    """Returns what the model's own attention says of one rollout by itself."""
    ids = torch.tensor([rollout.prompt_ids + rollout.ids])
    first = len(rollout.prompt_ids) - 1
    hidden = network.model.base_model(ids).last_hidden_state[:, first:]
    return dense.read(
        network.model(ids).logits[:, first:] / 0.8,
        torch.tensor([rollout.ids]),
        needs=network.needs,
        reference=reference.model(ids).logits[:, first:].detach() / 0.8,
        heads={name: head(hidden)[..., 0] for name, head in network.heads.items()},
        scalars=network.scalars(),
    )


def weighted(policy, length=None):
    """Returns a number that every differentiable stream enters."""
    end = None if length is None else length
    streams = [policy.logp, policy.logit, policy.entropy, policy.kl]
    total = sum((place + 1) * stream[..., :end].sum() for place, stream in enumerate(streams))
    after = None if end is None else end + 1
    return total + 0.1 * sum(head[..., :after].square().sum() for head in policy.heads.values())


@every_model
@pytest.mark.parametrize("budget", [100, 14])
def test_packed_and_shared_is_one_by_one(name, budget):
    network, reference = networks(name)
    exact = {"rtol": TOLERANCE[name], "atol": TOLERANCE[name]}
    ours, theirs = torch.zeros(()), torch.zeros(())
    for pack in packs(ROWS, budget=budget):
        policy = network(pack, reference)
        for place, row in enumerate(pack.rows.tolist()):
            length = len(ROWS[row].ids)
            truth = alone(network, reference, ROWS[row])
            for stream in ("logp", "logit", "entropy", "kl"):
                found = getattr(policy, stream)[place]
                assert_close(found[:length], getattr(truth, stream)[0], **exact)
                assert not found[length:].any()
            found = policy.heads["offset"][place, : length + 1]
            assert_close(found, truth.heads["offset"][0], **exact)
            found = policy.statistics["next_value"][place, : length + 1]
            assert_close(found, truth.statistics["next_value"][0], **exact)
            ours = ours + weighted(row_of(policy, place, length))
            theirs = theirs + weighted(truth)
    parameters = [p for p in network.parameters() if p.requires_grad]
    pairs = zip(
        torch.autograd.grad(ours, parameters, allow_unused=True),
        torch.autograd.grad(theirs, parameters, allow_unused=True),
        strict=True,
    )
    for found, wanted in pairs:
        assert (found is None) == (wanted is None)
        if found is not None:
            assert (found - wanted).abs().max() <= 10 * TOLERANCE[name] * (1 + wanted.abs().max())


def row_of(policy, place, length):
    """Returns one row of a policy, up to its own end."""
    action = {
        name: getattr(policy, name)[place, :length] for name in ("logp", "logit", "entropy", "kl")
    }
    heads = {name: head[place, : length + 1] for name, head in policy.heads.items()}
    return type("Row", (), {**action, "heads": heads})


@every_model
def test_the_model_is_left_as_it_was(name):
    before = MODELS[name].config._attn_implementation
    network, reference = networks(name)
    network(packs(ROWS, budget=100)[0], reference)
    assert MODELS[name].config._attn_implementation == before


@every_model
def test_the_weights_are_loud(name):
    """Hiding one prompt token moves the last log-probs, so that a mask shifted by one is seen."""
    ids = torch.tensor([ROWS[1].prompt_ids + ROWS[1].ids])
    changed = ids.clone()
    changed[0, 1] = (changed[0, 1] + 1) % 50
    apart = MODELS[name](ids).logits - MODELS[name](changed).logits
    assert apart[0, -1].abs().mean() > 0.1
