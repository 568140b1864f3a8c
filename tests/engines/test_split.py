"""Rollouts that part: one prefill, the same tokens before, the right law and a fair coin after."""

import pytest
import torch
from model.models import SHAPE, loud, models
from transformers import Qwen2Config, Qwen2ForCausalLM

from logratio.engine import Request, fork, requests_of
from logratio.engines.local import Local
from logratio.engines.scripted import Scripted
from logratio.model.network import Network
from logratio.part import needs
from logratio.records import Problem, Rollout
from logratio.sampler import Sampling
from logratio.settings import Refused

PROMPT = Problem(key="p", prompt="", prompt_ids=(3, 1, 4, 1, 2))
WORDS = 5
PAIRS = 2000
GPT2 = models()["gpt2"]


def small():
    """A model of five tokens, so that every pair of continuations can be counted."""
    shape = {**SHAPE, "vocab_size": WORDS, "eos_token_id": None, "pad_token_id": None}
    return loud(Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2)), gain=1.0)


def local(model, ends=(), slots=64):
    return Local(Network(model, needs()), ends, slots=slots)


def pair_requests(count, split):
    return [
        Request(problem=PROMPT, group=0, index=2 * one, sister=2 * one + 1, split=split)
        for one in range(count)
    ]


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_sisters_share_what_came_before_and_each_has_the_rest(slots, split):
    model = GPT2
    rollouts = local(model, slots=slots).generate(pair_requests(5, split), Sampling(max_tokens=9))
    assert [one.index for one in rollouts] == list(range(10))
    alone = local(model).generate(requests_of([PROMPT], samples=9), Sampling(max_tokens=9))
    for first, second in zip(rollouts[::2], rollouts[1::2], strict=True):
        assert first.ids == alone[first.index].ids  # that a sister left her changes nothing
        assert first.ids[:split] == second.ids[:split]
        assert first.old[:split] == second.old[:split]
        assert first.ids != second.ids
        assert len(first.ids) == len(second.ids) == 9
        assert (first.split, second.split) == (split, split)
        assert (first.parent, second.parent) == (None, first.index)
    assert len({one.ids[split:] for one in rollouts}) == 10


def test_a_sister_costs_no_second_prefill():
    model = GPT2
    read: list[int] = []
    engine = local(model)

    def count(_, __, named):
        read.append(named["input_ids"].shape[1])

    with model.base_model.register_forward_pre_hook(count, with_kwargs=True):
        engine.generate(pair_requests(4, 3), Sampling(max_tokens=6))
    assert [size for size in read if size > 1] == [len(PROMPT.prompt_ids)]
    assert len(read) == 1 + 5  # a prefill, then one step for each token but the first


def test_a_rollout_that_ends_before_its_split_has_no_sister():
    everything = list(range(0, 50, 2))
    rollouts = local(GPT2, everything).generate(pair_requests(60, 3), Sampling(max_tokens=12))
    by_index = {one.index: one for one in rollouts}
    for index in range(0, 120, 2):
        first = by_index[index]
        parted = len(first.ids) > 3 or (len(first.ids) == 3 and first.finish == "length")
        assert (index + 1 in by_index) == parted
        assert (first.split == 3) == parted
    assert 0 < len(by_index) - 60 < 60


def test_both_continuations_have_the_law_and_neither_is_first():
    """Chi-square against the exact conditional law, and against a table that is symmetric."""
    model = small()
    rollouts = local(model, slots=512).generate(pair_requests(PAIRS, 1), Sampling(max_tokens=2))
    counts = torch.zeros(WORDS, WORDS, WORDS, dtype=torch.float64)
    for first, second in zip(rollouts[::2], rollouts[1::2], strict=True):
        counts[first.ids[0], first.ids[1], second.ids[1]] += 1
    prompts = torch.tensor([[*PROMPT.prompt_ids, word] for word in range(WORDS)])
    with torch.no_grad():
        law = model(prompts).logits[:, -1].softmax(-1)
        start = model(prompts[:1, :-1]).logits[0, -1].softmax(-1)
    assert chi_square(counts.sum((1, 2)), start * PAIRS) < 18.5  # 4 degrees of freedom, p .001
    expected = counts.sum((1, 2))[:, None, None] * law[:, :, None] * law[:, None, :]
    assert chi_square(counts, expected) < 173  # 120 degrees of freedom, p .001
    apart = (counts - counts.mT).square() / (counts + counts.mT).clamp(min=1)
    assert apart.triu(1).sum() < 86.7  # 50 pairs of cells, p .001


def chi_square(counts, expected):
    return ((counts - expected).square() / expected).sum()


def test_a_stored_rollout_is_gone_on_with():
    model = GPT2
    engine, sampling = local(model), Sampling(max_tokens=9)
    stored = engine.generate(requests_of([PROMPT], samples=3), sampling)
    forked = engine.generate(fork(stored, [0, 2, 8], index=10), sampling)
    for parent, child, at in zip(stored, forked, (0, 2, 8), strict=True):
        assert child.ids[:at] == parent.ids[:at]
        assert child.old[:at] == parent.old[:at]
        assert (child.parent, child.split, len(child.ids)) == (parent.index, at, 9)
    paired = engine.generate(pair_requests(6, 2), sampling)
    again = engine.generate(fork(paired[10:11], [2], index=11), sampling)
    assert again[0].ids == paired[11].ids  # a fork of the same index is the sister


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": 2}, "`split` is 2 with sister None, but it goes with either a sister"),
        ({"sister": 1}, "`split` is None with sister 1"),
        ({"sister": 0, "split": 2}, "a sister of another index"),
        ({"sister": 1, "split": -1}, "`split` is -1, but it must be at least 0"),
        ({"limit": 0}, "`limit` is 0, but it must be at least 1"),
        (
            {"split": 2, "parent": Rollout(problem="p", group=0, prompt_ids=(1,), ids=(2, 3))},
            "`split` is 2, but rollout 0 of `p` has 2 tokens: it must be less",
        ),
    ],
)
def test_requests_that_can_not_be(settings, said):
    with pytest.raises(Refused, match=said):
        Request(problem=PROMPT, group=0, **settings)


def test_an_engine_that_promises_no_split_refuses_one():
    engine = Scripted(lambda _: [1, 2, 3], [])
    with pytest.raises(Refused, match="`split` was requested, but this engine promises only seed"):
        engine.generate(pair_requests(1, 1), Sampling())
    stored = engine.generate(requests_of([PROMPT], samples=1), Sampling())
    with pytest.raises(Refused, match="`fork` was requested"):
        engine.generate(fork(stored, [1], index=1), Sampling())
