# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""One linear layer on all threads: packed rows times packed tiles, scale, bias, activation, residual.

The numba side of `linear.CpuLinear`, and the matrix products of `step`. A layer is described by an
int64 record whose fields are the `W_*` constants; `gemm` does the arithmetic of one tile.
"""

from __future__ import annotations

from service.engine.backends.cpu.native import gemm, matrix_tiles, rows
from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.scalars import invoker, load_float, load_int, load_long, stack_bytes
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.processor import (
    HAS_TILES,
    MATRIX_ROWS,
    MAX_PASS_ROWS,
    ROWS,
    STEP_BYTES,
    TILE,
    VECTORS,
)
from service.engine.backends.cpu.records import (
    BFLOAT16,
    FLOAT32,
    INT8,
    META,
    OUT_BFLOAT16,
    OUT_FLOAT32,
    W_ACTIVATION,
    W_BIAS,
    W_COLUMN_SUM,
    W_FUNCTION,
    W_K,
    W_KIND,
    W_N,
    W_ROW_BYTES,
    W_ROW_KIND,
    W_SCALE,
    W_STEPS,
    W_TILE_ADDRESS,
    W_TILES,
)

_ARGS = 9
_multiply_one = invoker(_ARGS)

# of packed rows, a part of a second-level cache: all columns pass them, then the next
_GROUP_BYTES = 768 << 10
_SCRATCH = STEP_BYTES * MAX_PASS_ROWS + 256  # bytes of sums on a thread


@native
def pack_rows(record, source, source_bytes, count, packed, pool, thread):
    """Pack float32 rows for this layer; all threads together, one phase."""
    kind, length, row_bytes = (
        load_long(record + W_ROW_KIND),
        load_long(record + W_K),
        row_size(record),
    )
    row = claim(pool, thread, count)
    while row < count:
        rows.pack_row(kind, source + row * source_bytes, length, packed + row * row_bytes, row_bytes)
        row = claim(pool, thread, count)
    meet(pool, thread)


@native
def row_size(record):
    """Bytes from one packed row of this layer to the next."""
    return load_long(record + W_ROW_BYTES)


@native
def multiply(record, packed, count, out, out_bytes, residual, out_kind, following, pool, thread):
    """All columns of `count` packed rows; threads take groups of rows times tiles in turn, one phase.

    Args:
        record: address of the layer's record.
        packed: address of the packed rows.
        out, out_bytes: first output row and the distance to the next.
        residual: float32 rows to add, laid out as `out`, or 0; may be `out` itself.
        out_kind: OUT_FLOAT32 or OUT_BFLOAT16.
        following: record of the layer whose weights are needed next, or 0: its first tiles are prefetched.
    """
    tiles, tile_address = load_long(record + W_TILES), load_long(record + W_TILE_ADDRESS)
    tile_bytes, row_bytes = load_long(record + W_STEPS) * STEP_BYTES, row_size(record)
    function = load_long(record + W_FUNCTION)
    groups = 1 + count * row_bytes // _GROUP_BYTES
    together = (count + groups * MAX_PASS_ROWS - 1) // (groups * MAX_PASS_ROWS) * MAX_PASS_ROWS
    pieces = (count + together - 1) // together * tiles
    piece = claim(pool, thread, pieces)
    while piece < pieces:
        later = claim(pool, thread, pieces)  # taken early, to be fetched while this one is multiplied
        ahead = tile_address + later % tiles * tile_bytes
        if later >= pieces:
            ahead = _first_tile(following, thread)
        first = piece // tiles * together
        source, target, added = packed + first * row_bytes, out + first * out_bytes, residual
        if residual != 0:
            added += first * out_bytes
        num = min(together, count - first)
        _multiply_one(function, record, piece % tiles, source, num, target, out_bytes, added, out_kind, ahead)
        piece = later
    meet(pool, thread)


@native
def _first_tile(record, thread):
    """Where the tile is that this thread will claim first, if it comes first on its side."""
    if record == 0:
        return 0
    tile_bytes = load_long(record + W_STEPS) * STEP_BYTES
    tile = (load_long(record + W_TILES) - 1) if thread & 1 else 0
    return load_long(record + W_TILE_ADDRESS) + tile * tile_bytes


@native
def _finish(record, tile, sums, source, num, out, out_bytes, residual, out_kind):
    """Scale, bias, activation and residual for `num` rows of one tile."""
    kind, activation, row_bytes = (
        load_long(record + W_KIND),
        load_long(record + W_ACTIVATION),
        row_size(record),
    )
    bias, scale, column_sum = (
        load_long(record + W_BIAS),
        load_long(record + W_SCALE),
        load_long(record + W_COLUMN_SUM),
    )
    for j in range(VECTORS):
        column = tile * TILE + 16 * j
        mask = vec.first_lanes(load_long(record + W_N) - column)
        addend, factor = vec.load_floats(bias + 4 * column), vec.load_floats(scale + 4 * column)
        offsets = vec.load_ints(column_sum + 4 * column)
        for row in range(num):
            address, shift = sums + 64 * (row * VECTORS + j), row * out_bytes + 4 * column
            if kind == INT8:
                meta = source + (row + 1) * row_bytes - META
                exact = vec.load_ints(address) - offsets * vec.ints(load_int(meta + 4))
                x = vec.to_floats(exact) * (vec.floats(load_float(meta)) * factor)
            else:
                x = vec.load_floats(address)
            x = rows.activate(x + addend, activation)
            if residual != 0:
                x = x + vec.load_floats_where(residual + shift, mask)
            if out_kind == OUT_BFLOAT16:
                vec.store_bf16_where(out + row * out_bytes + 2 * column, x, mask)
            else:
                vec.store_floats_where(out + shift, x, mask)


@native
def _is_tiled(kind, steps):
    """Whether a layer is multiplied by the matrix registers: the same for all its rows, however many."""
    return HAS_TILES and kind != FLOAT32 and steps % matrix_tiles.STEPS == 0


@native
def _multiply_rows(kind, is_tiled, source, row_bytes, weights, steps, count, sums, ahead, lines):
    """Up to `MATRIX_ROWS` or `ROWS[kind]` rows of activations times one tile of weights."""
    if HAS_TILES and is_tiled:
        if kind == INT8:
            matrix_tiles.multiply_int8(source, row_bytes, weights, steps, sums, ahead, lines)
        else:
            matrix_tiles.multiply_bfloat16(source, row_bytes, weights, steps, sums, ahead, lines)
    elif kind == INT8:
        gemm.multiply_int8(source, row_bytes, weights, steps, sums, ahead, count, lines)
    elif kind == BFLOAT16:
        gemm.multiply_bfloat16(source, row_bytes, weights, steps, sums, ahead, count, lines)
    else:
        gemm.multiply_float32(source, row_bytes, weights, steps, sums, ahead, count, lines)


@kernel
def multiply_one(record, tile, packed, count, out, out_bytes, residual, out_kind, ahead):
    """One tile of columns for all rows: the weights stay in the second-level cache."""
    kind, steps, row_bytes = (
        load_long(record + W_KIND),
        load_long(record + W_STEPS),
        row_size(record),
    )
    weights = load_long(record + W_TILE_ADDRESS) + tile * steps * STEP_BYTES
    sums = stack_bytes(_SCRATCH)
    is_tiled = _is_tiled(kind, steps)
    max_rows = MATRIX_ROWS if is_tiled else ROWS[kind]
    passes = (count + max_rows - 1) // max_rows
    whole, lines = 4, 4 if passes == 1 else 2 if passes < 4 else 1
    if HAS_TILES and is_tiled:
        matrix_tiles.configure((count + passes - 1) // passes)  # rows behind the last may be multiplied, too
        # the next tile is fetched in all passes: fetched at once, it would hold up this one's loads
        whole, lines = 16, (16 + passes - 1) // passes
    part_bytes = steps * STEP_BYTES // whole * lines
    first = 0
    for done in range(passes):
        num = (count - first + passes - done - 1) // (passes - done)  # even shares of the rows left
        source, shift = packed + first * row_bytes, first * out_bytes
        prefetched = ahead + done * part_bytes if done * lines < whole and ahead != 0 else weights
        _multiply_rows(kind, is_tiled, source, row_bytes, weights, steps, num, sums, prefetched, lines)
        added = residual + shift if residual != 0 else 0
        _finish(record, tile, sums, source, num, out + shift, out_bytes, added, out_kind)
        first += num
    if HAS_TILES and is_tiled:
        matrix_tiles.release()


@kernel
def linear_task(args, pool, thread):
    """`CpuLinear.__call__`. Args: record, x, x row bytes, rows, packed, out, out row bytes, residual or 0."""
    record, packed, count = (
        load_long(args),
        load_long(args + 32),
        load_long(args + 24),
    )
    pack_rows(record, load_long(args + 8), load_long(args + 16), count, packed, pool, thread)
    out, out_bytes, residual = (
        load_long(args + 40),
        load_long(args + 48),
        load_long(args + 56),
    )
    multiply(record, packed, count, out, out_bytes, residual, OUT_FLOAT32, 0, pool, thread)
