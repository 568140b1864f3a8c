"""Packed and shared equals one by one: the loss, every stream and the gradient of every tensor.

One by one is the model's own forward on each sequence alone, read off whole logits.
"""

from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from laws.variants import objectives
from model.models import MAKERS, TREE, VOCABULARY, distinct, loud, moved, rollouts
from torch.testing import assert_close

from logratio.lab import dense
from logratio.model import adapter, attention, head
from logratio.model import network as networks
from logratio.model.adapter import Adapter, Unadapted
from logratio.model.attention import TreePlan
from logratio.model.network import Network
from logratio.model.pack import packs
from logratio.objectives.qpo import qpo

# Ragged prompts and completions of four groups, two of them longer than a window of 6
ROWS = rollouts(
    (0, 5, 4), (1, 3, 6), (0, 5, 2), (2, 9, 3), (0, 5, 7), (1, 3, 1), (2, 9, 5), (3, 1, 2)
)  # fmt: skip
HEADS = sorted({head for one in objectives().values() for head in one.declared().heads})
ACTIONS = ("logp", "logit", "entropy", "kl")
TEMPERATURE = 0.8
WHOLE, SPLIT = 200, 16  # budgets: all groups in one pack, and each group in several
CASES = [(name, lora) for name in MAKERS for lora in (False, True)]
every_case = pytest.mark.parametrize(
    ("name", "lora"), CASES, ids=lambda one: one if isinstance(one, str) else "lora" * one
)


@dataclass(frozen=True)
class Said:
    """What was said of the rows, row by row, with the loss and its gradient."""

    rows: list[dict[str, torch.Tensor]]
    loss: torch.Tensor
    gradient: list[torch.Tensor]


@cache
def network(name, lora, dtype):
    """Returns a network that is asked for everything there is, and its reference."""
    declared = qpo.using(target="bootstrap", offset="head", c="learned").declared()
    needs = replace(declared, policy=frozenset(ACTIONS[1:]), heads=frozenset(HEADS))
    model = widened(MAKERS[name]())
    generator = torch.Generator().manual_seed(0)
    if lora:
        adapter.add(model, Adapter(rank=3))
        for layer in adapter.layers(model).values():
            layer.lora_B[adapter.NAME].weight.data.normal_(0, 0.1, generator=generator)
    made = Network(model, needs, temperature=TEMPERATURE, route=TREE).to(dtype)
    for parameter in [*made.heads.parameters(), *made.scalars.parameters()]:
        parameter.data.normal_(generator=generator)
    if lora:
        return made, Unadapted(made)
    other = widened(loud(MAKERS[name](), 7))
    return made, Network(other, needs, temperature=TEMPERATURE, route=TREE).to(dtype)


def widened(model):
    """Returns the model with its norms in the type of the model: as written they are float32."""
    plus = {"Qwen2RMSNorm": 0.0, "Gemma3RMSNorm": 1.0}
    for part in model.modules():
        if type(part).__name__ in plus:
            size = getattr(part, "eps", None) or part.variance_epsilon
            part.forward = partial(norm, part, plus[type(part).__name__], size)
    return model


def norm(part, plus, size, hidden):
    level = (hidden.square().mean(-1, keepdim=True) + size).rsqrt()
    return hidden * level * (part.weight + plus)


def packed(network, reference, *, budget):
    """Returns what the library says of the rows."""
    rows, loss = [None] * len(ROWS), 0.0
    for pack in packs(ROWS, budget=budget):
        policy = network(pack, reference)
        for place, row in enumerate(pack.rows.tolist()):
            rows[row] = streams(policy, place, len(ROWS[row].ids))
            loss = loss + loss_of(rows[row], row)
    return said(network, rows, loss)


class Whole:
    """The loss of a pack, for the network to differentiate while it reads the rows."""

    by_row = True

    def __init__(self, pack):
        self.rows = pack.rows.tolist()

    def __call__(self, policy, rows):
        here = self.rows[rows]
        found = [streams(policy, place, len(ROWS[row].ids)) for place, row in enumerate(here)]
        return sum(loss_of(one, row) for one, row in zip(found, here, strict=True))


