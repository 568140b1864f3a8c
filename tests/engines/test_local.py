"""The local engine: what it samples is what the learner's own network says."""

import pytest
import torch
from model.models import models
from torch.testing import assert_close

from logratio.engine import Engine, find, requests_of
from logratio.engines.local import Local
from logratio.model.network import Network
from logratio.model.scorer import score
from logratio.part import needs
from logratio.records import Problem
from logratio.sampler import Sampling
from logratio.settings import Refused

MODELS = models()
every_model = pytest.mark.parametrize("name", MODELS)
END = 0


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


def engine(name, slots=64):
    return Local(Network(MODELS[name], needs(policy=["entropy"])), [END], slots=slots)


@every_model
def test_greedy_is_the_models_own_generate(name):
    """Ragged prompts beside each other, each against the model alone."""
    sampling = Sampling(max_tokens=12, temperature=0.0)
    for rollout in engine(name).generate(requests_of(problems(4, 9, 1), samples=1), sampling):
        prompt = torch.tensor([rollout.prompt_ids])
        whole = MODELS[name].generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=END,
        )
        assert whole[0, prompt.shape[1] :].tolist() == list(rollout.ids)


@every_model
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 20}])
def test_log_probs_are_those_of_the_learner(name, settings):
    """The first ratio is 1: sampler and learner agree to the last digits of float64."""
    sampling = Sampling(max_tokens=10, **settings)
    local = engine(name)
    local.network.readout = Network(MODELS[name], needs(), temperature=sampling.temperature).readout
    rollouts = local.generate(requests_of(problems(4, 7), samples=4), sampling)
    said = score(local.network, rollouts)
    for row, rollout in enumerate(rollouts):
        count = len(rollout.ids)
        assert_close(said["logp"][row, :count].tolist(), list(rollout.old), rtol=0, atol=1e-12)
        assert_close(
            said["entropy"][row, :count].tolist(), list(rollout.entropy), rtol=0, atol=1e-9
        )
        assert (rollout.behaviour is None) == (settings == {})


@every_model
def test_slots_and_company_change_no_token(name):
    sampling = Sampling(max_tokens=10)
    asked = requests_of(problems(4, 7, 4), samples=3, seed=5)
    whole = engine(name).generate(asked, sampling)
    for slots in (1, 2, 5):
        other = engine(name, slots).generate(asked, sampling)
        assert [one.ids for one in other] == [one.ids for one in whole]
    backwards = engine(name).generate(asked[::-1], sampling)[::-1]
    assert [one.ids for one in backwards] == [one.ids for one in whole]


def test_seeds_steps_and_purposes_draw_anew():
    sampling = Sampling(max_tokens=10)
    drawn = {
        engine("gpt2").generate(requests_of(problems(4), samples=1, **parts), sampling)[0].ids
        for parts in ({}, {"seed": 1}, {"step": 1}, {"purpose": "evaluate"})
    }
    assert len(drawn) == 4


def test_an_end_token_ends_a_rollout_and_is_part_of_it():
    sampling = Sampling(max_tokens=40)
    local = Local(Network(MODELS["gpt2"], needs()), [7, 9])
    rollouts = local.generate(requests_of(problems(4), samples=20), sampling)
    stopped = [one for one in rollouts if one.finish == "stop"]
    assert stopped
    for one in rollouts:
        ends = [token in (7, 9) for token in one.ids]
        assert ends.index(True) == len(one.ids) - 1 if one in stopped else not any(ends)
        assert one in stopped or len(one.ids) == 40


def test_a_minimum_length_is_kept():
    everything = list(range(0, 50, 2))  # half of all tokens end
    local = Local(Network(MODELS["gpt2"], needs()), everything)
    sampling = Sampling(max_tokens=20, min_tokens=6)
    rollouts = local.generate(requests_of(problems(4), samples=20), sampling)
    assert min(len(one.ids) for one in rollouts) == 7
    assert all(one.behaviour is not None for one in rollouts)


def test_a_version_is_noted_and_weights_are_not_taken():
    local = engine("gpt2")
    local.load(3, None)
    assert (
        local.generate(requests_of(problems(4), samples=1), Sampling(max_tokens=2))[0].version == 3
    )
    with pytest.raises(Refused, match="shares the learner's own"):
        local.load(4, {})


def test_sampling_leaves_the_network_as_it_was():
    local = engine("gpt2")
    local.network.train()
    local.generate(requests_of(problems(4), samples=1), Sampling(max_tokens=2))
    assert local.network.training
    local.network.eval()


@pytest.mark.parametrize(
    ("lengths", "settings", "said"),
    [
        ([0], {}, "`prompt_ids` of `0` is empty"),
        ([60], {"max_tokens": 10}, "has 60 tokens and .* 10, but the model holds 64"),
    ],
)
def test_what_is_refused(lengths, settings, said):
    with pytest.raises(Refused, match=said):
        engine("gpt2").generate(requests_of(problems(*lengths), samples=1), Sampling(**settings))


def test_an_engine_is_found_by_name():
    assert find("local") is Local
    assert Local.promises <= {"seed per position", "fork", "split", "exact weights"}
    with pytest.raises(Refused, match="`logratio` has no engine `loca`: did you mean `local`"):
        find("loca")
    assert Engine.__doc__
