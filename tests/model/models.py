"""Small models with loud weights: at default initialisation a shifted mask moves almost nothing."""

import torch
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

from logratio.records import Rollout

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
WINDOW = {**SHAPE, "num_hidden_layers": 7, "sliding_window": 6, "head_dim": 8}


def models() -> dict[str, PreTrainedModel]:
    """Returns one model for each way of attending: learned, rotary, grouped, windowed, untied."""
    gpt2 = GPT2Config(
        **{name: SHAPE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
        n_layer=2, n_head=4, n_embd=32, n_positions=64,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    grouped = Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)
    windowed = Gemma3TextConfig(**WINDOW, num_key_value_heads=2, query_pre_attn_scalar=8)
    made = {
        "gpt2": GPT2LMHeadModel(gpt2),
        "qwen2": Qwen2ForCausalLM(grouped),
        "gemma3": Gemma3ForCausalLM(windowed),
        "gpt_neox": GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    }
    return {name: loud(model, seed) for seed, (name, model) in enumerate(made.items())}


def loud(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Returns the model in float64 with weights large enough that every token matters."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(torch.float64).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.15, generator=generator)
    return model


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
