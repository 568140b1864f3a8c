"""Matrix products on a CPU: weights laid out for few rows, and the faster full-precision route."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

Linear = Callable[[Tensor], Tensor]
FEW = 32  # rows that the layout is made for; it serves any number of them


def linear_of(weight: Tensor, bias: Tensor | None) -> Linear:
    """Returns x -> x W^T + b with W laid out for few rows where the machine gains by it.

    A plain weight is put in order again at each call of oneDNN, which costs more than a product
    of 16 rows does.
    """
    if not can_lay_out(weight):
        return lambda rows: nn.functional.linear(rows, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), FEW)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda rows: cast(Tensor, product(rows, packed, bias, "none", [], ""))


def can_lay_out(weight: Tensor) -> bool:
    """Says whether oneDNN has a layout of its own for this weight."""
    served = (torch.bfloat16, torch.float32)
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
    able = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return plain and able and weight.dtype in served and weight.numel() > 0


@contextmanager
def laid_out(model: nn.Module) -> Generator[None]:
    """Gives every linear layer of a model a laid out copy of its weight, while it lasts."""
    changed = [(layer, linear_of(*parts)) for layer, parts in linears(model)]
    for layer, product in changed:
        layer.forward = product
    try:
        yield
    finally:
        for layer, _ in changed:
            del layer.forward


def linears(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[Tensor, Tensor | None]]]:
    """Gives the layers that are one matrix product, with weight `[out, in]` and bias."""
    for layer in model.modules():
        if type(layer) is nn.Linear and can_lay_out(layer.weight):
            yield layer, (layer.weight, layer.bias)
        elif type(layer) is Conv1D and can_lay_out(layer.weight):
            yield layer, (layer.weight.T, layer.bias)


@cache
def faster_route() -> str:
    """Sets how full-precision products are made to what is faster here, and returns it.

    oneDNN is tried beside the default: it is taken where it is at least a tenth faster and no less
    exact. On a machine whose oneDNN rounds to bfloat16 first it is not.
    """
    backend: Any = torch.backends.mkldnn
    setting = backend.matmul
    before: str = setting.fp32_precision
    if not torch.backends.mkldnn.is_available():
        return before
    found: dict[str, tuple[float, float]] = {}
    for route in (before, "bf16"):
        setting.fp32_precision = route
        found[route] = timed_product()
    (old, error), (new, other) = found[before], found["bf16"]
    setting.fp32_precision = "bf16" if new < 0.9 * old and other <= 2 * error else before
    return str(setting.fp32_precision)


def timed_product(size: int = 1024, times: int = 5) -> tuple[float, float]:
    """Returns the median seconds of a float32 product, and its largest error."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    error = float((left @ right - (left.double() @ right.double())).abs().max())
    taken: list[float] = []
    for _ in range(times):
        before = perf_counter()
        torch.mm(left, right)
        taken.append(perf_counter() - before)
    return sorted(taken)[times // 2], error


def quicken(model: nn.Module) -> None:
    """Puts torch's own tanh-GELU where a model writes the same formula in eight operations."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, GELUTanh):
                setattr(module, name, nn.GELU(approximate="tanh"))
