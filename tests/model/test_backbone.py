"""Right-padded rows through the model's own attention say what tree packs say."""

import pytest
import torch
from model.architectures import ARCHITECTURES
from model.models import MAKERS, TREE, gpt2, rollouts
from torch.testing import assert_close

from logratio.model.backbone import Route, check_room, found_in, room_of, rows_of
from logratio.model.network import Network
from logratio.model.pack import Pack, Tree, pack, packs
from logratio.objectives.qpo import qpo
from logratio.part import Needs
from logratio.settings import Refused

SOME = rollouts((0, 5, 4), (1, 3, 6), (0, 5, 2), (0, 5, 7), (1, 3, 1))
ROWS = Route(name="rows", why="asked for")
# Norms and rotary tables compute in float32 inside a float64 model, except in GPT-2
CLOSE = {"gpt2": 1e-10, "qwen2": 1e-5, "gemma3": 1e-5, "gpt_neox": 1e-5}


def test_rows_hold_each_sequence_and_each_place_is_found_again():
    one = pack(rollouts((0, 2, 1), (0, 2, 3)), range(2), longest=3)
    rows = rows_of(one)
    assert rows.tolist() == [[0, 1, 2, -1, -1], [0, 1, 3, 4, 5]]
    assert found_in(rows, 6).tolist() == [0, 1, 2, 7, 8, 9]


def test_a_prompt_without_a_completion_is_a_row():
    none = torch.zeros(0, dtype=torch.long)
    one = Pack(
        rows=none,
        ids=torch.tensor([[7, 8, 9]]),
        positions=torch.tensor([[0, 1, 2]]),
        trees=(Tree(start=0, prompt=3, lengths=()),),
        states=none.view(0, 1),
        taken=none.view(0, 0),
    )
    assert rows_of(one).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("budget", [100, 14])
def test_rows_give_the_streams_and_slopes_of_trees(name, budget):
    needs = qpo.using(target="bootstrap", offset="head").declared()
    needs = Needs(policy=frozenset(["logit", "entropy"]), heads=needs.heads, scalars=needs.scalars)
    model = MAKERS[name]()
    found = []
    for route in (TREE, ROWS):
        torch.manual_seed(0)
        network = Network(model, needs, temperature=0.8, route=route).double()
        for parameter in network.heads.parameters():
            parameter.data.normal_()
        total, streams = torch.zeros(()), []
        for one in packs(SOME, budget=budget):
            policy = network(one)
            streams += [policy.logp, policy.logit, policy.entropy, *policy.heads.values()]
            weights = torch.arange(1.0, policy.logp.shape[1] + 1).double()
            total = total + (policy.logp * policy.entropy + policy.logit) @ weights @ torch.ones(
                len(policy.logp), dtype=torch.float64
            )
        parameters = [*model.parameters()]
        slopes = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        found.append((streams, slopes))
    for ours, theirs in zip(*found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            scale = 1 + other.abs().max()
            assert_close(one / scale, other / scale, rtol=0, atol=CLOSE[name])


@pytest.mark.parametrize("route", [TREE, ROWS])
def test_a_text_longer_than_the_model_allows_is_refused(route):
    network = Network(gpt2(), Needs(), route=route)
    network(packs(rollouts((0, 60, 4)), budget=100)[0])
    with pytest.raises(Refused, match="has 65 tokens, but the model holds 64"):
        network(packs(rollouts((0, 60, 5)), budget=100)[0])


def test_a_stretched_rotary_table_ends_where_it_changes():
    model = ARCHITECTURES["Phi 3, long"].made()
    assert room_of(model) == 32
    assert room_of(ARCHITECTURES["Phi 3"].made()) == 64
    assert room_of(ARCHITECTURES["Bloom"].made()) == 64
    assert room_of(ARCHITECTURES["Mamba"].made()) == 64
    check_room(model, [Tree(start=0, prompt=20, lengths=(12,))])
    with pytest.raises(Refused, match="has 33 tokens, but the model holds 32"):
        check_room(model, [Tree(start=0, prompt=20, lengths=(3, 13))])
