"""Models of a named shape with random weights: speed does not depend on what the weights are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from logratio.model.load import Loaded, byte_tokenizer, save
from logratio.settings import Refused, unknown

Shaping = Callable[[Mapping[str, Any]], PreTrainedModel]


def gpt2(ends: Mapping[str, Any]) -> PreTrainedModel:
    """Returns GPT-2's smallest model, 124 million weights, with its dropout off."""
    config = GPT2Config(
        vocab_size=50257, n_layer=12, n_head=12, n_embd=768, n_positions=1024,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **ends,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def qwen2(ends: Mapping[str, Any], **sizes: int) -> PreTrainedModel:
    """Returns a Qwen2 of some sizes with tied embeddings."""
    config = Qwen2Config(max_position_embeddings=4096, tie_word_embeddings=True, **sizes, **ends)
    return Qwen2ForCausalLM(config)


def sized(**sizes: int) -> Shaping:
    """Returns what makes a Qwen2 of these sizes."""
    return lambda ends: qwen2(ends, **sizes)


SMALL = {
    "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
SHAPES: Mapping[str, Shaping] = {
    "gpt2": gpt2,
    "qwen2-4.5m": sized(vocab_size=2048, **SMALL),
    "w0": sized(vocab_size=32000, **SMALL),
    "qwen2.5-0.5b": sized(
        vocab_size=151936, num_hidden_layers=24, hidden_size=896, intermediate_size=4864,
        num_attention_heads=14, num_key_value_heads=2,
    ),
    "qwen2.5-1.5b": sized(
        vocab_size=151936, num_hidden_layers=28, hidden_size=1536, intermediate_size=8960,
        num_attention_heads=12, num_key_value_heads=2,
    ),
}  # fmt: skip


def made(name: str, *, seed: int = 0) -> Loaded:
    """Returns a model of a named shape, and a tokenizer of single bytes."""
    if name not in SHAPES:
        raise Refused(unknown("shape", name, SHAPES, owner="bench model"))
    return grown(SHAPES[name], seed=seed)


def grown(shape: Shaping, *, seed: int = 0) -> Loaded:
    """Returns a model with random weights from a seed, and a tokenizer of single bytes."""
    tokenizer = byte_tokenizer()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    return Loaded(shape(ends).eval(), tokenizer)


def write(loaded: Loaded, folder: Path) -> int:
    """Writes a model into a new folder; returns how many weights it has."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"`{folder}` is there already, but it must be a new or an empty folder")
    save(loaded, folder)
    return sum(parameter.numel() for parameter in loaded.model.parameters())
