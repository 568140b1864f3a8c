"""One new token of every row against its prompt and its own suffix, in pieces of keys (Triton).

The first kernel takes one key head of one row and one piece of its keys; of the suffix's pieces,
the one where the new token stands stores it. The second merges the pieces by log-sum-exp. Where a
row stands is read on the device, so both can be captured.
"""
# pyright: basic, reportMissingImports=false, reportPossiblyUnboundVariable=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from logratio.engines.local.cuda.stage import Held, Where
from logratio.model.attention import How

PIECE = 128  # keys of a piece: fixed, so that a row's result does not depend on its company
MERGED = 16  # pieces that are added at a time


@triton.jit
def one_piece(tensors, strides, numbers, SHAPE: tl.constexpr):
    """Writes the output and log-sum-exp of the query heads of a key head over one piece."""
    query, key, value, keys, values, first, other, owner, before, length, out, levels = tensors
    prefix_room, suffix_room = numbers
    HEADS: tl.constexpr = SHAPE[0]
    GROUP: tl.constexpr = SHAPE[1]  # query heads of a key head
    WIDTH: tl.constexpr = SHAPE[2]
    ROWS: tl.constexpr = SHAPE[3]  # the powers of two that hold GROUP and WIDTH
    COLUMNS: tl.constexpr = SHAPE[4]
    WINDOW: tl.constexpr = SHAPE[5]  # 0 for none
    SIZE: tl.constexpr = SHAPE[6]
    WIDE: tl.constexpr = SHAPE[7]
    SCALE: tl.constexpr = SHAPE[8]  # not among the numbers, which would be rounded to float32
    row, head, number = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    prompt = tl.load(owner + row)
    told, newest = tl.load(before + prompt), tl.load(length + row)
    prefixed = tl.cdiv(prefix_room, SIZE)  # how many pieces the prefix has
    if number < prefixed:
        place = number * SIZE + tl.arange(0, SIZE)
        position, here = place, place < told
        stored = (prompt * HEADS + head) * prefix_room * WIDTH
        held, carried = first + stored, other + stored
    else:
        place = (number - prefixed) * SIZE + tl.arange(0, SIZE)
        position, here = told + place, place <= newest
        stored = (row * HEADS + head) * suffix_room * WIDTH
        held, carried = keys + stored, values + stored
    if WINDOW > 0:
        here = here & (told + newest - position < WINDOW)
    group, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    asking, inside = group < GROUP, column < WIDTH
    target = (row * HEADS * GROUP + head * GROUP + group) * tl.num_programs(2) + number
    level = tl.full([ROWS], float("-inf"), WIDE)
    if tl.max(here.to(tl.int32), 0) > 0:
        cell = place[:, None] * WIDTH + column[None, :]
        whole = here[:, None] & inside[None, :]
        found, weighed = tl.load(held + cell, whole, 0.0), tl.load(carried + cell, whole, 0.0)
        if number >= prefixed:
            mine = (place == newest)[:, None] & inside[None, :]
            at = row * strides[2] + head * strides[3] + column
            found = tl.where(mine, tl.load(key + at, inside, 0.0)[None, :], found)
            at = row * strides[4] + head * strides[5] + column
            weighed = tl.where(mine, tl.load(value + at, inside, 0.0)[None, :], weighed)
            tl.store(held + cell, found, mine)
            tl.store(carried + cell, weighed, mine)
        at = row * strides[0] + (head * GROUP + group)[:, None] * strides[1] + column[None, :]
        asked = tl.load(query + at, asking[:, None] & inside[None, :], 0.0)
        scores = tl.dot(asked, tl.trans(found), input_precision="ieee").to(WIDE) * SCALE
        scores = tl.where(here[None, :], scores, float("-inf"))
        top = tl.max(scores, 1)
        share = tl.exp(scores - top[:, None])
        total = tl.sum(share, 1)
        summed = tl.dot(share.to(weighed.dtype), weighed, input_precision="ieee").to(WIDE)
        level = top + tl.log(total)
        cell = target[:, None] * WIDTH + column[None, :]
        tl.store(out + cell, summed / total[:, None], asking[:, None] & inside[None, :])
    tl.store(levels + target, level, asking)


@triton.jit
def merged(out, levels, result, SHAPE: tl.constexpr):
    """Writes the output of one query head of one row over all its pieces."""
    PIECES: tl.constexpr = SHAPE[0]
    ALL: tl.constexpr = SHAPE[1]  # the powers of two that hold PIECES and WIDTH
    WIDTH: tl.constexpr = SHAPE[2]
    COLUMNS: tl.constexpr = SHAPE[3]
    SOME: tl.constexpr = SHAPE[4]
    WIDE: tl.constexpr = SHAPE[5]
    place = tl.program_id(0).to(tl.int64)
    start, number = place * PIECES, tl.arange(0, ALL)
    level = tl.load(levels + start + number, number < PIECES, float("-inf"))
    top = tl.max(level, 0)
    total = tl.sum(tl.exp(level - top), 0)
    column = tl.arange(0, COLUMNS)
    summed = tl.zeros([COLUMNS], WIDE)
    for some in range(0, PIECES, SOME):
        here = some + tl.arange(0, SOME)
        share = tl.load(levels + start + here, here < PIECES, float("-inf"))
        share = tl.exp(share - top) / total
        whole = (share > 0)[:, None] & (column < WIDTH)[None, :]  # the others were not written
        part = tl.load(out + (start + here)[:, None] * WIDTH + column[None, :], whole, 0.0)
        summed += tl.sum(part * share[:, None], 0)
    tl.store(result + place * WIDTH + column, summed, column < WIDTH)


def attend(states: tuple[Tensor, Tensor, Tensor], held: Held, where: Where, how: How) -> Tensor:
    """Returns the attention `[R, H, 1, D]` of one new token of each row, whose keys it stores."""
    query, key, value = states
    rows, heads, _, width = query.shape
    room, own = held.first.shape[2], held.keys.shape[2]
    pieces = triton.cdiv(room, PIECE) + triton.cdiv(own, PIECE)
    wide = torch.promote_types(query.dtype, torch.float32)
    out = query.new_empty(rows, heads, pieces, width, dtype=wide)
    levels = query.new_empty(rows, heads, pieces, dtype=wide)
    result = query.new_empty(rows, heads, 1, width)
    group, kind = heads // key.shape[1], tl.float64 if wide == torch.float64 else tl.float32
    columns = max(16, triton.next_power_of_2(width))
    fold = max(16, triton.next_power_of_2(group))  # a product of matrices has 16 rows at least
    shape = (key.shape[1], group, width, fold, columns, how.window or 0, PIECE, kind, how.scale)
    strides = tuple(side for state in states for side in state.stride()[:2])
    tensors = (*states, held.keys, held.values, held.first, held.other, *where, out, levels)
    one_piece[(rows, key.shape[1], pieces)](tensors, strides, (room, own), shape)
    shape = (pieces, triton.next_power_of_2(pieces), width, columns, MERGED, kind)
    merged[(rows * heads,)](out, levels, result, shape)
    return result
