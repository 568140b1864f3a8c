"""Models and tokenizers: from a folder or a hub name, or tiny ones made from code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from logratio.model.adapter import adapted, merged
from logratio.settings import Refused, unknown

WORDS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Loaded:
    """A model and the tokenizer that its ids belong to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(source: str | Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Loaded:
    """Returns the model of a preset, a folder or a hub name, in evaluation mode.

    Only safetensors are read, and code that comes with a model is not run.
    """
    if str(source) in PRESETS:
        return tiny(str(source), seed=seed, dtype=dtype)
    folder = Path(source)
    if folder.is_dir():
        check_folder(folder)
    elif len(folder.parts) > 2 or folder.suffix or str(source).startswith((".", "/")):
        raise Refused(f"`model` is `{source}`, which is no folder, but it must be a folder, a hub "
                      f"name, or one of {', '.join(PRESETS)}")  # fmt: skip
    options: Any = {"trust_remote_code": False}
    how: Any = {**options, "use_safetensors": True, "dtype": dtype}
    how |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to be refused in words
    try:
        model, found = cast(Any, AutoModelForCausalLM).from_pretrained(str(source), **how)
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(source), **options)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        line = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise Refused(f"`model` is `{source}`, which transformers can not load: {line}") from error
    check_weights(found, str(source))
    return checked(Loaded(cast(PreTrainedModel, model).eval(), tokenizer), str(source))


def check_weights(found: Mapping[str, Any], source: str) -> None:
    """Refuses a model some of whose weights were not in its files: they would be random."""
    shapes = {name: f"has shape {list(here)}, but must have {list(there)}"
              for name, here, there in found["mismatched_keys"]}  # fmt: skip
    wrong = dict.fromkeys(found["missing_keys"], "is missing") | shapes
    if wrong:
        name = min(wrong)
        raise Refused(f"`model` is `{source}`, whose files do not hold {len(wrong)} of its "
                      f"weights: `{name}` {wrong[name]}")  # fmt: skip


def check_folder(folder: Path) -> None:
    """Refuses a folder without config or tokenizer, or without weights that are safe to read."""
    if not (folder / "config.json").is_file():
        raise Refused(
            f"`model` is `{folder}`, which has no config.json: it is not a model's folder"
        )
    pickled = [file.name for pattern in PICKLED for file in folder.glob(pattern)]
    if any(folder.glob("*.safetensors")):
        if any(file for pattern in WORDS for file in folder.glob(pattern)):
            return
        raise Refused(f"`model` is `{folder}`, which has no tokenizer: it must hold its files")
    if pickled:
        raise Refused(f"`{folder / pickled[0]}` is a pickle, which can run code when it is read: "
                      "convert the weights to safetensors")  # fmt: skip
    raise Refused(f"`model` is `{folder}`, which has no weights: it must hold a .safetensors file")


def checked(loaded: Loaded, source: str) -> Loaded:
    """Refuses a model and a tokenizer that do not fit each other."""
    vocabulary: Any = loaded.tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1  # ids may have gaps
    words = loaded.model.config.get_text_config().vocab_size
    if size > words:
        raise Refused(f"the tokenizer of `{source}` has {size} tokens, but the model only {words}")
    if loaded.tokenizer.eos_token_id is None:
        raise Refused(f"the tokenizer of `{source}` has no end token, but a completion must end")
    return loaded


def end_tokens(loaded: Loaded) -> tuple[int, ...]:
    """Returns every id that ends a completion: the generation config may name several."""
    found: Any = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = cast(list[Any], found if isinstance(found, list) else [found])
    every = [*ids, cast(Any, loaded.tokenizer.eos_token_id)]
    return tuple(dict.fromkeys(int(one) for one in every if one is not None))


def save(loaded: Loaded, folder: Path) -> None:
    """Writes model and tokenizer in Hugging Face's layout, weights as safetensors.

    A model with an adapter is written as one without that says the same.
    """
    state = merged(loaded.model) if adapted(loaded.model) else None
    loaded.model.save_pretrained(folder, state_dict=state)
    loaded.tokenizer.save_pretrained(folder)


def tiny(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Loaded:
    """Returns a preset: random weights from the seed, and a tokenizer of single bytes."""
    if name not in PRESETS:
        raise Refused(unknown("preset", name, PRESETS, owner="model"))
    tokenizer = byte_tokenizer()
    ends = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model: Any = PRESETS[name](ends)
    torch.random.set_rng_state(before)
    return Loaded(model.to(dtype).eval(), tokenizer)


def tiny_qwen2(ends: dict[str, Any]) -> PreTrainedModel:
    """Returns a Qwen2 of two layers and 64 columns: rotary positions, grouped heads."""
    config = Qwen2Config(
        **ends,
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def tiny_gpt2(ends: dict[str, Any]) -> PreTrainedModel:
    """Returns a GPT-2 of two layers and 64 columns, with its dropout off."""
    config = GPT2Config(
        **ends, n_layer=2, n_head=4, n_embd=64, n_positions=1024,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


PRESETS = {"tiny": tiny_qwen2, "tiny-gpt2": tiny_gpt2}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token for each byte, and three that begin, end and pad."""
    special = ["<begin>", "<end>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: place for place, word in enumerate([*special, *alphabet])}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<begin>", "eos_token": "<end>", "pad_token": "<pad>"}
    # no byte is unknown, but a tokenizer without the token is given one of its architecture's
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<pad>", **ends)
