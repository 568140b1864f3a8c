"""Small models of many architectures with loud weights, and the route that each takes.

`PYTHONPATH=tests python -m model.architectures` writes docs/models.md.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from model.models import SHAPE, loud, tokens_of
from torch import Tensor
from transformers import PreTrainedModel

from logratio.model.backbone import Route
from logratio.model.probe import probe

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a small model is made, and the route that it is expected to take."""

    kind: str  # what the names of its classes begin with
    route: str = "tree"
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scale: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of its weights

    def made(self) -> PreTrainedModel:
        """Returns the model in float32."""
        # some classes hold a picture's part as well; theirs is another config
        config = of_either(f"{self.kind}TextConfig", f"{self.kind}Config")
        model = of_either(f"{self.kind}ForCausalLM", f"{self.kind}LMHeadModel")
        made = loud(model(config(**{**SHAPE, **self.config})), **self.scale)
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            if parameter.dim() == 1:  # a bias that is left out must be missed too
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data += 0.1 * noise
        return made.float()


def of_either(*names: str) -> Any:
    """Returns the first of these classes that transformers has."""
    return next(one for name in names if (one := getattr(transformers, name, None)) is not None)


G = {"num_key_value_heads": 2}
GD = {**G, "head_dim": 8}
WINDOW = {"sliding_window": 6}
LAYERS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
UNTIED = {"tie_word_embeddings": False}
TWO = {"num_experts_per_tok": 2}
LOCAL = {**TWO, "num_local_experts": 4}
EXPERTS = {**TWO, "num_experts": 4, "moe_intermediate_size": 24}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 24}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
DEEPSEEK = {
    **LATENT, **TWO, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
JAMBA = {
    **G, **TWO, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}  # fmt: skip
CHUNKED = {
    **GD, **LOCAL, "attention_chunk_size": 6, "intermediate_size_mlp": 64,
    "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"],
    "interleave_moe_layer_step": 1, "attn_temperature_tuning": True, "floor_scale": 4,
}  # fmt: skip
STRETCHED = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
    },
}  # fmt: skip
GRANITE = {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3}
FEW = {"n_embd": 32, "n_layer": 2, "n_head": 4}


def tree(kind: str, *parts: Mapping[str, Any], **scale: Any) -> Architecture:
    """Returns an architecture that packs serve."""
    config = {name: value for part in parts for name, value in part.items()}
    return Architecture(kind=kind, config=config, scale=scale)


def rows(kind: str, *parts: Mapping[str, Any], **scale: Any) -> Architecture:
    """Returns an architecture that rows serve."""
    config = {name: value for part in parts for name, value in part.items()}
    return Architecture(kind=kind, route="rows", config=config, scale=scale)


