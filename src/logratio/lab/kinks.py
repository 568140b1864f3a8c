"""Where a loss turns a corner: there a finite difference is no slope."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CHOICES = ("clamp", "clamp_min", "clamp_max", "minimum", "maximum", "relu", "abs")


class Decisions(TorchFunctionMode):
    """Keeps every decision of the code under it: each comparison, and each side that was chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and looks at what came out."""
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            if found.dtype == torch.bool:
                self.taken.append(found)
            elif getattr(func, "__name__", "") in CHOICES:
                self.taken.append(found == args[0])
        return found


def decisions(run: Callable[[], object]) -> list[Tensor]:
    """Returns the truth of every comparison, and for every clamp or minimum what passed through."""
    mode = Decisions()
    with torch.no_grad(), mode:
        run()
    return mode.taken


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Says whether two runs decided everything alike."""
    return len(first) == len(second) and all(map(torch.equal, first, second))
