"""What decoding will hold, worked out before anything is made, against what is free."""

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logratio.engines.local.cache import STEP
from logratio.settings import Refused

LIVE = 4  # tensors as large as the logits that drawing from them holds at a time
MEMINFO = Path("/proc/meminfo")
GROUPS = [  # of processes, whose limit and use a container may set: version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a call of the engine asks for, at its fullest."""

    rows: int  # that decode at a time
    prompts: int  # distinct ones among them
    prompt_tokens: int  # of the longest
    max_tokens: int

    def bytes(self, *, token: int, words: int) -> int:
        """Returns the memory of keys, values and logits; a token's keys and values take `token`.

        >>> Demand(rows=4, prompts=1, prompt_tokens=32, max_tokens=64).bytes(token=100, words=0)
        28800
        """
        kept = self.prompts * grown(self.prompt_tokens) + self.rows * grown(self.max_tokens)
        return kept * token + LIVE * 4 * words * self.rows


def room(demand: Demand, *, token: int, words: int, beside: int, free: int) -> None:
    """Refuses more rows than the free memory holds, `beside` what else the call will make."""
    needed = beside + demand.bytes(token=token, words=words)
    if needed <= free:
        return
    row = demand.bytes(token=token, words=words) / demand.rows
    most = max(0, int((free - beside) / row))
    raise Refused(f"`slots` is {demand.rows}, but {demand.rows} rows of {demand.prompt_tokens} + "
                  f"{demand.max_tokens} tokens need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB "
                  f"are free: about {most} fit, or give fewer `max_tokens`")  # fmt: skip


def token_bytes(config: Any, width: int) -> int:
    """Returns what one token's keys and values take in all layers, at `width` bytes a number."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    return 2 * width * size * shared * int(text.num_hidden_layers)


def grown(tokens: int) -> int:
    """Returns how many tokens a buffer for so many has: buffers grow in steps."""
    return -(-tokens // STEP) * STEP


def free_bytes(device: torch.device) -> int:
    """Returns how much memory can still be taken: the device's, or this machine's.

    What the process was given before and has freed counts, for it is taken first.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return free_here() + kept_here()


def free_here() -> int:
    """Returns what the machine, or the container around this process, can still give."""
    free: list[int] = []
    if MEMINFO.exists():
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for limit, use in GROUPS:
        if Path(limit).exists() and (most := Path(limit).read_text().strip()).isdigit():
            free.append(int(most) - int(Path(use).read_text()))
    return min(free, default=2**63)  # a system that does not say refuses nothing


class Kept(ctypes.Structure):
    """What glibc says of its memory; the ninth number is what was freed and kept."""

    _fields_ = [(f"number_{place}", ctypes.c_size_t) for place in range(10)]


def kept_here() -> int:
    """Returns how much freed memory glibc keeps for this process; 0 where another library runs."""
    library: Any = ctypes.CDLL(None)
    if platform.libc_ver()[0] != "glibc" or not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = Kept
    return int(library.mallinfo2().number_8)