def in_one_pass(network, reference, *, budget):
    """Returns the loss and its gradient where logits are made once, a few rows at a time."""
    loss = 0.0
    for pack in packs(ROWS, budget=budget):
        loss = loss + network(pack, reference, None, Whole(pack))
    return said(network, [], loss)


@cache
def alone(name, lora, dtype):
    """Returns what the model's own attention says of each row by itself."""
    made, reference = network(name, lora, dtype)
    rows, loss = [], 0.0
    for row, rollout in enumerate(ROWS):
        ids = torch.tensor([rollout.prompt_ids + rollout.ids])
        first = len(rollout.prompt_ids) - 1
        hidden = made.model.base_model(ids).last_hidden_state[:, first:]
        policy = dense.read(
            made.model(ids).logits[:, first:] / TEMPERATURE,
            torch.tensor([rollout.ids]),
            needs=made.needs,
            reference=rows_of(reference, ids)[:, first:] / TEMPERATURE,
            heads={name: linear(hidden)[..., 0] for name, linear in made.heads.items()},
            scalars=made.scalars(),
        )
        rows.append(streams(policy, 0, len(rollout.ids)))
        loss = loss + loss_of(rows[row], row)
    return said(made, rows, loss)


@torch.no_grad()
def rows_of(reference, ids):
    """Returns the reference's logits, of the same model with its adapter off or of another."""
    if isinstance(reference, Unadapted):
        with adapter.off(reference.model):
            return reference.model(ids).logits
    return reference.model(ids).logits


def streams(policy, place, length):
    """Returns every stream of one row, cut at its end."""
    found = {name: getattr(policy, name)[place, :length] for name in ACTIONS}
    for name, stream in (*policy.heads.items(), *policy.statistics.items()):
        found[name] = stream[place, : length + 1]
    return {**found, **policy.scalars}


def loss_of(streams, row):
    """Returns a number that every entry of every stream enters with a weight of its own.

    All of it is positive: what cancels would be measured against what is left.
    """
    generator = torch.Generator().manual_seed(row)
    total = 0.0
    for name in sorted(streams):
        stream = streams[name]
        weight = torch.rand(stream.shape, generator=generator, dtype=torch.float64).to(stream)
        # a statistic has no gradient and stands beside something that has
        beside = streams["value"].square() if name == "next_value" else stream
        total = total + (weight * stream * beside).sum()
    return total


def said(network, rows, loss):
    learns = [one for one in network.parameters() if one.requires_grad]
    gradient = torch.autograd.grad(loss, learns)
    return Said([{n: one.detach() for n, one in row.items()} for row in rows], loss, gradient)


def check(found, truth, *, loss, gradient):
    """Asserts that two agree: the loss relatively, each tensor's gradient by its own norm."""
    off = (found.loss - truth.loss).abs() / truth.loss.abs()
    assert off <= loss, f"the loss is off by {off:.1e}"
    whole = torch.stack([one.norm() for one in truth.gradient]).norm()
    for ours, theirs in zip(found.gradient, truth.gradient, strict=True):
        apart = (ours - theirs).norm() / torch.maximum(theirs.norm(), 1e-3 * whole)
        assert apart <= gradient, f"a gradient {list(ours.shape)} is off by {apart:.1e}"


@every_case
def test_in_float64_packed_is_one_by_one(name, lora):
    made, truth = network(name, lora, torch.float64), alone(name, lora, torch.float64)
    assert all(one.norm() > 0 for one in truth.gradient)
    for budget in (WHOLE, SPLIT):
        found = packed(*made, budget=budget)
        for ours, theirs in zip(found.rows, truth.rows, strict=True):
            assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
            assert theirs["kl"].mean() > 0.01
        check(found, truth, loss=1e-10, gradient=1e-10)


