"""The Triton kernels against torch: on a GPU where there is one, else through Triton's interpreter.

Triton comes with CUDA builds of torch; without it (`pip install triton` brings it) these tests are skipped.
Without a GPU they need TRITON_INTERPRET=1 from the start of the process: Triton reads it when it is imported.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; it comes with CUDA builds of torch")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is no GPU; TRITON_INTERPRET=1 runs these on the processor", allow_module_level=True)

from tiny import ask, checkpoint, loaded_gpt2, real_engine, run_all, separate

from service.engine.backends.cuda import attend, self_check
from service.engine.backends.cuda.attention import CudaAttention
from service.engine.backends.cuda.backend import CudaBackend
from service.engine.backends.cuda.forward import CudaForward
from service.engine.backends.kernel_check import KernelMismatch
from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.backends.torch.backend import TorchBackend
from service.engine.devices import DEVICES
from service.engine.model.attention import ForwardBatch, KVCache

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REFERENCE = TorchBackend("float32", DEVICES[DEVICE.type], is_exact=True)
TYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 2e-2)}
DECODES = [(0, 1), (15, 1), (127, 1), (128, 1), (260, 1)]  # cached tokens around pages and splits
MIXED = [(20, 1), (0, 17), (0, 1), (60, 40), (63, 2)]


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Any:
    """Two things of Triton 3.6's interpreter: it takes loop bounds from arrays of one element, which
    numpy 2.4 refuses, and it multiplies tiles by BLAS, where a row's bits depend on its place in the tile.
    """
    if DEVICE.type == "cuda":
        yield
        return
    import numpy as np
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot_by_rows(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        rows = np.stack([(row[:, None] * b.data).sum(0, dtype=d.data.dtype) for row in a.data])
        return interpreter.TensorHandle(rows + d.data, d.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", dot_by_rows)
        yield


def generator() -> torch.Generator:
    """The same numbers in every test."""
    return torch.Generator().manual_seed(1)


# ---- kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("sequences", [DECODES, MIXED], ids=["decodes", "mixed"])
@pytest.mark.parametrize("head_dim", [64, 24])
def test_attention_agrees_with_torch(sequences: Any, head_dim: int, precision: str) -> None:
    dtype, tolerance = TYPES[precision]
    self_check.check_attention(sequences, head_dim, dtype, DEVICE, tolerance, generator(), REFERENCE)


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("width", [64, 100, 768])
def test_add_and_norm_agree_with_torch(width: int, precision: str) -> None:
    dtype, tolerance = TYPES[precision]
    self_check.check_rows(width, dtype, DEVICE, tolerance, generator())


class Case:
    """A cache full of random keys and values, and a step over it."""

    def __init__(self, sequences: list[tuple[int, int]]) -> None:
        self.batch = self_check.move(self_check.ragged_batch(sequences, 16), DEVICE)
        blocks, draw = int(self.batch.block_tables.max()) + 1, generator()
        content = (torch.randn(1, blocks, 2, 16, 32, generator=draw).to(DEVICE) for _ in range(2))
        self.cache = KVCache(*content)
        self.qkv = torch.randn(len(self.batch.slots), 3 * 64, generator=draw).to(DEVICE)

    def run(self, batch: ForwardBatch, rows: slice) -> torch.Tensor:
        """Attend with a part of the rows."""
        return CudaAttention(self.cache, [0.2], 512)(self.qkv[rows], 0, batch)

    def part(self, sequence: int, first: int, end: int) -> tuple[ForwardBatch, slice]:
        """Rows [first, end) of one sequence's stretch, as a step of its own."""
        b, start = self.batch, int(self.batch.query_starts[sequence])
        rows = slice(start + first, start + end)
        left = int(b.query_starts[sequence + 1]) - (start + end)
        one = slice(sequence, sequence + 1)
        starts = torch.tensor([0, end - first], dtype=torch.int32, device=DEVICE)
        alone = replace(b, slots=b.slots[rows], query_starts=starts, context_lens=b.context_lens[one] - left,
                        block_tables=b.block_tables[one], max_query_len=end - first)  # fmt: skip
        return alone, rows


def test_a_decode_row_has_the_same_bits_alone_and_among_others() -> None:
    case = Case(DECODES)
    together = case.run(case.batch, slice(None))
    alone = [case.run(*case.part(s, 0, 1)) for s in range(len(DECODES))]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("border", [2, 16, 19, 38])
def test_a_prefill_row_has_the_same_bits_with_other_chunk_borders(border: int) -> None:
    case = Case(MIXED)
    together = case.run(case.batch, slice(None))
    chunks = [case.run(*case.part(3, *stretch)) for stretch in ((0, border), (border, 40))]
    assert torch.equal(together[case.part(3, 0, 40)[1]], torch.cat(chunks))


def test_the_self_check_finds_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "SPLIT", 64)
    original = CudaAttention._decode

    def off(self: CudaAttention, *args: Any) -> None:
        self.scales = [scale * 1.1 for scale in self.scales]
        original(self, *args)

    monkeypatch.setattr(CudaAttention, "_decode", off)
    with pytest.raises(KernelMismatch, match="attention"):
        self_check.check_attention(DECODES, 24, torch.float32, DEVICE, 1e-5, generator(), REFERENCE)


# ---- forward pass and engine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switch", [{}, {"tie_word_embeddings": False}, {"activation_function": "relu"}, {"n_inner": 40}], ids=str
)
def test_the_forward_pass_agrees_with_the_reference(switch: dict[str, Any]) -> None:
    folder = checkpoint(1, **switch)
    fast = loaded_gpt2(folder, CudaBackend("float32", DEVICES[DEVICE.type]))
    slow = loaded_gpt2(folder, TorchBackend("float32", DEVICES[DEVICE.type]))
    batch = self_check.move(self_check.ragged_batch([(0, 7), (20, 1), (3, 9)], 16), DEVICE)
    batch = replace(batch, input_ids=batch.positions * 5 + 3)
    caches = [KVCache.allocate(2, 8, 4, 16, 8, torch.float32, DEVICES[DEVICE.type]) for _ in range(2)]
    scales = fast.architecture.attention_scales
    found = CudaForward(fast, CudaAttention(caches[0], scales, 96))(batch)
    expected = slow.forward(batch, ReferenceAttention(caches[1], scales))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_engine_gives_the_texts_of_the_reference() -> None:
    asked = [ask(range(1, 3 + 6 * i), ordinal=i, max_new_tokens=4, ignore_eos=True) for i in range(3)]
    fast = real_engine(checkpoint(3), backend="cuda", device=str(DEVICE), is_deterministic=False)
    expected = run_all(real_engine(checkpoint(3)), separate(asked))
    found = run_all(fast, separate(asked))
    assert [o.token_ids for o in found] == [o.token_ids for o in expected]
