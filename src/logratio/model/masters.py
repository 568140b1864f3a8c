"""Precision: a model that computes in bfloat16, and the float32 weights that are trained."""

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]


class Masters:
    """What the optimiser steps on: the weights themselves, or float32 copies that they follow.

    Under bf16 the model's weights become bfloat16 where they are, so whoever shares the model
    computes with them too; their gradients are kept in float32.
    """

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        """Makes a copy of each weight that is trained, before it is narrowed."""
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        for weight in model.parameters():
            master = weight
            if precision == "bf16" and weight.requires_grad:
                master = nn.Parameter(weight.detach().to(torch.float32, copy=True))
            if weight.requires_grad:
                self.pairs.append((weight, master))
        if precision == "bf16":
            narrow(model)

    def weights(self) -> list[nn.Parameter]:
        """Returns what the optimiser steps on."""
        return [master for _, master in self.pairs]

    def gather(self) -> None:
        """Hands the gradients of the model's weights over to what is stepped on."""
        for weight, master in self.pairs:
            if master is not weight:
                master.grad, weight.grad = weight.grad, None

    @torch.no_grad()
    def refresh(self) -> None:
        """Brings the model's weights up to date after a step."""
        apart = [pair for pair in self.pairs if pair[0] is not pair[1]]
        if apart:
            weights, masters = (list[Tensor](some) for some in zip(*apart, strict=True))
            torch._foreach_copy_(weights, masters)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


def narrow(model: nn.Module) -> None:
    """Turns a model's weights into bfloat16 where they are, with gradients in float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
        if weight.requires_grad:
            weight.grad_dtype = torch.float32
