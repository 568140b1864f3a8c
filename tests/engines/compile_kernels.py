"""Compiles every kernel for a GPU of Hopper's kind, without one: a line for each.

Triton compiles for a target and only then looks for a device; here the launch is left out.
"""

# pyright: reportMissingImports=false
import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from logratio.engines.local.cuda import attention, sampling
from logratio.engines.local.cuda.stage import Held, Where
from logratio.model.attention import How

SHARED = 232_448  # bytes that a block of such a GPU has at most
DEVICE = {"max_shared_mem": SHARED, "max_num_regs": 65_536, "multiprocessor_count": 132,
          "warpSize": 32}  # fmt: skip
SHAPES = [(12, 2, 128, None), (4, 1, 256, 300)]  # query heads, key heads, width, window
KINDS = [torch.bfloat16, torch.float32]

launch = JITFunction.run


def compiled(self, *given, grid, warmup, **named):
    """Compiles what would be launched, and says what it takes."""
    del warmup
    kernel = launch(self, *given, grid=grid, warmup=True, **named)
    assert kernel.metadata.shared <= SHARED
    sys.stdout.write(
        f"{self.__name__} {grid} {kernel.metadata.shared} {len(kernel.asm['cubin'])}\n"
    )


def attend(heads, groups, width, window, dtype):
    """Compiles the attention of one shape."""
    rows, prompts = 8, 3
    states = [torch.zeros(rows, count, 1, width, dtype=dtype) for count in (heads, groups, groups)]
    sizes = [(rows, 256), (rows, 256), (prompts, 512), (prompts, 512)]
    held = [torch.zeros(count, groups, tokens, width, dtype=dtype) for count, tokens in sizes]
    where = Where(*(torch.zeros(count, dtype=torch.long) for count in (rows, prompts, rows)))
    how = How(layer=0, scale=width**-0.5, window=window)
    attention.attend((states[0], states[1], states[2]), Held(*held), where, how)


def main():
    """Compiles each kernel in each type."""
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda _: 0,
            utils=SimpleNamespace(
                get_device_properties=lambda _: DEVICE,
                load_binary=lambda *_: (0, 0, 0, 0, 1024),
            ),
            launcher_cls=None,
        )
    )
    JITFunction.run = compiled
    for dtype in KINDS:
        for shape in SHAPES:
            attend(*shape, dtype)
        sampling.draw(torch.zeros(4, 151_936, dtype=dtype), torch.zeros(4).double(), 0.7)


if __name__ == "__main__":
    main()
