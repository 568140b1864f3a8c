"""Small models of many architectures with loud weights, and the table that says how each is served.

`PYTHONPATH=tests python -m model.architectures` writes the table to docs/models.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from model.models import SHAPE, distinct, loud, moved
from transformers import PreTrainedModel

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
NARROW = {"sliding_window": 6}
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
STATES = {"state_size": 8, "expand": 2, "conv_kernel": 4}
MIXED = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """How a small model is made, and the route that it is expected to take."""

    kind: str  # the prefix of its classes
    route: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: str = ""  # where its class is not the kind and "Config"
    known_as: str = ""  # what people call it
    scale: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tree(kind: str, known_as: str = "", **settings: Any) -> Architecture:
    """Returns an architecture that our attention serves."""
    return Architecture(kind, "tree", settings, known_as=known_as)


def rows(kind: str, known_as: str = "", **settings: Any) -> Architecture:
    """Returns an architecture that falls back."""
    return Architecture(kind, "rows", settings, known_as=known_as)


ALL = {
    "GPT-2": tree("GPT2", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "Llama": tree("Llama", **GROUPED),
    "Llama 4": rows("Llama4", **GROUPED, **LOCAL_EXPERTS, head_dim=8),
}
