"""Loading: what is saved comes back, and what can not be read safely is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from logratio.model.load import PRESETS, checked, end_tokens, load, save
from logratio.settings import Refused

every_preset = pytest.mark.parametrize("name", PRESETS)


@every_preset
def test_a_preset_is_made_from_its_seed_and_leaves_the_seed_alone(name):
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = load(name), load(name), load(name, seed=1)
    assert_close(torch.rand(3), before)
    ids = torch.tensor([[5, 6, 7]])
    assert_close(one.model(ids).logits, same.model(ids).logits, rtol=0, atol=0)
    assert not torch.equal(one.model(ids).logits, other.model(ids).logits)
    assert not one.model.training


@every_preset
def test_text_of_any_kind_comes_back(name):
    tokenizer = load(name).tokenizer
    for text in ("2 + 2 = 4", "naïve café", "日本", "tab\tand\nline", "<end>no"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


@every_preset
def test_a_saved_model_loads(name, tmp_path):
    one = load(name)
    save(one, tmp_path)
    again = load(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    assert_close(again.model(ids).logits, one.model(ids).logits, rtol=0, atol=0)
    assert end_tokens(again) == (one.tokenizer.eos_token_id,)
    words = again.tokenizer("naïve 日本 ", add_special_tokens=False)["input_ids"]
    assert words == one.tokenizer("naïve 日本 ", add_special_tokens=False)["input_ids"]
    assert again.tokenizer.decode(words) == "naïve 日本 "


def test_every_end_token_counts():
    one = load("tiny")
    one.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(one) == (7, 9, one.tokenizer.eos_token_id)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refused, match="has no weights"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Refused, match=r"pytorch_model.bin` is a pickle"):
        load(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"has no config.json"):
        load(tmp_path)
    with pytest.raises(Refused, match="which is no folder"):
        load(tmp_path / "missing")


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_narrow_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def without_an_end_token(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))


def with_half_a_config(folder):
    (folder / "config.json").write_text("{")


def of_no_known_kind(folder):
    (folder / "config.json").write_text('{"model_type": "nobody"}')


def of_its_own_code(folder):
    code = {"AutoConfig": "its.Config", "AutoModelForCausalLM": "its.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "its", "auto_map": code}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_a_weight, r"do not hold 1 of its weights: `model.norm.weight` is missing"),
        (with_a_narrow_weight, r"has shape \[5\], but must have \[64\]"),
        (cut_short, "can not load: Error while deserializing header"),
        (without_a_tokenizer, "has no tokenizer"),
        (without_an_end_token, "has no end token, but a completion must end"),
        (with_half_a_config, "is not a valid JSON file"),
        (of_no_known_kind, "has model type `nobody` but Transformers does not recognize"),
        (of_its_own_code, "contains custom code which must be executed"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(damage, said, tmp_path):
    save(load("tiny"), tmp_path)
    damage(tmp_path)
    with pytest.raises(Refused, match=said) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_does_not_fit_is_refused():
    one = load("tiny")
    one.model.config.vocab_size = 10
    with pytest.raises(Refused, match="has 259 tokens, but the model only 10"):
        checked(one, "here")
    one.model.config.vocab_size = 259
    one.tokenizer.add_tokens(["more"])
    with pytest.raises(Refused, match="has 260 tokens, but the model only 259"):
        checked(one, "here")
