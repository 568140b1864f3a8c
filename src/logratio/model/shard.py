"""A network in parts, one on each rank: FSDP2 gathers a layer's weights when its turn comes.

Parameters become DTensors, and so do their gradients: averages over the ranks. Inside the
network's forward every weight is a plain tensor, so only the network as a whole may be called.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from logratio.model.network import Network
from logratio.ranks import Ranks


def shard(network: Network, ranks: Ranks, *, dtype: torch.dtype | None = None) -> None:
    """Leaves each rank its part of every parameter; all ranks must have loaded the same ones.

    With a `dtype` the model computes in it, and what is not trained is kept in it; what is trained
    stays as it is, and its gradient is summed in float32. Heads and scalars compute as they are.
    """
    sums = tuple(float(weight.detach().sum(dtype=torch.float64)) for weight in network.parameters())
    ranks.check_same("model", sums)
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    narrow = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32)
    for weight in network.model.parameters():
        if dtype is not None and not weight.requires_grad:
            weight.data = weight.data.to(dtype)
    kinds = cast(Any, network.model)._no_split_modules or ()
    for layer in list(network.model.modules()):
        if type(layer).__name__ in kinds:
            fully_shard(layer, mesh=mesh, mp_policy=narrow)
    for added in (*network.heads.values(), network.scalars):
        if next(added.parameters(), None) is not None:
            fully_shard(added, mesh=mesh)
    fully_shard(network, mesh=mesh, mp_policy=narrow)
    if not any(weight.requires_grad for weight in network.parameters()):
        register_fsdp_forward_method(network, "hidden")  # a reference is read inside the policy


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Returns every weight in full, by name, on every rank: all ranks must ask at once.

    Tied weights are gathered once and stay one tensor.
    """
    made: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    for name, weight in module.state_dict(keep_vars=True).items():
        if id(weight) not in made:
            made[id(weight)] = full(weight.detach())
        found[name] = made[id(weight)]
    return found


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Writes full weights, which all ranks have, into a module; the names must be its own.

    `state_dict` drops what was gathered for a forward without a backward, which is now out of date.
    """
    for name, weight in module.state_dict().items():
        given = weights[name]
        if isinstance(weight, DTensor):
            mesh, places = weight.device_mesh, weight.placements
            given = distribute_tensor(given.to(weight.device), mesh, places, src_data_rank=None)
        weight.copy_(given)


def full(tensor: Tensor) -> Tensor:
    """Returns a tensor as every rank may hold it; the parts of a sharded one are gathered."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
