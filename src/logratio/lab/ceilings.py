"""What this machine can do, measured in the process that asks: multiplications and bytes a second.

Matrix products are measured square and at a model's own sizes, by every route there is; memory is
measured by a copy, by a sum, and by a product with one row, which reads a matrix larger than any
cache. The ceiling is the best of what was seen.
"""

import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from logratio.lab.floor import Peak, Precision
from logratio.model.matmul import linear_of

SQUARE = 2048
ROWS = (8, 32, 128, 512, 2048)
REPEATS = 5
LUMP = 3e7  # floating point operations that are timed together: a small product is too quick
MOST_FLOPS = 5e9  # a larger product is left out: it adds seconds and no higher number
COPY_BYTES = 2**29  # far above any last-level cache
ACCURATE = 2.0  # how much larger than the default route's a route's error may be

Sizes = tuple[int, int, int]  # rows, inner, columns


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to a matrix product: its type, oneDNN's setting, and whether W is laid out for it."""

    dtype: torch.dtype
    setting: str | None = None
    laid_out: bool = False


ROUTES: Mapping[str, Route] = {
    "fp32": Route(dtype=torch.float32, setting="ieee"),
    "fp32 by oneDNN": Route(dtype=torch.float32, setting="bf16"),
    "fp32 laid out": Route(dtype=torch.float32, setting="ieee", laid_out=True),
    "bf16": Route(dtype=torch.bfloat16),
    "bf16 laid out": Route(dtype=torch.bfloat16, laid_out=True),
}


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Measured rates: FLOP/s by route and sizes, bytes/s by way of reading."""

    device: str
    threads: int
    matmul: Mapping[str, Mapping[Sizes, float]]
    errors: Mapping[str, float]  # of each fp32 route, against float64
    bandwidth: Mapping[str, float]

    def exact(self) -> list[str]:
        """Returns the routes whose products are as good as those of the default one."""
        limit = ACCURATE * self.errors["fp32"]
        return [route for route, error in self.errors.items() if error <= limit]

    def peak(self, precision: Precision) -> Peak:
        """Returns the best rates that count for a precision."""
        routes = self.exact() if precision == "fp32" else [n for n in self.matmul if "bf16" in n]
        best = max(rate for route in routes for rate in self.matmul[route].values())
        return Peak(flops=best, bandwidth=max(self.bandwidth.values()))

    def record(self) -> dict[str, Any]:
        """Returns what was measured, for JSON: rates in 10^9 a second."""
        return {
            "device": self.device,
            "threads": self.threads,
            "matmul_gflops": {
                route: {"x".join(map(str, sizes)): round(rate / 1e9, 1) for sizes, rate in of}
                for route, of in ((name, rates.items()) for name, rates in self.matmul.items())
            },
            "error_against_float64": dict(self.errors),
            "bandwidth_gb": {name: round(rate / 1e9, 2) for name, rate in self.bandwidth.items()},
        }


def measured(
    model: PreTrainedModel | None = None,
    *,
    device: torch.device | None = None,
    square: int = SQUARE,
    copy_bytes: int = COPY_BYTES,
) -> Ceilings:
    """Returns the ceilings of a device, at a model's own sizes too where one is given."""
    device = device or (torch.device("cpu") if model is None else model.device)
    sizes: list[Sizes] = [(square, square, square), *(sizes_of(model) if model else ())]
    routes = [name for name in ROUTES if device.type == "cpu" or name in ("fp32", "bf16")]
    return Ceilings(
        device=str(device),
        threads=torch.get_num_threads(),
        matmul={name: {one: flops(name, one, device) for one in sizes} for name in routes},
        errors={name: error(name, device) for name in routes if "fp32" in name},
        bandwidth=bandwidths(device, copy_bytes),
    )


def sizes_of(model: PreTrainedModel) -> list[Sizes]:
    """Returns the distinct products of a model at several numbers of rows, none of them huge."""
    pairs: dict[tuple[int, int], None] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            pairs[module.in_features, module.out_features] = None
        elif isinstance(module, Conv1D):
            pairs[module.nx, module.nf] = None
    every = [(rows, inner, columns) for inner, columns in pairs for rows in ROWS]
    return [sizes for sizes in every if operations(sizes) <= MOST_FLOPS]


def operations(sizes: Sizes) -> float:
    """Returns the floating point operations of a product.

    >>> operations((2, 3, 4))
    48.0
    """
    return 2.0 * sizes[0] * sizes[1] * sizes[2]


@contextmanager
def routed(route: Route) -> Generator[None]:
    """Makes fp32 products go a route's way inside."""
    matmul: Any = cast(Any, torch.backends.mkldnn).matmul
    before: str = matmul.fp32_precision
    if route.setting is not None:
        matmul.fp32_precision = route.setting
    try:
        yield
    finally:
        matmul.fp32_precision = before


def flops(route: str, sizes: Sizes, device: torch.device) -> float:
    """Returns the rate of one product, of random numbers: zeros are quicker on some devices."""
    rows, inner, columns = sizes
    with routed(ROUTES[route]):
        left = torch.randn(rows, inner, device=device).to(ROUTES[route].dtype)
        product = product_of(torch.randn(columns, inner, device=device), ROUTES[route])
        times = max(1, int(LUMP / operations(sizes)))

        def work() -> None:
            for _ in range(times):
                product(left)

        return times * operations(sizes) / seconds(work, device)


def product_of(weight: Tensor, route: Route) -> Callable[[Tensor], Tensor]:
    """Returns x -> x W^T by a route."""
    weight = weight.to(route.dtype)
    if route.laid_out:
        return linear_of(weight, None)
    return lambda rows: nn.functional.linear(rows, weight)


def error(route: str, device: torch.device) -> float:
    """Returns the largest error of a product by this route, over its largest entry."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 512, generator=generator).to(device) for _ in range(2))
    exact = left.double() @ right.double().T
    with routed(ROUTES[route]):
        found = product_of(right, ROUTES[route])(left)
    return float((found - exact).abs().max() / exact.abs().max())


def bandwidths(device: torch.device, size: int) -> dict[str, float]:
    """Returns bytes a second of a copy (read and written), a sum, and a product with one row."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    matrix, row = source.view(-1, 2048), torch.ones(1, 2048, device=device)
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (2 * size, lambda: target.copy_(source)),
        "sum": (size, source.sum),
        "one row": (size, lambda: nn.functional.linear(row, matrix)),
    }
    return {name: moved / seconds(work, device) for name, (moved, work) in ways.items()}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the median seconds of some work, the first time left out."""
    work()
    taken: list[float] = []
    for _ in range(REPEATS):
        settled(device)
        start = time.perf_counter()
        work()
        settled(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def settled(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
