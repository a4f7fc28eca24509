# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"
"""Attention through the paged cache in Triton: write keys and values, attend, combine.

A decode row is split over its context in stretches of `SPLIT` positions that start at multiples of it, and
the parts are combined in one fixed order. A prefill row walks its context in tiles that do, too. Neither
depends on the batch or on chunk borders, so a row's bits do not either; a row computed as a decode may differ
from the same row in a prefill in the last bit, since the sums are grouped otherwise.
`backends.torch.attention` says in torch what these compute, `attention` launches them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPLIT = 128  # context positions of one program of a decode row
QUERY_TILE = 16  # query rows of one program of a prefill
KEY_TILE = 64  # context positions it reads at a time


def operands(dtype: torch.dtype) -> tl.dtype:
    """What a tile's products multiply in: as the cache, but float32 under the interpreter, whose `dot` reads
    bfloat16 as integers."""
    if dtype == torch.bfloat16 and not triton.knobs.runtime.interpret:
        return tl.bfloat16
    return tl.float32


@triton.jit
def write_kv(
    qkv,
    keys,
    values,
    slots,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Copy one token's key and value to its slot. Grid (T,); WIDE is a power of 2 of at least n_embd."""
    token = tl.program_id(0).to(tl.int64)
    width = HEADS * HEAD_DIM
    column = tl.arange(0, WIDE)
    slot = tl.load(slots + token).to(tl.int64)
    head_at = (slot // BLOCK) * width * BLOCK + (column // HEAD_DIM) * BLOCK * HEAD_DIM
    target = head_at + (slot % BLOCK) * HEAD_DIM + column % HEAD_DIM
    source = qkv + token * 3 * width + width + column
    known = column < width
    tl.store(keys + target, tl.load(source, mask=known).to(keys.dtype.element_ty), mask=known)
    tl.store(values + target, tl.load(source + width, mask=known).to(values.dtype.element_ty), mask=known)


@triton.jit
def _offsets(tables, sequence, num_blocks, position, known, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """Where the keys of these positions start in one layer's cache."""
    block = tl.load(tables + sequence * num_blocks + position // BLOCK, mask=known, other=0).to(tl.int64)
    return ((block * HEADS + head) * BLOCK + position % BLOCK) * HEAD_DIM


@triton.jit(do_not_specialize=["num_blocks"])
def attend_split(
    qkv, keys, values, tables, context_lens, parts, peaks, sums, scale, num_blocks,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One stretch of one decode row's context: weighted values, largest score, sum of weights.

    Grid (SPLITS, heads, S), row s of qkv belonging to sequence s. Stretches past the context leave at once.
    """
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(context_lens + sequence)
    first = split * SPLIT
    if first < length:
        column, position = tl.arange(0, WIDE), first + tl.arange(0, SPLIT)
        inside, known = column < HEAD_DIM, position < length
        both = known[:, None] & inside[None, :]
        at = _offsets(tables, sequence, num_blocks, position, known, head, HEADS, HEAD_DIM, BLOCK)
        at = at[:, None] + column[None, :]  # (SPLIT, WIDE)
        query = qkv + sequence * 3 * HEADS * HEAD_DIM + head * HEAD_DIM + column
        q = tl.load(query, mask=inside, other=0.0).to(tl.float32)
        k = tl.load(keys + at, mask=both, other=0.0).to(tl.float32)
        scores = tl.where(known, tl.sum(k * q[None, :], 1) * scale, float("-inf"))
        peak = tl.max(scores, 0)
        weights = tl.exp(scores - peak)
        v = tl.load(values + at, mask=both, other=0.0).to(tl.float32)
        part = (sequence * HEADS + head) * SPLITS + split
        tl.store(parts + part * HEAD_DIM + column, tl.sum(v * weights[:, None], 0), mask=inside)
        tl.store(peaks + part, peak)
        tl.store(sums + part, tl.sum(weights, 0))


@triton.jit
def combine(
    parts, peaks, sums, context_lens, out,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr,
    SPLIT: tl.constexpr, SPLITS: tl.constexpr, SPLITS_WIDE: tl.constexpr,
):  # fmt: skip
    """Put a decode row's stretches together. Grid (heads, S)."""
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column, split = tl.arange(0, WIDE), tl.arange(0, SPLITS_WIDE)
    known, inside = split * SPLIT < tl.load(context_lens + sequence), column < HEAD_DIM
    part = (sequence * HEADS + head) * SPLITS + split
    peak = tl.load(peaks + part, mask=known, other=float("-inf"))
    shares = tl.exp(peak - tl.max(peak, 0))  # 0 where unknown
    total = tl.sum(tl.load(sums + part, mask=known, other=0.0) * shares, 0)
    at = part[:, None] * HEAD_DIM + column[None, :]
    values = tl.load(parts + at, mask=known[:, None] & inside[None, :], other=0.0)  # (SPLITS_WIDE, WIDE)
    result = tl.sum(values * shares[:, None], 0) / total
    target = out + (sequence * HEADS + head) * HEAD_DIM + column
    tl.store(target, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_blocks"])
def attend_ragged(
    qkv, keys, values, tables, query_starts, context_lens, out, scale, num_blocks,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, OPERANDS: tl.constexpr,
):  # fmt: skip
    """A tile of one sequence's query rows over their context. Grid (tiles, heads, S).

    OPERANDS is the type that is multiplied; sums are float32.
    """
    tile, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    start = tl.load(query_starts + sequence).to(tl.int64)
    rows = (tl.load(query_starts + sequence + 1) - start).to(tl.int32)
    if tile * QUERY_TILE < rows:
        length = tl.load(context_lens + sequence).to(tl.int32)
        row = tile * QUERY_TILE + tl.arange(0, QUERY_TILE)
        query_position = length - rows + row
        column = tl.arange(0, WIDE)
        inside = column < HEAD_DIM
        width = HEADS * HEAD_DIM
        mine = (row < rows)[:, None] & inside[None, :]
        query = qkv + (start + row)[:, None] * 3 * width + head * HEAD_DIM + column[None, :]
        q = tl.load(query, mask=mine, other=0.0).to(OPERANDS)  # (QUERY_TILE, WIDE)
        peak = tl.full([QUERY_TILE], float("-inf"), tl.float32)
        total = tl.zeros([QUERY_TILE], tl.float32)
        mixed = tl.zeros([QUERY_TILE, WIDE], tl.float32)
        end = tl.minimum(length, length - rows + (tile + 1) * QUERY_TILE)
        for first in range(0, end, KEY_TILE):
            position = first + tl.arange(0, KEY_TILE)
            known = position < length
            at = _offsets(tables, sequence, num_blocks, position, known, head, HEADS, HEAD_DIM, BLOCK)
            at = at[:, None] + column[None, :]  # (KEY_TILE, WIDE)
            both = known[:, None] & inside[None, :]
            k = tl.load(keys + at, mask=both, other=0.0).to(OPERANDS)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (QUERY_TILE, KEY_TILE)
            scores = tl.where(position[None, :] <= query_position[:, None], scores, float("-inf"))
            highest = tl.maximum(peak, tl.max(scores, 1))
            weights, fade = tl.exp(scores - highest[:, None]), tl.exp(peak - highest)
            v = tl.load(values + at, mask=both, other=0.0).to(OPERANDS)
            mixed = mixed * fade[:, None] + tl.dot(weights.to(OPERANDS), v, input_precision="ieee")
            total = total * fade + tl.sum(weights, 1)
            peak = highest
        target = out + (start + row)[:, None] * width + head * HEAD_DIM + column[None, :]
        tl.store(target, (mixed / total[:, None]).to(out.dtype.element_ty), mask=mine)
