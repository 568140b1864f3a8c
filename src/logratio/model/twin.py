"""A twin: the same architecture and flags, so small that a probe of it costs nothing.

Heads keep their size, so that rotary tables, low ranks and kernels are the real ones; there are
fewer of them, fewer experts, fewer words, and one layer of each kind. Every sliding window and
every attention chunk is 8, so that a short text is longer than them.
"""

import copy
import math
import re
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from logratio.settings import Refused

NARROW = 8  # windows and chunks of a twin, in tokens
WORDS = 97
HEADS = 4
LARGEST = 2**26  # parameters that a twin may have, whatever its architecture
# Names that configs use; the largest value that a twin keeps of each
LIMITS = {
    r"(sliding_window|attention_chunk)(_size)?|window_size|local_attention_window": NARROW,
    r"(.*_)?(intermediate_size|ffn_dim|n_inner|ffn_hidden_size)": 64,
    r"(.*_)?(num_experts|num_local_experts|n_routed_experts)": 8,
    r"(.*_)?(num_experts_per_tok|topk_group|first_k_dense_replace)": 2,
    r"n_group": 2,
    r"(.*_)?vocab_size(_.*)?": WORDS,
    r".*_token_id": 0,
}


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the model's twin with loud weights, on its device, in float32."""
    name = type(model).__name__
    config = copy.deepcopy(model.config)
    shrink(config.get_text_config())
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in built(model, config).parameters())
    if size > LARGEST:
        raise Refused(f"the smallest {name} for a probe has {size} parameters")
    before = torch.random.get_rng_state()
    small = loud(built(model, config))
    torch.random.set_rng_state(before)
    odd = sorted(kinds(model) ^ kinds(small))
    if odd:
        raise Refused(f"no small {name} is like it: only one of the two has a {odd[0]}")
    return small.to(cast(Any, model.device))


def built(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """Returns a model of the same class from a config, in evaluation mode."""
    return cast(Any, type(model))(config).float().eval()


def kinds(model: PreTrainedModel) -> set[str]:
    """Returns the classes that a model is built of, as far as they are its own."""
    own = type(model).__module__
    return {type(one).__name__ for one in model.modules() if type(one).__module__ == own}


def loud(model: PreTrainedModel, *, seed: int = 0, gain: float = 1.0) -> PreTrainedModel:
    """Returns the model with weights so large that every token matters to every later one.

    At default initialisation a mask shifted by one moves almost nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() > 1:
            parameter.data = gain / math.sqrt(parameter.shape[-1]) * noise
        else:
            parameter.data += 0.1 * noise
    return model


def shrink(config: Any) -> None:
    """Makes a config small: fewer heads, layers, experts and words, and narrow windows."""
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    wide, deep = config.hidden_size, config.num_hidden_layers
    few = min(heads, HEADS)
    old: dict[str, Any] = config.to_dict()
    sized = [(name, cast(list[Any], v)) for name, v in old.items() if isinstance(v, list | tuple)]
    lists = {name: values for name, values in sized if len(values) == deep}
    chosen = one_of_each(layers_of(lists, deep))
    for name, value in old.items():
        if name in lists:
            setattr(config, name, [lists[name][place] for place in chosen])
        elif type(value) is int and value == wide and "position" not in name:
            setattr(config, name, wide // heads * few)
        elif type(value) is int:
            setattr(config, name, limited(name, value))
    config.num_hidden_layers = len(chosen)
    config.num_attention_heads = few
    if groups is not None:
        config.num_key_value_heads = few if groups == heads else min(groups, max(few // 2, 1))


def layers_of(lists: dict[str, list[Any]], deep: int) -> list[tuple[Any, ...]]:
    """Returns what the lists say of each layer; one whose entries all differ only numbers them."""
    told = [values for values in lists.values() if len(set(map(str, values))) < deep]
    return list(zip(*told, strict=True)) or [()] * deep


def one_of_each(layers: list[tuple[Any, ...]]) -> list[int]:
    """Returns the places of the first layer of each kind, and of at least two layers."""
    first = [place for place, kind in enumerate(layers) if layers.index(kind) == place]
    return first if len(first) > 1 else list(range(min(2, len(layers))))


def limited(name: str, value: int) -> int:
    """Returns a number of a config, or the most that a twin keeps of it."""
    for pattern, most in LIMITS.items():
        if re.fullmatch(pattern, name):
            return min(value, most)
    return value
