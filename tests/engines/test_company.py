"""Same seed, same tokens: whatever the slots, the order, the limits or the refills."""

import pytest
import torch
from model.models import SHAPE, loud, models
from transformers import Qwen2Config, Qwen2ForCausalLM

from logratio.engine import Request, requests_of
from logratio.engines.local import Local
from logratio.model.network import Network
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling, key_of, uniforms

MODELS = models()


def problems(count, lengths=(4, 7, 4, 1, 9), words=50):
    generator = torch.Generator().manual_seed(3)
    sizes = [lengths[place % len(lengths)] for place in range(count)]
    return [
        Problem(
            key=str(place),
            prompt="",
            prompt_ids=tuple(torch.randint(1, words, (size,), generator=generator).tolist()),
        )
        for place, size in enumerate(sizes)
    ]


def limited(count, samples):
    """Requests whose limits differ, so that rows leave at all times and others take their slots."""
    asked = requests_of(problems(count), samples=samples)
    return [
        Request(problem=one.problem, group=one.group, index=one.index, limit=1 + place * 5 % 8)
        for place, one in enumerate(asked)
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slots", [2, 5])
def test_refills_change_no_token(name, slots):
    """Rows of all ages and prompts share a step: masks, positions and moves are per row."""
    asked, sampling = limited(4, 3), Sampling(max_tokens=8)
    network = Network(MODELS[name], needs())
    whole = Local(network, [0], slots=64).generate(asked, sampling)
    assert len({len(one.ids) for one in whole}) > 5
    parts = Local(network, [0], slots=slots).generate(asked, sampling)
    shuffled = asked[1::2] + asked[::2][::-1]
    turned = Local(network, [0], slots=slots).generate(shuffled, sampling)
    assert said(parts) == said(whole)
    assert sorted(said(turned)) == sorted(said(whole))


def said(rollouts):
    return [(one.group, one.index, one.ids, one.finish) for one in rollouts]


def test_a_prompt_is_read_once_however_its_group_is_cut():
    model = MODELS["qwen2"]
    read: list[int] = []
    engine = Local(Network(model, needs()), [], slots=3)

    def count(_, __, named):
        if named["input_ids"].shape[0] == 1:
            read.append(named["input_ids"].shape[1])

    with model.base_model.register_forward_pre_hook(count, with_kwargs=True):
        asked = requests_of(problems(3, lengths=(40, 41, 42)), samples=5)
        engine.generate(asked, Sampling(max_tokens=3))
    assert sum(size for size in read if size > 1) == 40 + 41 + 42


@pytest.mark.slow
def test_over_many_tokens_only_a_boundary_is_crossed(record_property):
    """In float32 a logit's last bit depends on its company: 10^5 tokens, each difference told."""
    shape = {**SHAPE, "max_position_embeddings": 512}
    model = loud(Qwen2ForCausalLM(Qwen2Config(**shape, num_key_value_heads=2)), gain=2.0).float()
    network = Network(model, needs())
    asked, sampling = requests_of(problems(25), samples=10, seed=1), Sampling(max_tokens=400)
    whole = Local(network, [], slots=250).generate(asked, sampling)
    other = Local(network, [], slots=60).generate(asked[::-1], sampling)[::-1]
    assert sum(len(one.ids) for one in whole) == 10**5
    crossed = 0
    for request, first, second in zip(asked, whole, other, strict=True):
        pairs = zip(first.ids, second.ids, strict=True)
        apart = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if apart is not None:
            crossed += 1
            key = key_of(*request.parts())
            uniform = float(uniforms(torch.tensor([key]), torch.tensor([apart])))
            ids = torch.tensor([[*first.prompt_ids, *first.ids[:apart]]])
            with torch.no_grad():
                steps = model(ids).logits[0, -1].double().softmax(-1).cumsum(-1)
            assert (steps - uniform).abs().min() < 1e-5
    record_property("first differences", crossed)
