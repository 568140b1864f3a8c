"""Memory of an update: what the vocabulary adds is weights, gradients and moments, not logits.

Every allocation of torch is counted, so small models tell. Chunk and block, which are constants
beside the gigabytes of a real model, are scaled down with it.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model.models import TREE, rollouts
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from logratio.collate import collate
from logratio.lab import memory
from logratio.learner import Learner, Update
from logratio.model import head
from logratio.model import network as networks
from logratio.model.network import Network
from logratio.objectives import find
from logratio.records import Graded, Verdict

ROWS, PROMPT, COMPLETION = 4, 96, 16
TOKENS = PROMPT + ROWS * COMPLETION  # of a group
WIDTH = 64
SMALL, MIDDLE, LARGE = 1000, 16_000, 152_000


@pytest.fixture(autouse=True)
def small_constants(monkeypatch):
    scaled(monkeypatch, 2**20)


def scaled(monkeypatch, chunk):
    """Makes a chunk of logits that many bytes, and a block a quarter of it."""
    for module in (head, networks):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(head, "BLOCK_BYTES", chunk // 4)


def setting(words, *, name="grpo", tied=True, groups=6, cuts=2, width=WIDTH, layers=4):
    """Returns a learner with its batch and rollouts; `cuts` is how many micro-batches there are."""
    config = Qwen2Config(
        vocab_size=words, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=3 * width, tie_word_embeddings=tied,
    )  # fmt: skip
    objective = find(name)
    network = Network(Qwen2ForCausalLM(config), objective.declared(), route=TREE)
    shapes = [(group, PROMPT, COMPLETION) for group in range(groups) for _ in range(ROWS)]
    rows = [replace(one, old=(-6.0,) * COMPLETION) for one in rollouts(*shapes)]
    graded = [
        Graded(rollout=one, verdict=Verdict(reward=place % 2), pair=place // 2, side=place % 2)
        for place, one in enumerate(rows)
    ]
    batch = collate(graded, objective)
    batch = replace(batch, ref=torch.full(batch.mask.shape, -6.0))
    learner = Learner(network, objective, Update(budget=groups * TOKENS // cuts))
    assert len(learner.cut(batch, rows)) == cuts
    return learner, batch, rows


def allocations(learner, batch, rows):
    """Returns what a second update allocates, in bytes, and what it frees, as less than 0."""
    learner.update(batch, rows)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        learner.update(batch, rows)
    events = [one for one in found.profiler.kineto_results.events() if one.name() == "[memory]"]
    ordered: list[Any] = sorted(events, key=lambda one: one.start_ns())
    return [one.nbytes() for one in ordered]


def peak(sizes):
    """Returns the most bytes that were held at a time."""
    held = torch.tensor(sizes).cumsum(0)
    return int(held.max())


def beyond(words, **how):
    """Returns the peak of an update beyond weights, moments, gradients and one of the head's."""
    learner, batch, rows = setting(words, **how)
    most = peak(allocations(learner, batch, rows))
    gradients = sum(4 * one.numel() for one in learner.parameters)
    return most - gradients - 4 * words * how.get("width", WIDTH)


def check(words, **how):
    """Asserts that a vocabulary adds less than a tenth to what is beyond.

    In the last of several micro-batches everything that counts as given is there at once. When a
    tied embedding adds its own gradient, the activations have gone: they must be the larger.
    """
    small, large = beyond(SMALL, **how), beyond(words, **how)
    assert small > 4 * words * WIDTH
    assert large <= 1.1 * small, f"{small / 1e6:.1f} MB became {large / 1e6:.1f} MB"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["grpo", "dpo"])  # one pass, and two where rows are coupled
def test_the_vocabulary_adds_its_weights_and_one_gradient(tied, name):
    check(MIDDLE, tied=tied, name=name)


@pytest.mark.slow
def test_a_large_vocabulary_adds_the_same(monkeypatch):
    scaled(monkeypatch, 2**22)
    check(LARGE, groups=24)


def test_whole_logits_would_be_seen(monkeypatch):
    scaled(monkeypatch, 2**40)
    with pytest.raises(AssertionError, match="MB became"):
        check(MIDDLE)


def test_micro_batches_add_nothing():
    few, many = (
        peak(allocations(*setting(SMALL, groups=groups, cuts=groups))) for groups in (2, 8)
    )
    assert many <= 1.02 * few


def test_no_allocation_is_as_large_as_the_logits():
    learner, batch, rows = setting(MIDDLE)
    logits = 4 * MIDDLE * int(batch.mask.sum())
    assert max(allocations(learner, batch, rows)) < logits / 4


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from model import test_memory
print(*test_memory.taken(int(sys.argv[2])))
"""


def taken(words):
    """Returns what this process held at most, and what of it the head's size accounts for."""
    learner, batch, rows = setting(words, groups=32, layers=32)
    learner.update(batch, rows)
    learner.update(batch, rows)
    own = sum(4 * one.numel() for one in learner.parameters)
    return memory.most(), 4 * own + 4 * words * WIDTH
