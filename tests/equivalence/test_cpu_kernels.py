"""The compiled kernels against torch, and each row against itself in other company, bit for bit."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite.binding import FeatureMap, get_host_cpu_features, get_host_cpu_name

from model_store.architecture import Architecture
from service.engine.backends.cpu import processor, self_check
from service.engine.backends.cpu.attention import CpuAttention, arranged
from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.cpu.draw import CpuSampler
from service.engine.backends.cpu.forward import FusedForward, can_fuse
from service.engine.backends.cpu.linear import CpuLinear
from service.engine.backends.cpu.pool import set_threads
from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.backends.torch.backend import TorchBackend
from service.engine.backends.torch.linear import pack_linear
from service.engine.config import Precision
from service.engine.devices import DEVICES
from service.engine.draw_memo import DrawMemo
from service.engine.model.attention import ForwardBatch, KVCache, cache_dtype
from service.engine.model.gpt2 import GPT2
from service.engine.model.linear import Packer, UnsupportedLinear
from service.engine.model.logits_processors import SampleRow
from service.engine.model.sampler import TorchSampler, draw_rows
from service.engine.sequence import SamplingParams, TokenMask

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 1e-5}
CPU = DEVICES["cpu"]


def randoms(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


# ---- drawing ----


def draw_natively(
    logits: torch.Tensor, places: Sequence[int], params: Sequence[SamplingParams], draws: np.ndarray
) -> list[int]:
    """`sampler.draw_rows` by the kernels."""
    rows, units = [SampleRow(row, [0], []) for row in params], [int(number * 2.0**53) for number in draws]
    return [row.token_id for row in CpuSampler().draw(logits, places, rows, [0], units)]


@pytest.mark.parametrize("vocabulary", [1, 15, 64, 65, 700, 50257])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_draws_are_those_of_the_running_sum(vocabulary: int, floor: float) -> None:
    rows = 24
    logits = 4 * randoms((rows + 3, vocabulary), seed=vocabulary)[0]
    logits[:, 1::7] = -torch.inf
    places = [i for i in range(rows + 3) if i not in (0, 5, 9)]
    temperatures = [0.3 + i / 10 for i in range(rows)]
    draws = torch.rand(rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    params = [SamplingParams(temperature=temperature, min_p=floor) for temperature in temperatures]
    found = draw_natively(logits, places, params, draws)
    for token_id, place, temperature, number in zip(found, places, temperatures, draws, strict=True):
        weights = (logits[place].double() / temperature).softmax(-1)
        weights[weights < floor * weights.max() * (1 - 1e-4)] = 0
        sums = weights.cumsum(-1) / weights.sum()
        before = float(sums[token_id - 1]) if token_id else 0.0
        assert weights[token_id] > 0
        assert before - 1e-5 <= number <= float(sums[token_id]) + 1e-5


def test_a_draw_is_the_same_alone_and_among_others() -> None:
    logits = randoms((40, 3000))[0]
    draws = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64).numpy()
    params = [SamplingParams(temperature=0.9, top_p=(1.0, 0.9)[i % 2]) for i in range(40)]
    together = draw_natively(logits, range(40), params, draws)
    alone = [draw_natively(logits, [i], params[i : i + 1], draws[i : i + 1])[0] for i in range(40)]
    assert together == alone == draw_rows(logits, range(40), params, draws)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("vocabulary", [4, 20, 700, 1500, 50257])
def test_top_k_top_p_and_min_p_draw_what_the_reference_draws(vocabulary: int, scale: float) -> None:
    """Flat and peaked rows, equal logits, banned ones, cuts of one token and of all but one."""
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature in (0.01, 0.7, 1.5)
        for top_k in (0, 1, 5, 50, 2000, vocabulary - 1)
        for top_p in (0.1, 0.5, 0.9, 0.9999, 1.0)
        for min_p in (0.0, 0.05)
    ][:: 1 if vocabulary < 2000 else 7]
    logits = scale * randoms((len(params), vocabulary), seed=vocabulary)[0]
    logits[:, : vocabulary // 10] = -torch.inf
    draws = torch.rand(len(params), generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    asked = (logits, range(len(params)), params, draws)
    assert draw_natively(*asked) == draw_rows(*asked)


@pytest.mark.parametrize(
    "shaped",
    [
        lambda x: (4 * x).round() / 4,  # thousands of equals
        lambda x: x - 1000.0,
        lambda x: torch.cat([x[:, :40] + 30.0, x[:, 40:]], 1),  # little mass but for a few
        lambda x: 0.1 * x,
    ],
    ids=["equals", "far from zero", "peaked", "flat"],
)
def test_cuts_of_a_real_vocabulary_are_those_of_the_reference(shaped: Any) -> None:
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        for temperature in (0.1, 1.0)
        for top_k in (0, 2, 50, 5000)
        for top_p in (0.01, 0.5, 0.95, 0.999)
    ]
    logits = shaped(randoms((len(params), 50257), seed=7)[0])
    draws = torch.rand(len(params), generator=torch.Generator().manual_seed(4), dtype=torch.float64).numpy()
    asked = (logits, range(len(params)), params, draws)
    assert draw_natively(*asked) == draw_rows(*asked)


def test_what_is_as_strong_as_the_last_token_kept_is_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    draws = np.linspace(0, 1, 200, endpoint=False)
    params = [SamplingParams(temperature=1.0, top_k=3)] * len(draws)
    assert set(draw_natively(logits.expand(200, -1), range(200), params, draws)) == {1, 2, 3, 4}


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_range_draw_tokens_that_are_possible(number: float) -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [70, 130]] = 0.0
    found = draw_natively(logits, [0], [SamplingParams(temperature=1.0)], np.array([number]))
    assert found == [70 if number == 0 else 130]


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 20}], ids=str)
def test_a_row_of_nan_draws_an_id_and_leaves_the_others_alone(cut: dict[str, Any]) -> None:
    params = [SamplingParams(temperature=1.0, **cut)] * 2
    logits = randoms((2, 300))[0]
    logits[0] = torch.nan
    (spoilt, found) = draw_natively(logits, [0, 1], params, np.array([0.5, 0.5]))
    assert 0 <= spoilt < 300
    assert [found] == draw_natively(logits, [1], params[:1], np.array([0.5]))


LEGAL: dict[str, Any] = {
    "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.7]),
    "top_k": st.sampled_from([0, 0, 1, 50]),
    "top_p": st.sampled_from([1.0, 0.95, 0.3]),
    "min_p": st.sampled_from([0.0, 0.05]),
    "repetition_penalty": st.sampled_from([1.0, 1.2, 0.5, 1e-300, 1e6]),
    "frequency_penalty": st.sampled_from([0.0, 0.3, -2.0]),
    "presence_penalty": st.sampled_from([0.0, 0.7, -1.1]),
    "no_repeat_ngram_size": st.sampled_from([0, 0, 1, 2, 3, 30]),
    "min_new_tokens": st.sampled_from([0, 3, 100]),
    "stop_token_ids": st.sampled_from([(), (3, 7)]),
    "logit_bias": st.sampled_from([(), ((2, 3.5), (11, -100.0)), ((0, 100.0),)]),
    "logprobs": st.sampled_from([None, 0, 1, 10]),
    "seed": st.integers(0, 2**63 - 1),
}


def constraint(kind: str, vocabulary: int) -> Any:
    """What a row may go on with: anything, some ids, or the same as bits; the bits may end early."""
    ids = list(range(1, vocabulary, 3))
    if kind == "ids":
        return lambda output_ids: ids
    flags = np.zeros(vocabulary, np.bool_)
    flags[ids] = True
    bits = np.packbits(flags, bitorder="little")[: 2 if kind == "few bits" else None]
    return None if kind == "none" else lambda output_ids: TokenMask(bits)


@settings(deadline=None, derandomize=True, max_examples=120)
@given(
    scale=st.sampled_from([0.0, 0.3, 3.0, 20.0]),
    vocabulary=st.sampled_from([13, 64, 300, 4000]),
    texts=st.lists(
        st.tuples(
            st.lists(st.integers(0, 12), min_size=1, max_size=30),
            st.lists(st.integers(0, 12), max_size=40),
            st.integers(0, 5),
            st.sampled_from(["none", "none", "ids", "bits", "few bits"]),
            st.fixed_dictionaries(LEGAL),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_any_mixture_of_fields_gives_the_ids_and_log_probabilities_of_the_reference(
    scale: float, vocabulary: int, texts: list[Any]
) -> None:
    count = len(texts)
    logits = scale * randoms((count + 1, vocabulary), seed=count)[0]
    rows = []
    for prompt, output, ordinal, kind, params in texts:
        asked = SamplingParams(**params, allowed_next=constraint(kind, vocabulary))
        rows.append(SampleRow(asked, prompt, output, ordinal))
    before = logits.clone()
    ours = CpuSampler().draw(logits, range(1, count + 1), rows, [0])
    assert torch.equal(logits, before)
    for row, found, expected in zip(
        rows, ours, TorchSampler().draw(logits, range(1, count + 1), rows, [0]), strict=True
    ):
        assert found.token_id == expected.token_id, row
        assert (found.logprob is None) == (expected.logprob is None)
        if found.logprob is not None and expected.logprob is not None:
            assert found.logprob.logprob == pytest.approx(expected.logprob.logprob, abs=1e-5)
            ours_of_top, theirs = (
                [value for _, value in one.top] for one in (found.logprob, expected.logprob)
            )
            assert ours_of_top == pytest.approx(theirs, abs=1e-5)


def test_a_text_is_read_on_from_where_it_was_drafts_or_not() -> None:
    """One memo for all steps, as a sequence has it: what grows, and guesses that turn out wrong."""
    logits, sampler, memo = randoms((3, 40))[0], CpuSampler(), DrawMemo()
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.5, no_repeat_ngram_size=2
    )
    output: list[int] = []
    for step in range(150):
        drafts = [step % 7, 5][: step % 3]
        texts = [[*output, *drafts[:count]] for count in range(len(drafts) + 1)]
        rows = [SampleRow(params, [4, 2], text, 0, count, memo) for count, text in enumerate(texts)]
        alone = [SampleRow(params, [4, 2], text) for text in texts]
        places = range(len(rows))
        found = [row.token_id for row in sampler.draw(logits, places, rows, [0])]
        assert found == [row.token_id for row in TorchSampler().draw(logits, places, alone, [0])]
        output.append(found[0])


def test_an_id_that_is_none_of_the_vocabulary_is_refused() -> None:
    params = SamplingParams(logit_bias=((40, 1.0),))
    with pytest.raises(IndexError, match="40 of the vocabulary"):
        CpuSampler().draw(torch.zeros(1, 40), [0], [SampleRow(params, [0], [])], [0])


def test_scores_of_given_ids_are_those_of_the_reference() -> None:
    logits = randoms((6, 1000))[0]
    asked = (logits, [1, 4, 5], [7, 999, 0], 6)
    for found, expected in zip(CpuSampler().score(*asked), TorchSampler().score(*asked), strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert [token_id for token_id, _ in found.top] == [token_id for token_id, _ in expected.top]


# ---- linear ----


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("width", "columns", "rows"), [(1, 1, 1), (3, 65, 2), (77, 130, 13), (768, 200, 50), (64, 65, 17)]
)
def test_linear_agrees_with_torch(precision: Precision, width: int, columns: int, rows: int) -> None:
    weight, bias, x, residual = randoms((width, columns), (columns,), (rows, width), (rows, columns))
    fast = CpuLinear(weight, bias, precision=precision, activation="gelu_new")
    slow = pack_linear(weight, bias, precision=precision, activation="gelu_new")
    expected = slow(x, residual)
    assert (fast(x, residual) - expected).abs().max() <= TOLERANCE[precision] * expected.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [768, 640, 160, 128, 51])
def test_a_row_has_the_same_bits_in_every_batch(precision: Precision, width: int) -> None:
    weight, bias, x = randoms((width, 320), (320,), (100, width))
    layer = CpuLinear(weight, bias, precision=precision, activation="gelu_new")
    alone = torch.cat([layer(x[i : i + 1]) for i in range(100)])
    for count in (*range(2, 34), 100):
        start = (7 * count) % (101 - count)
        assert torch.equal(layer(x[start : start + count]), alone[start : start + count]), count


@pytest.mark.parametrize(
    "activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "gelu", "silu", "tanh", None]
)
def test_every_activation_agrees_with_torch(activation: str | None) -> None:
    weight, bias, x, residual = randoms((32, 48), (48,), (5, 32), (5, 48))
    fast = CpuLinear(weight, bias, precision="float32", activation=activation)
    slow = pack_linear(weight, bias, precision="float32", activation=activation)
    torch.testing.assert_close(fast(x, residual), slow(x, residual), rtol=1e-5, atol=1e-5)


def test_gelu_keeps_its_limits() -> None:
    x = torch.tensor([[-1e30, -100.0, -0.0, 100.0, 1e30]])
    layer = CpuLinear(torch.eye(5), None, precision="float32", activation="gelu_new")
    assert layer(x).tolist() == [[0.0, 0.0, 0.0, 100.0, x[0, 4].item()]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_with_nan_spoils_no_other(precision: Precision) -> None:
    weight, x = randoms((64, 64), (9, 64))
    layer = CpuLinear(weight, None, precision=precision)
    clean = layer(x)
    x[4, 10] = float("nan")
    spoiled = layer(x)
    assert (
        spoiled[4].isnan().all()
        and torch.equal(spoiled[:4], clean[:4])
        and torch.equal(spoiled[5:], clean[5:])
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_an_earlier_call_spoil_none(precision: Precision) -> None:
    weight, x = randoms((64, 64), (40, 64))
    layer = CpuLinear(weight, None, precision=precision)
    clean = layer(x[:33])
    layer(torch.full((40, 64), torch.nan))
    assert torch.equal(layer(x[:33]), clean)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tiny_values_do_not_become_nan(precision: Precision) -> None:
    weight, x = randoms((64, 64), (3, 64))
    assert CpuLinear(weight, None, precision=precision)(x * 1e-38).isfinite().all()


def test_no_rows_give_no_rows() -> None:
    assert CpuLinear(torch.ones(4, 6), None, precision="float32")(torch.empty(0, 4)).shape == (0, 6)


def test_a_precision_without_kernel_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLinear, match="int3"):
        CpuLinear(torch.ones(2, 2), None, precision="int3")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit(precision: Precision) -> None:
    weight, x = randoms((96, 640), (17, 96))
    layer = CpuLinear(weight, None, precision=precision)
    usual = layer(x)
    try:
        for threads in (1, 3):
            set_threads(threads)
            assert torch.equal(layer(x), usual)
    finally:
        set_threads()


# ---- attention ----

MIXED = [(0, 1), (5, 1), (0, 37), (100, 1), (17, 9), (300, 4), (15, 1), (16, 2), (31, 3)]


def caches(head_dim: int, heads: int, block: int, blocks: int, dtype: torch.dtype) -> tuple[KVCache, KVCache]:
    """Equal content, as the kernels and as torch lay it out."""
    fast, slow = (KVCache.allocate(2, blocks, heads, block, head_dim, dtype, CPU) for _ in range(2))
    for index, cached in enumerate((slow.k, slow.v)):
        cached.copy_(randoms((2, blocks, heads, block, head_dim), seed=index)[0])
    for cached, content in zip((fast.k, fast.v), arranged(slow.k, slow.v), strict=True):
        cached.copy_(content)
    return fast, slow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("head_dim", "heads", "block"),
    [(64, 12, 16), (32, 8, 16), (16, 3, 16), (48, 2, 16), (128, 2, 16), (64, 2, 8), (20, 3, 16), (8, 2, 4)],
)
def test_attention_agrees_with_torch(head_dim: int, heads: int, block: int, dtype: torch.dtype) -> None:
    batch = self_check.ragged_batch(MIXED, block)
    fast, slow = caches(head_dim, heads, block, 200, dtype)
    qkv = randoms((batch.slots.shape[0], 3 * heads * head_dim))[0]
    expected = ReferenceAttention(slow, [0.1, 0.2], is_exact=False)(qkv, 1, batch)
    torch.testing.assert_close(CpuAttention(fast, [0.1, 0.2])(qkv, 1, batch), expected, rtol=1e-4, atol=1e-5)
    assert all(map(torch.equal, (fast.k, fast.v), arranged(slow.k, slow.v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 32, 20])
def test_chunk_borders_and_company_change_no_bit_of_attention(head_dim: int, dtype: torch.dtype) -> None:
    length, width = 53, 3 * head_dim
    qkv = randoms((length, 3 * width))[0]
    cache, _ = caches(head_dim, 3, 16, 64, dtype)
    attention = CpuAttention(cache, [0.125, 0.125])
    whole = attention(qkv, 0, self_check.ragged_batch([(0, length)], 16))
    for chunk in (1, 3, 4, 7, 16, 50):
        parts = []
        for start in range(0, length, chunk):
            piece = qkv[start : start + chunk]
            batch = self_check.ragged_batch(
                [(start, len(piece)), (70, 1)], 16
            )  # a decoding neighbour comes along
            blocks = torch.arange(batch.block_tables.shape[1], dtype=torch.int32).repeat(2, 1) + 10
            blocks[1] += 20
            batch = relocated(batch, blocks)
            parts.append(attention(torch.cat([piece, qkv[:1]]), 0, batch)[: len(piece)])
        assert torch.equal(torch.cat(parts), whole), chunk


def relocated(batch: ForwardBatch, tables: torch.Tensor) -> ForwardBatch:
    """The same batch in other blocks."""
    owners = torch.repeat_interleave(torch.arange(len(tables)), batch.query_starts.diff())
    slots = tables[owners, batch.positions // 16].long() * 16 + batch.positions % 16
    return replace(batch, block_tables=tables, slots=slots)


# ---- the whole forward pass ----


def small_model(packer: Packer, activation: str = "gelu_new", width: int = 128) -> GPT2:
    architecture = Architecture(
        vocab_size=517, n_positions=512, n_embd=width, n_layer=2, n_head=2, n_inner=4 * width,
        activation_function=activation, layer_norm_epsilon=1e-5, scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=True,
    )  # fmt: skip
    shapes = {
        "wte.weight": (517, width),
        "wpe.weight": (512, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for i in range(2):
        for name, inner, outer in (
            ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width),
        ):  # fmt: skip
            shapes |= {f"h.{i}.{name}.weight": (inner, outer), f"h.{i}.{name}.bias": (outer,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.weight": (width,), f"h.{i}.{name}.bias": (width,)}
    weights = dict(zip(shapes, (0.1 * x for x in randoms(*shapes.values())), strict=True))
    return GPT2(architecture, weights, packer)


def with_ids(batch: ForwardBatch) -> ForwardBatch:
    generator = torch.Generator().manual_seed(5)
    return replace(batch, input_ids=torch.randint(0, 517, batch.slots.shape, generator=generator))


def cache_for(model: GPT2, precision: Precision) -> KVCache:
    a, dtype = model.architecture, cache_dtype(precision)
    return KVCache.allocate(a.n_layer, 200, a.n_head, 16, a.head_dim, dtype, CPU)


def fused_pass(model: GPT2, precision: Precision) -> FusedForward:
    return FusedForward(model, CpuAttention(cache_for(model, precision), model.architecture.attention_scales))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [128, 50])
def test_the_fused_pass_agrees_with_the_layers_in_torch(precision: Precision, width: int) -> None:
    fast = small_model(CpuBackend(precision), width=width)
    slow = small_model(TorchBackend(precision), width=width)
    batch, scales = with_ids(self_check.ragged_batch(MIXED, 16)), fast.architecture.attention_scales
    result = fused_pass(fast, precision)(batch)
    expected = slow.forward(batch, ReferenceAttention(cache_for(slow, precision), scales, is_exact=False))
    bound = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.03}[
        precision
    ]  # one int8 code of difference cascades
    assert (result - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sequence_has_the_same_logits_alone_and_in_company(precision: Precision) -> None:
    model = small_model(CpuBackend(precision))
    fused = FusedForward(
        model, CpuAttention(cache_for(model, precision), model.architecture.attention_scales)
    )
    crowd = with_ids(self_check.ragged_batch([(0, 21), (0, 1), (0, 33), (0, 5), (0, 16)], 16))
    together = fused(crowd)
    for index in range(5):
        start, end = crowd.query_starts[index : index + 2].tolist()
        alone = self_check.ragged_batch([(0, end - start)], 16)
        assert torch.equal(fused(replace(alone, input_ids=crowd.input_ids[start:end]))[0], together[index]), (
            index
        )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_on_crowded_processors_change_no_bit(threads: int) -> None:
    """With more threads than processors most of them come late to most phases."""
    model = small_model(CpuBackend("bfloat16"), width=256)
    fused = FusedForward(
        model, CpuAttention(cache_for(model, "bfloat16"), model.architecture.attention_scales)
    )
    prompts = [[(0, 1)], [(0, 5), (0, 37), (0, 1)], [(0, 9)] * 9]
    batches = [with_ids(self_check.ragged_batch(sequences, 16)) for sequences in prompts]
    usual = [fused(batch) for batch in batches]
    try:
        set_threads(threads)
        for _ in range(60):
            for batch, expected in zip(batches, usual, strict=True):
                assert torch.equal(fused(batch), expected)
    finally:
        set_threads()


def test_engines_that_step_at_the_same_time_change_no_bit_of_each_other() -> None:
    """The threads are the process's, and a process may hold many applications."""
    models = [small_model(CpuBackend("bfloat16"), width=width) for width in (256, 128)]
    steps = [
        FusedForward(m, CpuAttention(cache_for(m, "bfloat16"), m.architecture.attention_scales))
        for m in models
    ]
    batch = with_ids(self_check.ragged_batch([(0, 5), (0, 37), (0, 1)], 16))
    usual = [step(batch) for step in steps]

    def differing(index: int) -> int:
        return sum(not torch.equal(steps[index](batch), usual[index]) for _ in range(100))

    with ThreadPoolExecutor(2) as engines:
        assert list(engines.map(differing, range(2))) == [0, 0]


