"""The probe finds what is not exact, and leaves the model as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model.architectures import ARCHITECTURES, GD, LAYERS
from model.models import TREE, gemma3, gpt2, qwen2
from torch import Tensor
from torch.testing import assert_close
from transformers import Qwen2ForCausalLM

from logratio.model import adapter, attention, backbone, probe
from logratio.model.attention import TreePlan
from logratio.model.network import Network
from logratio.model.pack import Tree
from logratio.model.twin import NARROW, twin
from logratio.part import needs
from logratio.settings import Refused

COHERE = ARCHITECTURES["Cohere 2"]  # windows, a logit scale, and positions in some layers only
EXACT = "exact in a pack and token by token"


def cohere(window):
    """Returns the model with windows of 6, which real weights show, or 60, which its twin shows."""
    return replace(COHERE, config={**COHERE.config, "sliding_window": window}).made()


def prompt_shifted(monkeypatch):
    """The last token of a prompt belongs to its first completion."""

    def shifted(trees):
        moved = [
            Tree(start=one.start, prompt=one.prompt - 1, lengths=(one.lengths[0] + 1, *rest))
            for one in trees
            for rest in [one.lengths[1:]]
        ]
        return TreePlan(tuple(moved))

    monkeypatch.setattr(probe, "TreePlan", shifted)


def positions_shifted(monkeypatch):
    """Completions start a position late."""
    honest = probe.sample

    def shifted(model):
        text = honest(model)
        late = text.positions.clone()
        for tree in text.trees:
            late[0, tree.suffix : tree.end] += 1
        return replace(text, positions=late)

    monkeypatch.setattr(probe, "sample", shifted)


def window_wider(monkeypatch):
    """A window sees one token more."""
    honest = attention.seen
    monkeypatch.setattr(attention, "seen", lambda *at: honest(*at[:2], at[2] + 1))


def window_unseen(monkeypatch):
    """The window is not read at all."""
    honest = TreePlan.attend

    def blind(plan, states, how):
        return honest(plan, states, replace(how, window=None))

    monkeypatch.setattr(TreePlan, "attend", blind)


def slopes_doubled(monkeypatch):
    """The forward is right and the gradient is not."""
    honest = attention.backward
    monkeypatch.setattr(attention, "backward", lambda *a, **k: [2 * one for one in honest(*a, **k)])


def completions_mixed(monkeypatch):
    """A completion sees the one before it."""

    def joined(trees):
        made = [replace(one, lengths=(sum(one.lengths),)) for one in trees]
        return TreePlan(tuple(made))

    monkeypatch.setattr(probe, "TreePlan", joined)


@pytest.mark.parametrize(
    ("fault", "window"),
    [
        (prompt_shifted, 6), (positions_shifted, 6), (slopes_doubled, 6), (completions_mixed, 6),
        (window_wider, 6), (window_wider, 60), (window_unseen, 60),
    ],
)  # fmt: skip
def test_a_fault_is_found(fault, window, monkeypatch):
    model = cohere(window)
    fault(monkeypatch)
    assert probe.probe(model).name == "rows"


@pytest.mark.parametrize("window", [6, 60])
def test_without_a_fault_the_same_model_is_packed(window):
    assert probe.probe(cohere(window)) == backbone.Route(name="tree", why=EXACT)


def test_of_16_bits_the_twin_is_compared(monkeypatch):
    """Loud weights make two exact ways differ by half of the largest logit in bfloat16."""
    model = ARCHITECTURES["Mistral"].made().bfloat16()
    assert probe.probe(model).name == "tree"
    assert probe.probe(ARCHITECTURES["Mamba"].made().bfloat16()).name == "rows"
    window_wider(monkeypatch)
    assert probe.probe(model).name == "rows"


class Mixed(Qwen2ForCausalLM):
    """A model that tells the rows of a batch apart."""

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(halved_after_the_first)


def halved_after_the_first(*told: Any) -> Tensor:
    """Returns what was embedded, half of it in every row but the first; a hook."""
    found = told[-1]
    share = torch.where(torch.arange(len(found)) == 0, 1.0, 0.5).to(found)
    return found * share[:, None, None]


def test_a_model_whose_rows_depend_on_each_other_is_refused():
    model = qwen2()
    mixed = Mixed(model.config).double().eval()
    mixed.load_state_dict(model.state_dict())
    with pytest.raises(Refused, match="a Mixed, for which a row depends on what stands behind or"):
        probe.probe(mixed)


def scaled():
    return COHERE.made()


def capped():
    model = gemma3()
    model.config.final_logit_softcapping = 2.0
    return model


@pytest.mark.parametrize(("made", "names"), [(scaled, "SCALES"), (capped, "CAPS")])
def test_a_scale_or_cap_that_is_not_read_is_refused(made, names, monkeypatch):
    model = made()
    assert probe.probe(model).name == "tree"
    monkeypatch.setattr(backbone, names, ())
    with pytest.raises(Refused, match="can not be trained exactly"):
        probe.probe(model)


class Louder(Qwen2ForCausalLM):
    """A model whose config does not tell what becomes of its logits."""

    def forward(self, *inputs, **settings):
        found: Any = super().forward(*inputs, **settings)
        found.logits *= 1.1
        return found


def test_a_model_with_a_scale_of_its_own_is_refused():
    model = Louder(qwen2().config)
    with pytest.raises(Refused, match="`model` is a Louder, whose logits are not its last hidden"):
        Network(model, needs())


class Abrupt(Qwen2ForCausalLM):
    """A model that reads a single token in another way than many."""

    def __init__(self, config):
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(halved_alone)


def halved_alone(*told: Any) -> Tensor:
    """Returns what was embedded, or half of it where it is one token; a hook."""
    found = told[-1]
    return found * (0.5 if found.shape[1] == 1 else 1.0)


def test_a_model_that_decodes_in_another_way_takes_the_rows():
    why = "decoded, its logits or gradients are not those of each sequence alone"
    model = qwen2()
    loud = Abrupt(model.config).double().eval()
    loud.load_state_dict(model.state_dict())
    assert probe.probe(loud).why == why


@pytest.mark.parametrize(
    ("name", "changed", "why"),
    [
        ("Llama 4", {"attention_chunk_size": 60}, "in a pack, its logits or gradients are not"),
        ("Gemma 2", {}, "`softcap` is set, but tree attention has none"),
        ("Gemma 2", {"attn_logit_softcapping": None}, EXACT),
        ("Mamba", {}, "2 layers call our attention 0 times, not once each"),
        ("Bloom", {}, "its attention is its own"),
    ],
)
def test_a_model_that_is_not_packed_says_why(name, changed, why):
    one = ARCHITECTURES[name]
    route = probe.probe(replace(one, config={**one.config, **changed}).made())
    assert why in route.why
    assert "\n" not in route.why
    assert (route.name, route.engine) == (
        ("tree", "local") if why is EXACT else ("rows", "transformers")
    )


def test_what_can_not_be_made_small_takes_the_rows(monkeypatch):
    monkeypatch.setattr("logratio.model.twin.LARGEST", 10)
    route = probe.probe(gpt2())
    assert route.name == "rows"
    assert "the smallest GPT2LMHeadModel for a probe has" in route.why


def test_a_twin_without_the_windows_is_not_trusted(monkeypatch):
    monkeypatch.setattr(probe, "twin", lambda _: gpt2().float())
    assert probe.probe(gemma3()).why == "its windows can not be probed: its small twin has none"


def test_a_model_too_short_for_a_probe_is_refused():
    model = gpt2()
    model.config.n_positions = 12
    with pytest.raises(Refused, match="has 20 tokens, but the model holds 12"):
        probe.probe(model)


def test_a_twin_is_small_alike_and_loud():
    config = {**GD, **LAYERS, "num_hidden_layers": 12, "hidden_size": 256, "vocab_size": 5000,
              "sliding_window": 4096, "layer_types": LAYERS["layer_types"] * 6}  # fmt: skip
    model = replace(ARCHITECTURES["Gemma 3"], config=config).made()
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    small = twin(model)
    assert_close(torch.rand(1), first)
    assert type(small) is type(model)
    assert small.config.layer_types == LAYERS["layer_types"]
    assert small.config.sliding_window == NARROW
    assert small.config.num_key_value_heads == 2
    assert sum(weight.numel() for weight in small.parameters()) < 200_000
    assert model.config.num_hidden_layers == 12
    ids = torch.randint(1, 97, (1, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 5] += 1
    apart = small(ids).logits[0, -1] - small(other).logits[0, -1]
    assert apart.abs().max() > 0.05


def test_an_adapter_changes_no_route():
    model = qwen2().float()
    adapter.add(model, adapter.Adapter(rank=2))
    assert probe.probe(model).name == "tree"


def test_the_model_is_left_as_it_was():
    model = gemma3().train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    how = model.config._attn_implementation
    assert probe.probe(model).name == "tree"
    assert model.training
    assert model.config._attn_implementation == how
    assert not model.get_input_embeddings()._forward_hooks
    assert all(weight.grad is None for weight in model.parameters())
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_model_is_probed_once(monkeypatch):
    model, asked = gpt2(), []
    monkeypatch.setattr(probe, "probe", lambda one: asked.append(one) or TREE)
    assert probe.route_of(model) is probe.route_of(model)
    assert len(asked) == 1
