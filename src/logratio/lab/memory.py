"""How much memory this process holds, and the most that it ever held, in bytes."""

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def held() -> int:
    """Returns what the process holds now, or the most it held where the system does not say."""
    return kernel("VmRSS") or most()


def most() -> int:
    """Returns the most that the process held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return kernel("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def kernel(name: str) -> int:
    """Returns a field of the kernel's own account of the process; 0 where there is none."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else 0


def most_on(device: torch.device) -> int:
    """Returns the most that a device held for us: on CPU that is the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return most()
