"""The block of attention on a GPU: which kernel serves it, and what that kernel is given."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from logratio.model import segment

SCALE = 0.3
FLASH = "_scaled_dot_product_flash_attention"


def parts(queries=5, keys=7, heads=4, groups=2, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, queries, width), *[(2, groups, keys, width)] * 2]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.fixture
def flash():
    """Lets the CPU's kernels stand in for a GPU's flash kernels, with the arguments of those."""
    aten, library = torch.ops.aten, torch.library.Library("aten", "IMPL")

    def forward(query, key, value, dropout=0.0, causal=False, debug=False, *, scale=None):
        assert (dropout, debug) == (0.0, False)
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
        return *found, None, None, query.shape[2], key.shape[2], *[query.new_empty(0)] * 3

    def backward(down, query, key, value, out, lse, *rest, scale=None):
        *lengths, most, other, dropout, causal, _, _ = rest
        assert (lengths, most, other) == ([None, None], query.shape[2], key.shape[2])
        assert dropout == 0.0
        assert lse.is_contiguous()
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            down, query, key, value, out, lse, 0.0, causal, scale=scale
        )

    library.impl(FLASH, forward, "CPU")
    library.impl(FLASH + "_backward", backward, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("causal", [True, False])
def test_the_flash_kernels_are_given_what_they_ask_for(causal):
    query, key, value = parts(keys=5 if causal else 7)
    how = {"causal": causal, "scale": SCALE}
    ours = segment.flash_forward(query, key, value, **how)
    theirs = segment.plain_forward(query, key, value, mask=None, **how)
    assert_close(ours, theirs)
    down = torch.randn(query.shape, generator=torch.Generator().manual_seed(1))
    apart = (theirs[1] + 0.3).repeat_interleave(2, 2)[:, :, ::2]  # a cut of something larger
    merged = theirs[0] * 0.5, apart
    assert_close(
        segment.flash_backward(down, (query, key, value), merged, **how),
        segment.plain_backward(down, (query, key, value), merged, mask=None, **how),
    )


def test_the_shapes_are_those_of_the_flash_kernels():
    """By torch's own account of them, without numbers: groups of heads, queries unlike keys."""
    query, key, value = (part.to("meta", torch.bfloat16) for part in parts())
    out, lse = segment.flash_forward(query, key, value, causal=False, scale=SCALE)
    assert (out.shape, lse.shape, lse.dtype) == (query.shape, query.shape[:3], torch.float32)
    found = segment.flash_backward(out, (query, key, value), (out, lse), causal=False, scale=SCALE)
    assert [part.shape for part in found] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(
    ("dtype", "width", "masked", "capability", "kernel"),
    [
        (torch.bfloat16, 128, False, (9, 0), "flash"),
        (torch.float16, 256, False, (8, 0), "flash"),
        (torch.bfloat16, 128, True, (9, 0), "plain"),
        (torch.float32, 128, False, (9, 0), "plain"),
        (torch.float64, 128, False, (9, 0), "plain"),
        (torch.bfloat16, 100, False, (9, 0), "plain"),
        (torch.bfloat16, 264, False, (9, 0), "plain"),
        (torch.float16, 64, False, (7, 5), "plain"),
    ],
)
def test_which_kernel_serves_a_block_on_a_gpu(
    dtype, width, masked, capability, kernel, monkeypatch
):
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode():
        query = torch.empty(1, 4, 3, width, dtype=dtype, device="cuda")
        level = torch.empty(1, 4, 3, device="cuda")
        mask = torch.empty(3, 3, device="cuda") if masked else None
    for way, found in (("forward", (query, level)), ("backward", (query, query, query))):
        for name in ("flash", "plain"):
            told = f"{name} {way}"
            monkeypatch.setattr(
                segment, f"{name}_{way}", lambda *_, t=told, f=found, **__: asked.append(t) or f
            )
    how = {"causal": False, "mask": mask, "scale": SCALE}
    segment.forward(query, query, query, **how)
    segment.backward(query, (query, query, query), (query, level), **how)
    assert asked == [f"{kernel} forward", f"{kernel} backward"]