@every_case
@pytest.mark.slow
def test_in_float32_packed_is_one_by_one(name, lora):
    made, truth = network(name, lora, torch.float32), alone(name, lora, torch.float32)
    for budget in (WHOLE, SPLIT):
        check(packed(*made, budget=budget), truth, loss=1e-5, gradient=1e-5)


@every_case
@pytest.mark.parametrize("tokens", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_one_pass_over_a_few_rows_at_a_time_is_one_by_one(monkeypatch, name, lora, tokens):
    made, truth = network(name, lora, torch.float64), alone(name, lora, torch.float64)
    for module in (head, networks):
        monkeypatch.setattr(module, "CHUNK_BYTES", 8 * VOCABULARY * tokens)
    for budget in (WHOLE, SPLIT):
        check(in_one_pass(*made, budget=budget), truth, loss=1e-10, gradient=1e-10)


def test_groups_are_shared_and_one_is_split():
    assert len(packs(ROWS, budget=WHOLE)) == 1
    assert [len(tree.lengths) for tree in packs(ROWS, budget=WHOLE)[0].trees] == [3, 2, 2, 1]
    cut = packs(ROWS, budget=SPLIT)
    prompts = [ROWS[int(row)].prompt_ids for pack in cut for row in pack.rows]
    repeated = [{ROWS[int(row)].prompt_ids for row in pack.rows} for pack in cut]
    assert sum(map(len, repeated)) > len(set(prompts))
    assert HEADS == ["importance", "offset", "q0", "score", "value"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_models_are_loud(name):
    """At default initialisation a mask shifted by one moves almost nothing."""
    model = MAKERS[name]()
    assert moved(model) >= 0.3
    assert distinct(model) >= 10


def shifted_mask(monkeypatch):
    """A completion's token sees the next one too."""

    def shift(function, place):
        def planted(*values, causal, mask, scale):
            query, key = (values if place == 0 else values[1])[:2]
            if causal:
                later = torch.ones(query.shape[2], key.shape[2]).triu(2).bool()
                mask = torch.zeros(later.shape, dtype=query.dtype).masked_fill(later, -torch.inf)
            return function(*values, causal=False, mask=mask, scale=scale)

        return planted

    monkeypatch.setattr(attention, "forward", shift(attention.forward, 0))
    monkeypatch.setattr(attention, "backward", shift(attention.backward, 1))


def shifted_positions(monkeypatch):
    """Completions stand one place further from their prompts."""
    true = packs

    def planted(rollouts, *, budget):
        for pack in true(rollouts, budget=budget):
            places = pack.positions.clone()
            for tree in pack.trees:
                places[:, tree.suffix : tree.end] += 1
            yield replace(pack, positions=places)

    monkeypatch.setitem(globals(), "packs", planted)


def shifted_window(monkeypatch):
    """A window reaches one token further."""
    attend = TreePlan.attend

    def planted(plan, states, how):
        return attend(plan, states, replace(how, window=how.window and how.window + 1))

    monkeypatch.setattr(TreePlan, "attend", planted)


def unmerged_backward(monkeypatch):
    """A block's backward takes its own log-sum-exp, not the one it was merged into."""
    true = attention.backward

    def planted(gradient, inputs, merged, **how):
        del merged
        return true(gradient, inputs, attention.forward(*inputs, **how), **how)

    monkeypatch.setattr(attention, "backward", planted)


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (shifted_mask, ("gpt2", "gemma3")),
        (shifted_positions, ("gpt2", "qwen2")),
        (shifted_window, ("gemma3",)),
        (unmerged_backward, ("qwen2", "gemma3")),
    ],
)
def test_a_planted_fault_is_seen(monkeypatch, fault, names):
    for name in names:
        made, truth = network(name, False, torch.float32), alone(name, False, torch.float32)
        with monkeypatch.context() as planted:
            fault(planted)
            with pytest.raises(AssertionError, match="is off by"):
                check(packed(*made, budget=WHOLE), truth, loss=1e-3, gradient=1e-2)
