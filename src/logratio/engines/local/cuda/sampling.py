"""A token of each row of logits in one pass over them (Triton), for a softmax that nothing cuts.

The first kernel reads each block of a row once and keeps three numbers of it: its largest logit,
the sum of exponentials and the sum of logits times them. The second finds in these the log-sum-exp,
the entropy and the block in which the running sum passes the row's uniform, and opens that one.
This is the rule of `logratio.sampler.draw`; only what lies on a boundary to rounding can differ.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from logratio.sampler import Drawn

BLOCK = 2048


@triton.jit
def one_block(logits, found, size, SHAPE: tl.constexpr):
    """Writes the three numbers of one block of one row."""
    SIZE: tl.constexpr = SHAPE[0]
    WIDE: tl.constexpr = SHAPE[1]
    HEAT: tl.constexpr = SHAPE[2]  # as a number of the launch it would be rounded to float32
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = number * SIZE + tl.arange(0, SIZE)
    logit = tl.load(logits + row * size + place, place < size, float("-inf")).to(WIDE) / HEAT
    top = tl.max(logit, 0)
    weight = tl.exp(logit - tl.where(top == float("-inf"), 0.0, top)).to(tl.float64)
    target = found + (row * tl.num_programs(1) + number) * 3
    tl.store(target, top.to(tl.float64))
    tl.store(target + 1, tl.sum(weight, 0))
    tl.store(target + 2, tl.sum(tl.where(weight > 0, logit, 0.0) * weight, 0))


@triton.jit
def one_token(tensors, numbers, SHAPE: tl.constexpr):  # noqa: PLR0915 - names its numbers
    """Writes the token of one row, its log-prob and the row's entropy."""
    logits, found, uniform, ids, old, entropy = tensors
    size, blocks = numbers
    SIZE: tl.constexpr = SHAPE[0]
    WIDE: tl.constexpr = SHAPE[1]
    HEAT: tl.constexpr = SHAPE[2]
    ALL: tl.constexpr = SHAPE[3]  # the power of two that holds `blocks`
    row = tl.program_id(0).to(tl.int64)
    number, start = tl.arange(0, ALL), found + row * blocks * 3
    here = number < blocks
    tops = tl.load(start + number * 3, here, float("-inf"))
    top = tl.max(tops, 0)
    scale = tl.exp(tops - top)
    mass = tl.load(start + number * 3 + 1, here, 0.0) * scale
    total = tl.sum(mass, 0)
    level = top + tl.log(total)
    mean = tl.sum(tl.load(start + number * 3 + 2, here, 0.0) * scale, 0) / total
    running = tl.cumsum(mass, 0)
    goal = tl.load(uniform + row) * total
    full = tl.max(tl.where(mass > 0, number, 0), 0)  # rounding must not leave the support
    block = tl.minimum(tl.sum((here & (running <= goal)).to(tl.int32), 0), full)
    before = tl.sum(tl.where(number == block - 1, running, 0.0), 0)
    peak = tl.sum(tl.where(number == block, tops, 0.0), 0)
    place = block * SIZE + tl.arange(0, SIZE)
    logit = tl.load(logits + row * size + place, place < size, float("-inf")).to(WIDE) / HEAT
    share = tl.exp(logit - peak.to(WIDE)).to(tl.float64) * tl.exp(peak - top)
    reached = before + tl.cumsum(share, 0) <= goal
    last = tl.max(tl.where(share > 0, place, 0), 0)
    token = tl.minimum(block * SIZE + tl.sum(reached.to(tl.int32), 0), last)
    taken = tl.sum(tl.where(place == token, logit, 0.0), 0)
    tl.store(ids + row, token.to(tl.int64))
    tl.store(old + row, taken - level.to(WIDE))
    tl.store(entropy + row, level - mean)


def draw(logits: Float[Tensor, "N V"], uniform: Float[Tensor, " N"], temperature: float) -> Drawn:
    """Returns a token of each row, drawn from the softmax at a temperature above 0."""
    logits = logits.contiguous()
    rows, size = logits.shape
    blocks = triton.cdiv(size, BLOCK)
    wide = torch.promote_types(logits.dtype, torch.float32)
    kind = tl.float64 if wide == torch.float64 else tl.float32
    found = logits.new_empty(rows, blocks, 3, dtype=torch.float64)
    ids = torch.empty(rows, dtype=torch.long, device=logits.device)
    old, entropy = (logits.new_empty(rows, dtype=wide) for _ in range(2))
    shape = (BLOCK, kind, temperature)
    one_block[(rows, blocks)](logits, found, size, shape)
    tensors = (logits, found, uniform, ids, old, entropy)
    one_token[(rows,)](tensors, (size, blocks), (*shape, triton.next_power_of_2(blocks)))
    return Drawn(ids=ids, old=old, behaviour=old, entropy=entropy)
