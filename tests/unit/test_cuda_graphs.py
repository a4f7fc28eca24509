"""Replaying decode steps: buckets, padding, what is recorded. The recording itself needs a GPU; here a plain
call stands for it, everything around it is the code that a GPU runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tiny import checkpoint, loaded_gpt2

from model_store.errors import UnsupportedCheckpoint
from service.engine.backend import Reference
from service.engine.backends import choose
from service.engine.backends.cuda.backend import CudaBackend
from service.engine.backends.cuda.graphs import BUCKETS, GraphedForward, bucket_for, to_device
from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.backends.torch.backend import TorchBackend
from service.engine.config import EngineConfig
from service.engine.devices import DEVICES, out_of_memory
from service.engine.loader import allocate_cache
from service.engine.model.attention import ForwardBatch, KVCache

CPU = torch.device("cpu")
SCRATCH = 12  # the last block of the cache


class Lab:
    """A tiny model with a reference cache, plain and replayed."""

    def __init__(self) -> None:
        model = loaded_gpt2(checkpoint(1), TorchBackend("float32", is_exact=True))
        a = model.architecture
        self.cache = KVCache.allocate(
            a.n_layer, SCRATCH + 1, a.n_head, 16, a.head_dim, torch.float32, DEVICES["cpu"]
        )
        self.plain = partial(model.forward, attention=ReferenceAttention(self.cache, a.attention_scales))
        self.num_recorded = 0
        self.replayed = GraphedForward(
            self.plain, CPU, max_blocks=6, scratch_block=SCRATCH, block_size=16, record=self._record
        )

    def _record(self, call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.num_recorded += 1
        return call


def decode(rows: int) -> ForwardBatch:
    """The first step of so many sequences, each in a block of its own."""
    return ForwardBatch(
        input_ids=torch.arange(rows) + 5,
        positions=torch.zeros(rows, dtype=torch.int64),
        slots=torch.arange(rows) * 16,
        query_starts=torch.arange(rows + 1, dtype=torch.int32),
        context_lens=torch.ones(rows, dtype=torch.int32),
        block_tables=torch.arange(rows, dtype=torch.int32).unsqueeze(1),
        logit_rows=torch.arange(rows),
        max_query_len=1,
    )


def prefill(rows: int) -> ForwardBatch:
    """One sequence of so many rows, at most 16, whose last logits are wanted."""
    return ForwardBatch(
        input_ids=torch.arange(rows) + 5,
        positions=torch.arange(rows),
        slots=torch.arange(rows),
        query_starts=torch.tensor([0, rows], dtype=torch.int32),
        context_lens=torch.tensor([rows], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        logit_rows=torch.tensor([rows - 1]),
        max_query_len=rows,
    )


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (129, 256), (256, 256), (257, None)])
def test_a_step_takes_the_smallest_bucket_that_holds_it(rows: int, bucket: int | None) -> None:
    assert bucket_for(rows) == bucket


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_padded_step_gives_each_row_its_own_logits(rows: int) -> None:
    lab = Lab()
    assert torch.equal(lab.replayed(decode(rows)), lab.plain(decode(rows)))


def test_padded_rows_write_to_the_scratch_block_only() -> None:
    lab = Lab()
    lab.replayed(decode(3))
    written = lab.cache.k[0].flatten(1).abs().sum(1) > 0
    assert written.nonzero().flatten().tolist() == [0, 1, 2, SCRATCH]


def test_rows_of_a_larger_step_before_leave_no_trace() -> None:
    lab = Lab()
    lab.replayed(decode(4))
    lab.cache.k.zero_()
    lab.replayed(decode(3))
    assert not lab.cache.k[:, 3].any()


def test_a_bucket_is_recorded_once() -> None:
    lab = Lab()
    for rows in (3, 4, 3):
        lab.replayed(decode(rows))
    assert lab.num_recorded == 1


def test_a_prefill_is_not_recorded() -> None:
    lab = Lab()
    found = lab.replayed(prefill(9))
    assert lab.num_recorded == 0 and torch.equal(found, lab.plain(prefill(9)))


def test_preparing_records_every_bucket_up_to_the_largest_batch() -> None:
    lab = Lab()
    assert lab.replayed.prepare(9) == lab.num_recorded == BUCKETS.index(16) + 1


def test_every_tensor_of_a_packed_step_starts_at_16_bytes() -> None:
    moved = to_device(decode(3), CPU)
    tensors = [getattr(moved, name) for name in ForwardBatch.__slots__ if name != "max_query_len"]
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


# ---- start-up -------------------------------------------------------------------------------------------


def test_without_usable_kernels_torch_computes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CudaBackend, reference: Reference) -> str:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(CudaBackend, "self_check", fail)
    said: list[str] = []
    backend = choose(EngineConfig(checkpoint(1), device="cuda", fall_back=said.append))
    assert isinstance(backend, TorchBackend) and not backend.is_exact
    assert "slower" in said[0] and "triton" in said[0]


def test_the_scratch_block_is_within_the_configured_bytes() -> None:
    folder, per_block = checkpoint(1), 16 * 2 * 2 * 32 * 4
    architecture = loaded_gpt2(folder, TorchBackend("float32", is_exact=True)).architecture
    backend = CudaBackend("float32", DEVICES["cpu"])
    cache = allocate_cache(EngineConfig(folder, kv_cache_bytes=7 * per_block), architecture, backend)
    assert cache.k.shape[1] == 7
    with pytest.raises(UnsupportedCheckpoint, match=str(7 * per_block)):
        allocate_cache(EngineConfig(folder, kv_cache_bytes=6 * per_block), architecture, backend)


def test_too_little_memory_is_explained_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 8 << 30))
    explained = DEVICES["cuda"].out_of_memory_explained()
    with pytest.raises(UnsupportedCheckpoint, match=r"1\.0 of 8\.0 GiB"), explained:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
    assert "\n" not in out_of_memory(1, 2)
