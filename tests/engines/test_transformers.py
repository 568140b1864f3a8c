"""The transformers engine: the model's own `generate`, our numbers, the local engine's tokens."""

from dataclasses import replace

import pytest
import torch
from model.models import MAKERS, TREE
from torch.testing import assert_close

from logratio.engine import Engine, find, fork, requests_of
from logratio.engines.local import Local
from logratio.engines.transformers import Transformers
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling
from logratio.settings import Refused

MODELS = {name: MAKERS[name]() for name in ("gpt2", "gemma3")}
every_model = pytest.mark.parametrize("name", MODELS)
ENDS = (0, 3)
# `generate` hands out logits in float32, also of a float64 model
CLOSE = {"rtol": 0, "atol": 1e-4}


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


def network(name, temperature=1.0):
    return Network(MODELS[name], needs(policy=["entropy"]), temperature=temperature, route=TREE)


def engine(name, slots=64):
    return Transformers(network(name), ENDS, slots=slots)


def same(ours, theirs):
    """Asserts that two engines made the same rollouts, up to the rounding of their numbers."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("old", "behaviour", "entropy"):
            here, there = getattr(one, name), getattr(other, name)
            assert (here is None) == (there is None)
            if here is not None:
                assert_close(torch.tensor(here), torch.tensor(there), **CLOSE)
        numbers = {"old": None, "behaviour": None, "entropy": None}
        assert replace(one, **numbers) == replace(other, **numbers)


@every_model
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 20, "min_tokens": 3}, {"min_p": 0.1}],
)
def test_it_draws_what_the_local_engine_draws(name, settings):
    sampling = Sampling(max_tokens=10, **settings)
    asked = requests_of(problems(4, 9, 4), samples=2, seed=1)
    asked[1] = replace(asked[1], limit=4)
    same(
        engine(name).generate(asked, sampling), Local(network(name), ENDS).generate(asked, sampling)
    )


def test_it_parts_and_goes_on_as_the_local_engine_does():
    sampling = Sampling(max_tokens=10, temperature=0.9)
    asked = [
        replace(one, split=split, sister=7)
        for one, split in zip(requests_of(problems(4, 9), samples=3, seed=2), range(6), strict=True)
    ]
    ours = engine("gpt2").generate(asked, sampling)
    local = Local(network("gpt2"), ENDS)
    same(ours, local.generate(asked, sampling))
    assert len(ours) > len(asked)
    parents = [one for one in ours if len(one.ids) > 3]
    longer = fork(parents, [2] * len(parents), index=9, seed=3)
    same(engine("gpt2").generate(longer, sampling), local.generate(longer, sampling))


def test_a_rollout_that_ends_at_its_split_has_no_sister():
    sampling = Sampling(max_tokens=10)
    asked = requests_of(problems(4), samples=8, seed=2)
    ended = {one.index: len(one.ids) for one in engine("gpt2").generate(asked, sampling)}
    for early, sisters in ((0, 0), (1, len(asked))):
        parted = [
            replace(one, split=ended[one.index] - early, sister=one.index + 20) for one in asked
        ]
        assert len(engine("gpt2").generate(parted, sampling)) == len(asked) + sisters


@every_model
def test_log_probs_are_those_of_the_learner(name):
    sampling = Sampling(max_tokens=10, temperature=0.7, top_p=0.8)
    rollouts = engine(name).generate(requests_of(problems(4, 7), samples=4), sampling)
    said = score(network(name, 0.7), rollouts)
    for row, rollout in enumerate(rollouts):
        count = len(rollout.ids)
        assert_close(said["logp"][row, :count], torch.tensor(rollout.old).double(), **CLOSE)
        assert_close(said["entropy"][row, :count], torch.tensor(rollout.entropy).double(), **CLOSE)


def test_slots_and_company_change_no_token():
    sampling = Sampling(max_tokens=10)
    asked = requests_of(problems(4, 7, 4), samples=3, seed=5)
    whole = engine("gpt2").generate(asked, sampling)
    for slots in (2, 5):
        same(engine("gpt2", slots).generate(asked, sampling), whole)
    same(engine("gpt2").generate(asked[::-1], sampling)[::-1], whole)


def test_the_models_own_settings_of_generate_are_not_used():
    model = MAKERS["gpt2"]()
    asked = requests_of(problems(4), samples=4)
    plain = Transformers(Network(model, needs(), route=TREE), ENDS)
    wanted = plain.generate(asked, Sampling(max_tokens=10))
    config = model.generation_config
    config.repetition_penalty, config.top_k, config.eos_token_id = 9.0, 1, 5
    same(plain.generate(asked, Sampling(max_tokens=10)), wanted)
    assert model.generation_config is config


def test_the_network_is_left_as_it_was():
    one = engine("gpt2")
    one.network.train()
    one.generate(requests_of(problems(4), samples=1), Sampling(max_tokens=2))
    assert one.network.training
    one.network.eval()


def test_a_version_is_noted_and_weights_are_not_taken():
    one = engine("gpt2")
    one.load(3, None)
    made = one.generate(requests_of(problems(4), samples=1), Sampling(max_tokens=2))
    assert made[0].version == 3
    with pytest.raises(Refused, match="shares the learner's own"):
        one.load(4, {})


@pytest.mark.parametrize(
    ("lengths", "settings", "said"),
    [
        ([0], {}, "`prompt_ids` of `0` is empty"),
        ([60], {"max_tokens": 10}, "has 60 tokens and `max_tokens` is 10, but the model holds 64"),
    ],
)
def test_what_is_refused(lengths, settings, said):
    with pytest.raises(Refused, match=said):
        engine("gpt2").generate(requests_of(problems(*lengths), samples=1), Sampling(**settings))


def test_an_engine_without_end_tokens_goes_to_the_limit():
    endless = Transformers(network("gpt2"), [])
    made = endless.generate(requests_of(problems(4), samples=3), Sampling(max_tokens=12))
    assert [(len(one.ids), one.finish) for one in made] == [(12, "length")] * 3


def test_it_is_an_engine():
    assert find("transformers") is Transformers
    assert isinstance(engine("gpt2"), Engine)
