"""One new token of every row against its prompt and its own suffix, in pieces of keys (Triton).

The first kernel stores the new token's key and value. The second takes one key head of one row and
one piece of its keys. The third merges the pieces by log-sum-exp. Where a row stands is read on the
device, so all of it can be captured.
"""
# pyright: basic, reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from logratio.engines.local.cuda.stage import Held, Where
from logratio.model.attention import How

BYTES = 2**14  # of the keys of a piece: the same for every row, so that none depends on its company
MERGED = 16  # pieces that are added at a time


@triton.jit
def stored(tensors, strides, room, SHAPE: tl.constexpr):
    """Writes the key and value of one head of one row's new token behind those that it has."""
    key, value, keys, values, length = tensors
    HEADS: tl.constexpr = SHAPE[0]
    WIDTH: tl.constexpr = SHAPE[1]
    COLUMNS: tl.constexpr = SHAPE[2]  # the power of two that holds WIDTH
    row, head, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, COLUMNS)
    inside = column < WIDTH
    cell = ((row * HEADS + head) * room + tl.load(length + row)) * WIDTH + column
    found = tl.load(key + row * strides[0] + head * strides[1] + column, inside)
    weighed = tl.load(value + row * strides[2] + head * strides[3] + column, inside)
    tl.store(keys + cell, found, inside)
    tl.store(values + cell, weighed, inside)


@triton.jit
def one_piece(tensors, strides, rooms, SHAPE: tl.constexpr):  # noqa: PLR0915 - names its numbers
    """Writes the output and log-sum-exp of the query heads of a key head over one piece."""
    query, keys, values, first, other, owner, before, length, out, levels = tensors
    HEADS: tl.constexpr = SHAPE[0]
    WIDTH: tl.constexpr = SHAPE[1]
    COLUMNS: tl.constexpr = SHAPE[2]
    GROUP: tl.constexpr = SHAPE[3]  # query heads of a key head
    ROWS: tl.constexpr = SHAPE[4]  # the power of two that holds them
    WINDOW: tl.constexpr = SHAPE[5]  # 0 for none
    SIZE: tl.constexpr = SHAPE[6]
    WIDE: tl.constexpr = SHAPE[7]
    SCALE: tl.constexpr = SHAPE[8]  # as a number of the launch it would be rounded to float32
    row, head, number = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    prompt = tl.load(owner + row)
    told = tl.load(before + prompt).to(tl.int32)
    newest = tl.load(length + row).to(tl.int32)
    prefixed = tl.cdiv(rooms[0], SIZE)  # how many pieces a prefix has
    if number < prefixed:
        place = number * SIZE + tl.arange(0, SIZE)
        position, here = place, place < told
        start = (prompt * HEADS + head) * rooms[0] * WIDTH
        held, carried = first + start, other + start
    else:
        place = (number - prefixed) * SIZE + tl.arange(0, SIZE)
        position, here = told + place, place <= newest
        start = (row * HEADS + head) * rooms[1] * WIDTH
        held, carried = keys + start, values + start
    if WINDOW > 0:
        here = here & (told + newest - position < WINDOW)
    group, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    target = (row * HEADS * GROUP + head * GROUP + group) * tl.num_programs(2) + number
    level = tl.full([ROWS], float("-inf"), WIDE)
    if tl.max(here.to(tl.int32), 0) > 0:
        asking = (group < GROUP)[:, None] & (column < WIDTH)[None, :]
        whole = here[:, None] & (column < WIDTH)[None, :]
        cell = place[:, None] * WIDTH + column[None, :]
        at = row * strides[0] + (head * GROUP + group)[:, None] * strides[1] + column[None, :]
        asked, found = tl.load(query + at, asking, 0.0), tl.load(held + cell, whole, 0.0)
        scores = tl.dot(asked, tl.trans(found), input_precision="ieee").to(WIDE) * SCALE
        scores = tl.where(here[None, :], scores, float("-inf"))
        top = tl.max(scores, 1)
        share = tl.exp(scores - top[:, None])
        total = tl.sum(share, 1)
        weighed = tl.load(carried + cell, whole, 0.0)
        summed = tl.dot(share.to(weighed.dtype), weighed, input_precision="ieee").to(WIDE)
        level = top + tl.log(total)
        tl.store(out + target[:, None] * WIDTH + column[None, :], summed / total[:, None], asking)
    tl.store(levels + target, level, group < GROUP)


@triton.jit
def merged(out, levels, result, SHAPE: tl.constexpr):
    """Writes the output of one query head of one row over all its pieces."""
    PIECES: tl.constexpr = SHAPE[0]
    ALL: tl.constexpr = SHAPE[1]  # the power of two that holds PIECES
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
    (rows, heads, _, width), groups = query.shape, key.shape[1]
    columns = max(16, triton.next_power_of_2(width))  # a product of matrices has 16 of each at
    fold = max(16, triton.next_power_of_2(heads // groups))  # ... least
    rooms = held.first.shape[2], held.keys.shape[2]
    size = max(16, BYTES // (columns * query.element_size()))
    pieces = sum(triton.cdiv(room, size) for room in rooms)
    wide = torch.promote_types(query.dtype, torch.float32)
    kind = tl.float64 if wide == torch.float64 else tl.float32
    out = query.new_empty(rows, heads, pieces, width, dtype=wide)
    levels = query.new_empty(rows, heads, pieces, dtype=wide)
    result = query.new_empty(rows, heads, 1, width)
    strides = *key.stride()[:2], *value.stride()[:2]
    own = held.keys, held.values
    stored[(rows, groups)](
        (key, value, *own, where.length), strides, rooms[1], (groups, width, columns)
    )
    shape = (groups, width, columns, heads // groups, fold, how.window or 0, size, kind, how.scale)
    one_piece[(rows, groups, pieces)](
        (query, *held, *where, out, levels), query.stride()[:2], rooms, shape
    )
    shape = (pieces, triton.next_power_of_2(pieces), width, columns, MERGED, kind)
    merged[(rows * heads,)](out, levels, result, shape)
    return result
