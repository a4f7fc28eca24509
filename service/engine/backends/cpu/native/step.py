# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""A whole forward pass as one task: threads are woken once; each operation of a layer is a phase.

The numba side of `forward.FusedForward`, in the order of `gpt2.GPT2.forward`. All addresses come in two
int64 records: `M_*` for the model and its buffers, and `B_*` for the batch.
"""

from __future__ import annotations

from service.engine.backends.cpu.native import rows
from service.engine.backends.cpu.native.attend import attend
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.linear_task import multiply, pack_rows, row_size
from service.engine.backends.cpu.native.scalars import load_float, load_long
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.native.write_kv import write_kv
from service.engine.backends.cpu.records import (
    B_IDS,
    B_LOGITS,
    B_NUM_ROWS,
    B_POSITIONS,
    B_ROWS,
    B_TOKENS,
    BFLOAT16,
    INT8,
    L_ATTENTION_OUT,
    L_BYTES,
    L_INNER_IN,
    L_INNER_OUT,
    L_NORM_1_BIAS,
    L_NORM_1_WEIGHT,
    L_NORM_2_BIAS,
    L_NORM_2_WEIGHT,
    L_QKV,
    L_SCALE,
    M_ATTENDED,
    M_ATTENDED_PACKED,
    M_CACHE,
    M_EPSILON,
    M_HEAD,
    M_INNER,
    M_INNER_PACKED,
    M_LAYER,
    M_LAYERS,
    M_NORM_BIAS,
    M_NORM_WEIGHT,
    M_NORMED,
    M_PACKED,
    M_POSITIONS,
    M_QKV,
    M_TOKENS,
    M_WIDTH,
    M_X,
    OUT_BFLOAT16,
    OUT_FLOAT32,
    W_K,
    W_N,
    W_ROW_KIND,
)


@native
def _embed(model, batch, pool, thread):
    """x = token embedding + position embedding."""
    width, tokens = load_long(model + M_WIDTH), load_long(batch + B_TOKENS)
    ids, positions = load_long(batch + B_IDS), load_long(batch + B_POSITIONS)
    token = claim(pool, thread, tokens)
    while token < tokens:
        a = load_long(model + M_TOKENS) + 4 * width * load_long(ids + 8 * token)
        b = load_long(model + M_POSITIONS) + 4 * width * load_long(positions + 8 * token)
        rows.sum_row(a, b, width, load_long(model + M_X) + 4 * width * token)
        token = claim(pool, thread, tokens)
    meet(pool, thread)


@native
def _normalise(model, weight, bias, record, indices, count, pool, thread):
    """LayerNorm of x's rows (all, or those listed at `indices`), packed for the layer at `record`."""
    width, packed, row_bytes = (
        load_long(model + M_WIDTH),
        load_long(model + M_PACKED),
        row_size(record),
    )
    kind, epsilon = load_long(record + W_ROW_KIND), load_float(model + M_EPSILON)
    normed = load_long(model + M_NORMED) + thread * (4 * width + 128)
    row = claim(pool, thread, count)
    while row < count:
        source = row if indices == 0 else load_long(indices + 8 * row)
        rows.norm_row(load_long(model + M_X) + 4 * width * source, weight, bias, epsilon, width, normed)
        rows.pack_row(kind, normed, width, packed + row * row_bytes, row_bytes)
        row = claim(pool, thread, count)
    meet(pool, thread)


@native
def _stage(record, plain, packed):
    """Where an operation leaves its rows for the layer at `record`: (address, bytes per row, kind of output).

    Float kinds are written packed at once; int8 rows must be whole before their scale is known.
    """
    kind = load_long(record + W_ROW_KIND)
    if kind == INT8:
        return plain, 4 * load_long(record + W_K), OUT_FLOAT32
    return packed, row_size(record), OUT_BFLOAT16 if kind == BFLOAT16 else OUT_FLOAT32


@native
def _pack_if_needed(record, plain, packed, tokens, pool, thread):
    if load_long(record + W_ROW_KIND) == INT8:
        pack_rows(record, plain, 4 * load_long(record + W_K), tokens, packed, pool, thread)


@native
def _attention_half(model, batch, layer, index, pool, thread):
    """x += attention(norm(x))."""
    tokens, width, x = (
        load_long(batch + B_TOKENS),
        load_long(model + M_WIDTH),
        load_long(model + M_X),
    )
    qkv, project = load_long(layer + L_QKV), load_long(layer + L_ATTENTION_OUT)
    cache, buffer = load_long(model + M_CACHE), load_long(model + M_QKV)
    weight, bias = load_long(layer + L_NORM_1_WEIGHT), load_long(layer + L_NORM_1_BIAS)
    _normalise(model, weight, bias, qkv, 0, tokens, pool, thread)
    packed = load_long(model + M_PACKED)
    multiply(qkv, packed, tokens, buffer, 12 * width, 0, OUT_FLOAT32, project, pool, thread)
    write_kv(cache, batch, buffer, index, pool, thread)
    plain, attended = load_long(model + M_ATTENDED), load_long(model + M_ATTENDED_PACKED)
    target, row_bytes, kind = _stage(project, plain, attended)
    attend(cache, batch, buffer, index, layer + L_SCALE, target, row_bytes, kind, pool, thread)
    _pack_if_needed(project, plain, attended, tokens, pool, thread)
    following = load_long(layer + L_INNER_IN)
    multiply(project, attended, tokens, x, 4 * width, x, OUT_FLOAT32, following, pool, thread)


@native
def _inner_half(model, batch, layer, following, pool, thread):
    """x += inner_out(activation(inner_in(norm(x))))."""
    tokens, width, x = (
        load_long(batch + B_TOKENS),
        load_long(model + M_WIDTH),
        load_long(model + M_X),
    )
    enter, leave = load_long(layer + L_INNER_IN), load_long(layer + L_INNER_OUT)
    weight, bias = load_long(layer + L_NORM_2_WEIGHT), load_long(layer + L_NORM_2_BIAS)
    _normalise(model, weight, bias, enter, 0, tokens, pool, thread)
    plain, inner = load_long(model + M_INNER), load_long(model + M_INNER_PACKED)
    target, row_bytes, kind = _stage(leave, plain, inner)
    packed = load_long(model + M_PACKED)
    multiply(enter, packed, tokens, target, row_bytes, 0, kind, leave, pool, thread)
    _pack_if_needed(leave, plain, inner, tokens, pool, thread)
    multiply(leave, inner, tokens, x, 4 * width, x, OUT_FLOAT32, following, pool, thread)


@kernel
def forward_task(args, pool, thread):
    """`FusedForward.__call__`. Args: the model's record, the batch's record."""
    model, batch = load_long(args), load_long(args + 8)
    layers, head = load_long(model + M_LAYERS), load_long(model + M_HEAD)
    _embed(model, batch, pool, thread)
    for index in range(layers):
        layer = load_long(model + M_LAYER) + index * L_BYTES
        _attention_half(model, batch, layer, index, pool, thread)
        following = head if index + 1 == layers else load_long(layer + L_BYTES + L_QKV)
        _inner_half(model, batch, layer, following, pool, thread)
    count = load_long(batch + B_NUM_ROWS)
    weight, bias = load_long(model + M_NORM_WEIGHT), load_long(model + M_NORM_BIAS)
    _normalise(model, weight, bias, head, load_long(batch + B_ROWS), count, pool, thread)
    logits, packed = load_long(batch + B_LOGITS), load_long(model + M_PACKED)
    multiply(head, packed, count, logits, 4 * load_long(head + W_N), 0, OUT_FLOAT32, 0, pool, thread)
