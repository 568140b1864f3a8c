"""Small models with loud weights: at default initialisation a shifted mask moves almost nothing."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from logratio.model.backbone import Route
from logratio.records import Rollout

TREE = Route(name="tree", why="the probe takes longer than a small test")
VOCABULARY = 50
SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
WINDOW = {
    **SHAPE,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 6,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def gpt2() -> PreTrainedModel:
    """Returns a model with learned positions and tied embeddings."""
    config = GPT2Config(
        **{name: SHAPE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
        n_layer=2, n_head=4, n_embd=32, n_positions=64,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    return loud(GPT2LMHeadModel(config), gain=4.0)


def qwen2() -> PreTrainedModel:
    """Returns a model with rotary positions, grouped heads and tied embeddings."""
    config = Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)
    return loud(Qwen2ForCausalLM(config), 1, gain=2.0)


def gemma3() -> PreTrainedModel:
    """Returns a model with sliding windows."""
    config = Gemma3TextConfig(**WINDOW, num_key_value_heads=2, query_pre_attn_scalar=8)
    return loud(Gemma3ForCausalLM(config), 1, gain=2.0, table=1.0)


def gpt_neox() -> PreTrainedModel:
    """Returns a model with an output layer of its own and attention beside the other layer."""
    return loud(GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)))


MAKERS = {"gpt2": gpt2, "qwen2": qwen2, "gemma3": gemma3, "gpt_neox": gpt_neox}


def models() -> dict[str, PreTrainedModel]:
    """Returns a fresh model for each way of attending."""
    return {name: make() for name, make in MAKERS.items()}


def loud(
    model: PreTrainedModel, seed: int = 0, *, gain: float = 3.0, table: float = 2.0
) -> PreTrainedModel:
    """Returns the model in float64 with weights so large that every token matters.

    A matrix has entries of size gain / sqrt(columns), the table of embeddings of table /
    sqrt(columns). `moved` and `distinct` say whether that is loud enough; tests assert both.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.to(torch.float64).eval()
    embeddings = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.dim() > 1:
            size = table if parameter is embeddings else gain
            parameter.data.normal_(0, size * parameter.shape[-1] ** -0.5, generator=generator)
    return model


@torch.no_grad()
def moved(model: PreTrainedModel, *, length: int = 12) -> float:
    """Returns how far hiding one prompt token moves the last log-prob, on average over tokens."""
    ids = tokens_of(model, 4, length + 1)
    prompt, last = ids[:, :-1], ids[:, -1:]
    told: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        told["position_ids"] = torch.arange(length).expand(4, -1)

    def said(mask: Tensor) -> Tensor:
        logits = model(prompt, attention_mask=mask, use_cache=False, **told).logits
        return logits[:, -1].log_softmax(-1).gather(1, last)

    whole = said(torch.ones_like(prompt))
    hidden = [
        said((torch.arange(length) != place).long().expand(4, -1)) for place in range(length - 1)
    ]
    return float(torch.stack([(one - whole).abs() for one in hidden]).mean())


@torch.no_grad()
def distinct(model: PreTrainedModel, *, tokens: int = 40) -> int:
    """Returns how many different tokens greedy text has."""
    ids = prompt = tokens_of(model, 1, 6)
    for _ in range(tokens):
        best = model(ids, use_cache=False).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, best[:, None]], 1)
    return len(set(ids[0, prompt.shape[1] :].tolist()))


def tokens_of(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    """Returns random ids that the model knows, always the same."""
    words = int(model.config.get_text_config().vocab_size)
    return torch.randint(1, words, (rows, length), generator=torch.Generator().manual_seed(0))


def rollouts(*shapes: tuple[int, int, int], seed: int = 0) -> list[Rollout]:
    """Returns random rollouts from (prompt number, prompt length, completion length)."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int, start: int) -> tuple[int, ...]:
        own = torch.Generator().manual_seed(start)
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=own).tolist())

    return [
        Rollout(
            problem=str(prompt),
            group=prompt,
            index=index,
            prompt_ids=drawn(before, 1000 + prompt),
            ids=tuple(torch.randint(1, VOCABULARY, (after,), generator=generator).tolist()),
        )
        for index, (prompt, before, after) in enumerate(shapes)
    ]