def test_little_work_stays_on_one_thread() -> None:
    model = small_model(CpuBackend("bfloat16"), width=50)
    fused = FusedForward(
        model, CpuAttention(cache_for(model, "bfloat16"), model.architecture.attention_scales)
    )
    assert [fused.threads_for(tokens) > 1 for tokens in (1, 6, 512)] == [False, False, True]


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    model = small_model(CpuBackend("float32"))
    fused = FusedForward(
        model, CpuAttention(cache_for(model, "float32"), model.architecture.attention_scales)
    )
    batch = self_check.ragged_batch([(0, 3)], 16)
    with pytest.raises(IndexError, match="input_ids"):
        fused(replace(batch, input_ids=torch.tensor([1, 517, 2])))


def test_an_activation_without_kernel_is_not_fused() -> None:
    model = small_model(CpuBackend("float32"), activation="gelu")
    assert not can_fuse(model, CpuAttention(cache_for(model, "float32"), [1.0, 1.0]))


# ---- start-up ----


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_self_check_passes_here(precision: Precision) -> None:
    assert precision in CpuBackend(precision).self_check(TorchBackend(precision))


def test_the_self_check_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CpuLinear.__call__
    monkeypatch.setattr(CpuLinear, "__call__", lambda self, x, residual=None: 1.1 * right(self, x, residual))
    with pytest.raises(self_check.KernelMismatch, match="differs from torch"):
        CpuBackend("float32").self_check(TorchBackend("float32"))


