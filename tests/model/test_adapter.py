"""LoRA: small matrices learn, the rest is frozen, and with the adapter off it is what it was."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from model.models import MAKERS, TREE, gpt2, gpt_neox, qwen2, rollouts, tokens_of
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from logratio.collate import collate
from logratio.engine import Engine, requests_of
from logratio.engines.local import Local
from logratio.learner import Learner, Update
from logratio.model import adapter
from logratio.model.adapter import Adapter, Unadapted
from logratio.model.load import load, save
from logratio.model.network import Network
from logratio.model.pack import packs
from logratio.model.scorer import score
from logratio.objectives.sft import sft
from logratio.part import Needs
from logratio.records import Graded, Problem, Verdict
from logratio.sampler import Sampling
from logratio.settings import Refused

ROWS = rollouts((0, 5, 4), (1, 3, 6), (0, 5, 2))
SMALL = Adapter(rank=4, alpha=8.0)
tree = partial(Network, route=TREE)
EXACT = {"rtol": 0, "atol": 0}
every_model = pytest.mark.parametrize("name", MAKERS)
# peft asks transformers for a property that transformers has renamed
old_name = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def adapted(name, how=SMALL):
    """Returns a model whose adapter says something: a fresh one says nothing."""
    model = MAKERS[name]()
    adapter.add(model, how)
    generator = torch.Generator().manual_seed(1)
    for layer in adapter.layers(model).values():
        layer.lora_B[adapter.NAME].weight.data.normal_(0, 0.2, generator=generator)
    return model


def logp(model, rows=ROWS):
    """Returns the log-probs of the rows."""
    return score(tree(model, Needs()), rows)["logp"]


@every_model
def test_a_fresh_adapter_changes_nothing_and_is_all_that_learns(name):
    model, plain = MAKERS[name](), MAKERS[name]()
    adapter.add(model, SMALL)
    assert_close(logp(model), logp(plain), **EXACT)
    assert not model.training
    assert not any(isinstance(one, nn.Dropout) and one.training for one in model.modules())
    learns = {name for name, one in model.named_parameters() if one.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if ".lora_" in name}
    linear = [one for one in plain.modules() if type(one).__name__ in ("Linear", "Conv1D")]
    assert len(learns) == 2 * (len(linear) - 1)  # two matrices for each but the head
    first = next(iter(adapter.layers(model).values()))
    assert first.scaling[adapter.NAME] == 2.0
    assert first.lora_A[adapter.NAME].weight.shape[0] == 4


def test_the_seed_decides_and_leaves_the_seed_alone():
    made = [adapter_of(seed) for seed in (0, 0, 1)]
    assert_close(made[0], made[1], **EXACT)
    assert not torch.equal(made[0], made[2])


def adapter_of(seed):
    model, before = gpt2(), torch.random.get_rng_state()
    adapter.add(model, SMALL, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    return next(one for name, one in model.named_parameters() if "lora_A" in name)


@every_model
def test_off_it_is_the_model_that_was(name):
    model = adapted(name)
    network, plain = Network(model, Needs()), logp(MAKERS[name]())
    frozen = next(one for name, one in model.named_parameters() if ".lora_A" in name)
    frozen.requires_grad_(False)
    flags = [one.requires_grad for one in model.parameters()]
    said = score(network, ROWS)["logp"]
    assert (said - plain).abs().mean() > 0.1
    assert_close(score(Unadapted(network), ROWS)["logp"], plain, **EXACT)
    assert_close(score(network, ROWS)["logp"], said, **EXACT)
    assert [one.requires_grad for one in model.parameters()] == flags
    with pytest.raises(KeyError), adapter.off(model):
        raise KeyError
    assert_close(score(network, ROWS)["logp"], said, **EXACT)


@every_model
def test_the_reference_on_the_same_pack_is_a_second_copy(name):
    """KL and its gradient are those against a copy of the base, which is not there."""
    needs = Needs(policy=frozenset(["kl", "logit"]))
    network, copy = tree(adapted(name), needs), tree(MAKERS[name](), Needs())
    pack = packs(ROWS, budget=100)[0]
    learns = [one for one in network.parameters() if one.requires_grad]
    found = []
    for reference in (Unadapted(network), copy):
        policy = network(pack, reference)
        found.append([policy.kl, *torch.autograd.grad(policy.kl.sum(), learns)])
    assert found[0][0].mean() > 0.05
    assert_close(found[0], found[1], **EXACT)
    assert all(one.abs().sum() > 0 for one in found[0])


def test_a_reader_asks_for_what_it_needs():
    network = tree(adapted("qwen2"), Needs(policy=frozenset(["kl"])))
    asked = Needs(policy=frozenset(["logit"]))
    assert set(score(Unadapted(network, asked), ROWS)) == {"logp", "logit"}
    with pytest.raises(Refused, match="`kl` is read off the reference's rows"):
        network(packs(ROWS, budget=100)[0])


@every_model
@old_name
def test_a_saved_adapter_comes_back_and_is_pefts_own(name, tmp_path):
    import peft  # slow, and here only

    model = adapted(name)
    adapter.save(model, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {adapter.CONFIG, adapter.WEIGHTS}
    again = MAKERS[name]()
    adapter.load(again, tmp_path)
    assert_close(logp(again), logp(model), **EXACT)
    flags = [one.requires_grad for one in model.parameters()]
    assert [one.requires_grad for one in again.parameters()] == flags
    theirs = peft.PeftModel.from_pretrained(MAKERS[name](), str(tmp_path))
    ids = tokens_of(model, 2, 9)
    assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", ["tiny", "tiny-gpt2"])
def test_a_merged_model_is_a_plain_one_with_the_same_greedy_text(preset, tmp_path):
    loaded = load(preset)
    generator = torch.Generator().manual_seed(0)
    for parameter in loaded.model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    adapter.add(loaded.model, SMALL)
    for layer in adapter.layers(loaded.model).values():
        layer.lora_B[adapter.NAME].weight.data.normal_(0, 0.3, generator=generator)
    ids = tokens_of(loaded.model, 3, 7)
    greedy = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    said = loaded.model(ids).logits
    save(loaded, tmp_path)
    assert_close(loaded.model(ids).logits, said, **EXACT)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not adapter.adapted(plain)
    assert_close(plain(ids).logits, said, rtol=1e-4, atol=1e-4)
    text = plain.generate(ids, **greedy)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(text, loaded.model.generate(ids, **greedy))
    with adapter.off(loaded.model):
        assert not torch.equal(text, loaded.model.generate(ids, **greedy))


@every_model
def test_the_base_costs_its_weights_only(name):
    """No gradient, no optimiser state, and after steps it is the same to the bit."""
    model = MAKERS[name]().float()
    base = {name: one.clone() for name, one in model.state_dict().items()}
    adapter.add(model, SMALL)
    rows = [Graded(rollout=one, verdict=Verdict(reward=1.0)) for one in ROWS]
    learner = Learner(tree(model, sft.declared()), sft, Update(lr=1e-2))
    batch = collate(rows, sft)
    losses = [learner.update(batch, ROWS).loss for _ in range(5)]
    assert losses[-1] < losses[0] - 0.1
    small = [one for name, one in model.named_parameters() if ".lora_" in name]
    assert set(learner.optimizer.state) == set(small)
    learner.backward(learner.objective.prepare(batch), ROWS, reference=None)
    for key, one in model.named_parameters():
        assert (one.grad is None) == (".lora_" not in key)
        if ".lora_" not in key:
            assert_close(one, base[key.replace(".base_layer", "")], **EXACT)


def test_beside_16_bit_weights_the_adapter_is_wide():
    model = qwen2().bfloat16()
    adapter.add(model, SMALL)
    kinds = {(".lora_" in name, one.dtype) for name, one in model.named_parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}


@every_model
def test_the_engine_samples_from_the_adapted_policy(name):
    network = tree(adapted(name).float(), Needs(policy=frozenset(["entropy"])), temperature=0.7)
    engine = Local(network, ends=[0], slots=4)
    assert isinstance(engine, Engine)
    problems = [
        Problem(key=str(number), prompt="", prompt_ids=ROWS[number].prompt_ids) for number in (0, 1)
    ]
    sampling = Sampling(max_tokens=12, temperature=0.7)
    made = engine.generate(requests_of(problems, samples=4, seed=3), sampling)
    assert len({one.ids for one in made}) > 4
    truth, base = score(network, made), score(Unadapted(network), made)
    apart = [
        (torch.tensor(one.old) - truth["logp"][place, : len(one.ids)]).abs()
        for place, one in enumerate(made)
    ]
    # decoding and training sum in different orders, in float32
    assert torch.cat(apart).mean() < 1e-5
    assert torch.cat(apart).max() < 1e-4
    assert (truth["logp"] - base["logp"]).abs().mean() > 0.1


def test_dropout_is_for_training_mode_only():
    model = adapted("qwen2", Adapter(rank=4, dropout=0.5))
    network, pack = tree(model, Needs()), packs(ROWS, budget=100)[0]
    said, plain = network(pack).logp, logp(qwen2())
    network.train()
    noisy = [network(pack).logp for _ in range(2)]
    assert not torch.equal(*noisy)
    assert_close(score(network, ROWS)["logp"][pack.rows], said, **EXACT)
    assert_close(Unadapted(network)(pack).logp, plain[pack.rows], **EXACT)
    assert network.training


def test_some_layers_can_be_chosen():
    model = qwen2()
    adapter.add(model, Adapter(modules=("q_proj", "layers.1.mlp.up_proj")))
    assert sorted(adapter.layers(model)) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]


def test_what_can_not_be_adapted_is_refused():
    for modules in (("lm_head",), ("embed_tokens",), ("proj",)):
        with pytest.raises(Refused, match=f"names `{modules[0]}`, but the linear layers other"):
            adapter.add(qwen2(), Adapter(modules=modules))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}):
        with pytest.raises(Refused, match=f"`{next(iter(wrong))}` is "):
            Adapter(**wrong)
    with pytest.raises(Refused, match="it can have one only"):
        adapter.add(adapted("qwen2"), SMALL)
    plain = qwen2()
    with pytest.raises(Refused, match="can not be its own reference"):
        Unadapted(tree(plain, Needs()))
    with pytest.raises(Refused, match="no adapter to be saved"):
        adapter.save(plain, Path())


def test_without_peft_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(adapter.importlib, "import_module", missing)
    with pytest.raises(Refused, match="pip install 'logratio\\[lora\\]'"):
        adapter.add(qwen2(), SMALL)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"has no adapter_config.json"):
        adapter.load(gpt2(), tmp_path)
    adapter.save(adapted("qwen2"), tmp_path)
    config = json.loads((tmp_path / adapter.CONFIG).read_text())
    (tmp_path / adapter.CONFIG).write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(Refused, match=r"has shape \[4, 64\], but here it is \[8, 64\]"):
        adapter.load(qwen2(), tmp_path)
    for change, said in (  # of a model whose embeddings are not tied: peft warns where they are
        ({"modules_to_save": ["lm_head"]}, "is more than plain LoRA"),
        ({"use_dora": True}, "logratio has plain LoRA"),
        ({"target_modules": ["lm_head"]}, "on linear layers other than the head"),
        ({"target_modules": ["embed_in"]}, "is adapted as Embedding"),
    ):
        changed = {**config, "target_modules": ["dense"], **change}
        (tmp_path / adapter.CONFIG).write_text(json.dumps(changed))
        with pytest.raises(Refused, match=said):
            adapter.load(gpt_neox(), tmp_path)
    (tmp_path / adapter.WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(Refused, match="from safetensors only"):
        adapter.load(qwen2(), tmp_path)
