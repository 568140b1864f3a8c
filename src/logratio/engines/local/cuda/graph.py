"""Captured steps: the launches of one step, recorded once and replayed by one call."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from logratio.model.attention import How, planned
from logratio.model.backbone import backbone_of
from logratio.model.twin import twin

Step = Callable[[], None]
Key = tuple[Hashable, ...]  # the number of rows, and whatever else a step is made for
SIZES = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96)  # rows of a captured step; then every 32


def size_of(rows: int) -> int:
    """Returns the least number of rows, of those that are captured, that holds so many.

    >>> [size_of(rows) for rows in (0, 1, 3, 25, 97, 512, 513)]
    [0, 1, 4, 32, 128, 512, 544]
    """
    return next((size for size in SIZES if size >= rows), -(-rows // 32) * 32)


class Eager:
    """Steps that are launched one by one."""

    def run(self, step: Step, steps: int, key: Key) -> None:
        """Takes so many steps."""
        del key
        for _ in range(steps):
            step()


class Graphs:
    """Steps that are captured the first time that their key is met, in one pool of memory."""

    def __init__(self) -> None:
        """Holds none yet."""
        self.held: dict[Key, torch.cuda.CUDAGraph] = {}
        self.pool: Any = None

    def run(self, step: Step, steps: int, key: Key) -> None:
        """Takes so many steps; the first one of a key as it is, which warms its kernels up."""
        if key not in self.held:
            self.capture(step, key)
            steps -= 1
        for _ in range(steps):
            self.held[key].replay()

    def capture(self, step: Step, key: Key) -> None:
        """Takes one step, then captures it."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step()
        self.held[key], self.pool = graph, graph.pool()


@dataclass
class Blind:
    """A plan that attends to nothing."""

    calls: int = 0

    def attend(self, states: tuple[Tensor, Tensor, Tensor], how: How) -> Tensor:
        """Returns something of the right shape."""
        del how
        return torch.empty_like(states[0])


def hindrance(model: PreTrainedModel) -> str | None:
    """Returns why a step of a model can not be captured; None where nothing is found.

    Its small twin runs on tensors without numbers, which refuse to be looked at by the host: rotary
    tables that grow with the longest position do that, and experts that are called one by one.
    """
    if any(type(part) is not nn.Parameter for part in model.parameters()):
        return "its weights are sharded, and gathered anew for every step"
    small = cast(Any, twin(model)).to(model.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True), planned(small, Blind()):
        ids = torch.zeros(2, 1, dtype=torch.long, device=model.device)
        try:
            backbone_of(small)(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False)
        except RuntimeError as error:
            return f"its forward does not run without numbers: {str(error).splitlines()[0]}"
    return None