ARCHITECTURES = {
    "AFMoE": tree("Afmoe", GD, EXPERTS, LAYERS, {"num_dense_layers": 1}, gain=4.0),
    "Apertus": tree("Apertus", G),
    "Arcee": tree("Arcee", GD),
    "Bamba": rows("Bamba", G, MAMBA2, {"attn_layer_indices": [1]}),
    "Bloom": rows("Bloom", UNTIED, {"n_layer": 2, "n_head": 4}, seed=2, gain=6.0),
    "CodeGen": rows("CodeGen", FEW, {"rotary_dim": 4}, gain=4.0),
    "Cohere": tree("Cohere", G, {"logit_scale": 2.0}),
    "Cohere 2": tree("Cohere2", G, LAYERS, {"logit_scale": 2.0}, gain=2.0),
    "DeepSeek V2": tree("DeepseekV2", DEEPSEEK, {"topk_method": "greedy"}),
    "DeepSeek V3": tree("DeepseekV3", DEEPSEEK),
    "Ernie 4.5": tree("Ernie4_5", GD),
    "EXAONE 4": tree("Exaone4", G, LAYERS, gain=2.0),
    "Falcon": rows("Falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "Falcon H1": rows("FalconH1", GD, MAMBA2, {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    "Gemma": tree("Gemma", GD),
    "Gemma 2": rows("Gemma2", GD, LAYERS, UNTIED, {"query_pre_attn_scalar": 8}),
    "Gemma 3": tree("Gemma3", GD, LAYERS, UNTIED, {"query_pre_attn_scalar": 8}, table=0.5),
    "GLM 4": tree("Glm4", GD),
    "GPT-2": tree("GPT2", FEW, {"n_positions": 64}),
    "GPT-J": rows("GPTJ", FEW, {"rotary_dim": 4}, seed=1),
    "GPT-Neo": rows("GPTNeo", {
        "num_layers": 2, "num_heads": 4, "window_size": 6,
        "attention_types": [[["global", "local"], 1]],
    }),
    "GPT-NeoX": tree("GPTNeoX", gain=2.0),
    "gpt-oss": rows("GptOss", GD, LOCAL, LAYERS),
    "Granite": tree("Granite", G, GRANITE, gain=4.0),
    "Granite MoE": tree("GraniteMoe", G, LOCAL, GRANITE),
    "Helium": tree("Helium", GD),
    "Jamba": rows("Jamba", JAMBA),
    "LFM2": rows("Lfm2", G, {"layer_types": ["conv", "full_attention"]}, gain=2.0),
    "Llama": tree("Llama", G),
    "Llama 4": rows("Llama4", CHUNKED, gain=4.0),
    "Mamba": rows("Mamba", {"state_size": 8}),
    "Mamba 2": rows("Mamba2", {
        "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8,
    }),
    "MiniCPM 3": tree("MiniCPM3", LATENT, gain=4.0),
    "Mistral": tree("Mistral", G, WINDOW),
    "Mixtral": tree("Mixtral", G, LOCAL),
    "nanochat": tree("NanoChat", G, gain=4.0),
    "Nemotron": tree("Nemotron", G, gain=2.0),
    "OLMo": tree("Olmo", G),
    "OLMo 2": tree("Olmo2", G, table=1.0),
    "OLMo 3": tree("Olmo3", G, LAYERS, gain=2.0),
    "OLMoE": tree("Olmoe", G, TWO, {"num_experts": 4}),
    "OPT": tree("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "Phi": tree("Phi", G),
    "Phi 3": tree("Phi3", G, WINDOW),
    "Phi 3, long": tree("Phi3", G, STRETCHED),
    "Phi MoE": tree("Phimoe", G, LOCAL),
    "Qwen 2": tree("Qwen2", G, WINDOW, {"use_sliding_window": True, "max_window_layers": 1}),
    "Qwen 2 MoE": tree("Qwen2Moe", G, SHARED),
    "Qwen 3": tree("Qwen3", GD),
    "Qwen 3 MoE": tree("Qwen3Moe", GD, EXPERTS, gain=4.0),
    "Qwen 3 Next": rows("Qwen3Next", GD, SHARED, LINEAR),
    "Seed-OSS": tree("SeedOss", GD),
    "SmolLM 3": tree("SmolLM3", G, {"no_rope_layers": [1, 0]}),
    "StableLM": tree("StableLm", G),
    "StarCoder": tree("GPTBigCode", FEW, {"multi_query": True, "n_positions": 64}, gain=4.0),
    "StarCoder 2": tree("Starcoder2", G, WINDOW),
}  # fmt: skip


@torch.no_grad()
def moved(model: PreTrainedModel, *, length: int = 12) -> float:
    """Returns how far masking one prompt token moves the last log-prob, on average over tokens.

    Not the first: it may be all that a token sees, and then nothing is left to attend to.
    """
    ids = tokens_of(model, 4, length + 1)
    prompt, last = ids[:, :-1], ids[:, -1:]
    told: dict[str, Any] = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        told["position_ids"] = torch.arange(length).expand(4, -1)

    def said(mask: Tensor) -> Tensor:
        logits = model(prompt, attention_mask=mask, use_cache=False, **told).logits
        return logits[:, -1].log_softmax(-1).gather(1, last)

    place = torch.arange(length)
    whole = said(torch.ones_like(prompt))
    apart = [said((place != one).long().expand(4, -1)) - whole for one in range(1, length - 1)]
    return float(torch.stack(apart).abs().mean())


def page(routes: Mapping[str, Route]) -> str:
    """Returns docs/models.md."""
    lines = [
        f"| {name} | `{ARCHITECTURES[name].kind}` | {route.name} | {route.engine} | {route.why} |"
        for name, route in routes.items()
    ]
    return HEAD + "\n".join(lines) + "\n"


HEAD = f"""# Which models, and how

Any causal language model of transformers is served unmodified, by one of two routes. Which one is
found by a probe when the model is loaded, not by its name, and the network keeps the reason.

| route | engine | learner |
|---|---|---|
| tree | `local` | completions behind one copy of their prompt, through our attention |
| rows | `transformers` | right-padded rows, prompt and completion, through the model's own |

The probe reads two prompts with ragged completions in one pack, and token by token as decoding
does, and compares logits and gradients with the model's own eager forward of each sequence alone:
on the real weights, and on a small model of the same architecture whose windows and chunks are
shorter than the sequences. What is not equal takes the rows. A model whose logits are not its last
hidden states through its output layer, with the scale and cap that its config names, is refused.

Both routes are exact. Rows read each prompt once for every completion, and `transformers` decodes
by the model's own `generate`, with our sampler in it: a seed gives the same draws in both engines.

A model with rotary tables that change with the longest text of a batch (`longrope`, `dynamic`) is
served up to the length at which they change, and refused beyond it.

Each of the {len(ARCHITECTURES)} below was tried at a small size: greedy tokens are those of
`generate`, log-probs of sampled tokens are those of the learner, and log-probs and gradients of
packs are those of each sequence alone. `PYTHONPATH=tests python -m model.architectures` writes this
page.

| model | class | route | engine | why |
|---|---|---|---|---|
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page({name: probe(one.made()) for name, one in ARCHITECTURES.items()}))


if __name__ == "__main__":
    main()