def self_checks_with(name: str, features: str) -> str:
    """What the self-checks of a process say whose code is compiled for another processor."""
    program = (
        "from service.engine.backends.cpu.backend import CpuBackend\n"
        "from service.engine.backends.torch.backend import TorchBackend\n"
        f"for precision in {PRECISIONS}:\n"
        "    print(CpuBackend(precision).self_check(TorchBackend(precision)))\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "said"),
    [("haswell", "+avx2,+fma", "AVX2"), ("core-avx-i", "+avx", "generic")],
)
def test_kernels_work_on_a_processor_without_avx512(name: str, features: str, said: str) -> None:
    assert self_checks_with(name, features).count(said) == 3


@pytest.mark.slow
@pytest.mark.skipif(not processor.HAS_AVX512, reason="this processor has no AVX-512")
def test_kernels_work_on_a_processor_with_avx512_but_no_matrix_registers() -> None:
    usual = get_host_cpu_features()
    features = FeatureMap({name: has and not name.startswith("amx") for name, has in usual.items()})
    told = self_checks_with(get_host_cpu_name(), features.flatten())
    assert told.count("AVX-512") == 3 and "AMX" not in told


@pytest.mark.slow
@pytest.mark.skipif(not get_host_cpu_features().get("avx512bf16"), reason="no products of bfloat16")
@pytest.mark.parametrize(("name", "is_paired"), [("znver4", True), ("sapphirerapids", False)])
def test_bfloat16_rows_are_multiplied_as_such_where_that_is_faster(name: str, is_paired: bool) -> None:
    told = self_checks_with(name, "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16,+avx512vnni")
    assert ("AVX-512 BF16" in told) == is_paired and told.count("AVX-512") == 3
