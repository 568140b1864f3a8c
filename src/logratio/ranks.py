"""What a group of ranks is: processes that run the same program on the same batch.

One rank needs no process group: it has every turn, and its sums are the numbers themselves.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from logratio.settings import Refused

Item = TypeVar("Item")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is, and where its tensors live."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def turns(self, items: Sequence[Item]) -> list[tuple[Item, bool]]:
        """Returns this rank's items and whether each counts: as many turns on every rank.

        Neighbours are worked on at the same time. A rank without an item for the last turn repeats
        the last item, for its part in the sums that all ranks make, and it must not count.

        >>> [Ranks(rank=rank, size=2).turns("abc") for rank in range(2)]
        [[('a', True), ('c', True)], [('b', True), ('c', False)]]
        """
        last = len(items) - 1
        places = [turn + self.rank for turn in range(0, len(items), self.size)]
        return [(items[min(place, last)], place <= last) for place in places]

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over the ranks."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def added(self, numbers: Sequence[float]) -> list[float]:
        """Returns the sum of each number over the ranks."""
        return cast(list[float], self.total(torch.tensor(numbers, dtype=torch.float64)).tolist())

    def check_same(self, name: str, value: object) -> None:
        """Refuses what differs between the ranks; numbers and tuples of them hash alike on all."""
        if self.size == 1:
            return
        key = hash(value) >> 1  # so that its negative is an int64 as well
        ends = torch.tensor([key, -key])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise Refused(f"`{name}` differs between the ranks, but all {self.size} must have the "
                          "same")  # fmt: skip


ALONE = Ranks()


@contextmanager
def joined(*, cuda: bool | None = None, timeout: float = 600.0) -> Generator[Ranks]:
    """Gives the group that torchrun's environment names, for as long as the context lasts.

    Without that environment it is one rank. `cuda` is None for wherever a GPU is; a rank that
    waits longer than `timeout` seconds for the others fails.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = device_of(torch.cuda.is_available() if cuda is None else cuda)
    if size == 1:
        yield Ranks(device=device)
        return
    kinds = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(kinds, timeout=timedelta(seconds=timeout))
    yield Ranks(rank=rank, size=size, device=device)
    dist.destroy_process_group()  # after an error it could wait for ranks that wait for this one


def device_of(cuda: bool) -> torch.device:
    """Returns the CPU, or this rank's own GPU as the current one."""
    if not cuda:
        return CPU
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise Refused(f"`--nproc-per-node` is more than {place}, but this machine has {count} "
                      "GPUs, and each rank needs its own")  # fmt: skip
    device = torch.device("cuda", place)
    torch.cuda.set_device(device)
    return device
