"""The least time that a step could take: its multiplications and its bytes over what was measured.

Prompts are read once a group, in sampling and in training. Two floors are given: *overlapped*, as
if multiplications and memory were always busy at once, and *serial*, the sum of the matrix
products, of the reading of keys and values, and of the optimiser's passes over memory, which are
different operations. Nothing else is counted, neither norms nor activations nor the sampler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from logratio.lab.workload import Workload
from logratio.settings import Refused

Precision = Literal["fp32", "bf16"]
BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2}
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ADAM_BYTES = 28  # read weight, gradient and two moments; write weight and moments; all fp32
NORM_BYTES = 4  # the gradient once more, for its norm
HEAD_PRODUCTS = 3  # logits, and the slopes in states and weights; 4 if logits are made again


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model as its matrix products see it; weights in a product count once per product."""

    body: int  # weights that multiply every token
    head: int  # weights that multiply the states that a token is read from
    parameters: int  # trained ones; tied ones once
    layers: int
    heads: int
    kv_heads: int
    width: int  # of a head

    @property
    def scores(self) -> int:
        """Multiplications and additions of one query and one key, in all layers, both ways."""
        return 4 * self.layers * self.heads * self.width

    def cached(self, size: int) -> int:
        """Returns the bytes of keys and values that one token leaves behind."""
        return 2 * self.layers * self.kv_heads * self.width * size


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a machine was measured to do."""

    flops: float  # a second
    bandwidth: float  # bytes a second


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations and bytes of one thing to be done."""

    linear: float = 0.0  # floating point operations in products with weights
    attention: float = 0.0  # ... of queries with keys and values
    weights: float = 0.0  # bytes
    cache: float = 0.0  # bytes

    def overlapped(self, peak: Peak) -> float:
        """Returns the seconds if nothing waits for anything."""
        flops, moved = self.linear + self.attention, self.weights + self.cache
        return max(flops / peak.flops, moved / peak.bandwidth)

    def serial(self, peak: Peak) -> float:
        """Returns the seconds if products with weights and attention take turns."""
        products = max(self.linear / peak.flops, self.weights / peak.bandwidth)
        return products + max(self.attention / peak.flops, self.cache / peak.bandwidth)


def precision_of(text: str) -> Precision:
    """Returns a precision by its name."""
    if text not in BYTES:
        raise Refused(f"`precision` is `{text}`, but it must be {' or '.join(BYTES)}")
    return cast(Precision, text)


def shape_of(model: PreTrainedModel) -> Shape:
    """Returns the shape of a model, counted from its own modules."""
    output = cast(nn.Linear, model.get_output_embeddings())
    body = 0
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output:
            body += cast(torch.Tensor, module.weight).numel()
    config: Any = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return Shape(
        body=body,
        head=output.weight.numel(),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def prefill(shape: Shape, load: Workload, size: int) -> Work:
    """Returns the reading of each prompt once, and the logits after it."""
    pairs = sum(triangle(length) for length in load.prompts)
    rows = len(load.prompts)
    return Work(
        linear=2 * shape.body * sum(load.prompts) + 2 * shape.head * rows,
        attention=shape.scores * pairs,
        weights=(shape.body + shape.head) * size,
    )


def decoding(shape: Shape, load: Workload, step: int, size: int) -> Work:
    """Returns the reading of token `step` of every row that has a later one."""
    live = [sum(length > step for length in group) for group in load.completions]
    own = sum(live) * step
    shared = sum(length for length, rows in zip(load.prompts, live, strict=True) if rows)
    seen = own + sum(length * rows for length, rows in zip(load.prompts, live, strict=True))
    return Work(
        linear=2 * (shape.body + shape.head) * sum(live),
        attention=shape.scores * seen,
        weights=(shape.body + shape.head) * size,
        cache=shape.cached(size) * (own + shared),
    )


def scoring(shape: Shape, load: Workload) -> Work:
    """Returns one forward pass of the packed batch, logits at completion tokens only."""
    tokens = load.tokens()
    pairs = sum(triangle(length) for length in load.prompts)
    for prompt, group in zip(load.prompts, load.completions, strict=True):
        pairs += sum(length * prompt + triangle(length) for length in group)
    return Work(
        linear=2 * shape.body * tokens["trained"] + 2 * shape.head * tokens["completion"],
        attention=shape.scores * pairs,
    )


def training(shape: Shape, load: Workload, *, head_products: int = HEAD_PRODUCTS) -> Work:
    """Returns forward and backward of the packed batch: three products for each weight and pair."""
    once, tokens = scoring(shape, load), load.tokens()
    extra = 2 * shape.head * tokens["completion"] * (head_products - 3)
    return Work(linear=3 * once.linear + extra, attention=3 * once.attention)


def triangle(length: int) -> int:
    """Returns how many pairs a causal row of tokens has.

    >>> triangle(3)
    6
    """
    return length * (length + 1) // 2


def phases(
    shape: Shape,
    load: Workload,
    precision: Precision,
    peak: Peak,
    *,
    overlapped: bool = False,
    head_products: int = HEAD_PRODUCTS,
) -> dict[str, float]:
    """Returns the floor of each phase in seconds; those of a step add up."""
    size = BYTES[precision]

    def seconds(work: Work) -> float:
        return work.overlapped(peak) if overlapped else work.serial(peak)

    steps = range(1, max(load.lengths))  # the first token of a row comes with the prompt
    train = training(shape, load, head_products=head_products)
    found = {
        "prefill": seconds(prefill(shape, load, size)),
        "decode": sum(seconds(decoding(shape, load, step, size)) for step in steps),
        "train": load.epochs * seconds(train),
        "optimizer": load.epochs * shape.parameters * (ADAM_BYTES + NORM_BYTES) / peak.bandwidth,
    }
    if load.reference:
        found["reference"] = seconds(scoring(shape, load))
    return found
