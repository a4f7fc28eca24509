# mypy: disable-error-code="no-untyped-call"
"""Decode steps replayed from CUDA graphs, one for each bucket of batch sizes; everything else runs eagerly.

A graph replays the same kernels on the same addresses, so a step is copied into a bucket's static buffers and
padded: a padded row is a sequence of one token whose key and value go to a scratch block that nobody owns.
The batch comes in host memory and crosses to the device in one copy. What only a GPU can do is in `record`;
tests drive everything else with a plain call in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from service.engine.model.attention import ForwardBatch

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Forward = Callable[[ForwardBatch], Tensor]
Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
_TENSORS = tuple(field.name for field in fields(ForwardBatch) if field.name != "max_query_len")


class Packed:
    """All numbers of a batch in one row of host memory and its copy on the device.

    Args:
        batch: gives the shapes; its numbers are not copied.
        device: where `batch` of this object lives.
    """

    def __init__(self, batch: ForwardBatch, device: torch.device) -> None:
        shapes = {name: getattr(batch, name).shape for name in _TENSORS}
        total = sum(map(_room, shapes.values()))
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.int64, pin_memory=on_gpu)
        self._device = torch.zeros(total, dtype=torch.int64, device=device)
        self.host = replace(batch, **_views(self._host, shapes))
        self.batch = replace(batch, **_views(self._device, shapes))

    def send(self) -> None:
        """Copy host to device; the host's numbers may be changed once the step's results are read."""
        self._device.copy_(self._host, non_blocking=True)


def _views(row: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Any]:
    parts = row.split(list(map(_room, shapes.values())))
    named = zip(shapes.items(), parts, strict=True)
    return {name: part[: shape.numel()].view(shape) for (name, shape), part in named}


def _room(shape: torch.Size) -> int:
    """Numbers set aside for a tensor: all start at 16 bytes, or Triton compiles one kernel per alignment."""
    return shape.numel() + shape.numel() % 2


def to_device(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """A batch of host memory on the device, in one copy."""
    packed = Packed(batch, device)
    for name in _TENSORS:
        getattr(packed.host, name).copy_(getattr(batch, name))
    packed.send()
    return packed.batch


def empty_decode(rows: int, max_blocks: int, scratch_block: int, block_size: int) -> ForwardBatch:
    """A step of padded rows only, in host memory."""
    return ForwardBatch(
        input_ids=torch.zeros(rows, dtype=torch.int64),
        positions=torch.zeros(rows, dtype=torch.int64),
        slots=torch.full((rows,), scratch_block * block_size),
        query_starts=torch.arange(rows + 1),
        context_lens=torch.ones(rows, dtype=torch.int64),
        block_tables=torch.full((rows, max_blocks), scratch_block),
        logit_rows=torch.arange(rows),
        max_query_len=1,
    )


def fill(target: ForwardBatch, batch: ForwardBatch, padding: ForwardBatch) -> None:
    """Put a step of decodes into the first rows of a bucket's host buffers, padding into the others."""
    rows, blocks = batch.block_tables.shape
    for name in ("input_ids", "positions", "slots", "context_lens"):
        buffer: Tensor = getattr(target, name)
        buffer[:rows] = getattr(batch, name)
        buffer[rows:] = getattr(padding, name)[rows:]
    target.block_tables[:rows, :blocks] = batch.block_tables
    target.block_tables[rows:] = padding.block_tables[rows:]


def bucket_for(rows: int) -> int | None:
    """The smallest bucket that holds so many rows; None when none does."""
    return next((bucket for bucket in BUCKETS if bucket >= rows), None)


def is_decode(batch: ForwardBatch) -> bool:
    """Whether every sequence has one row and every row's logits are wanted."""
    return batch.max_query_len == 1 and len(batch.logit_rows) == len(batch.input_ids)


@dataclass(frozen=True, slots=True)
class _Bucket:
    packed: Packed
    padding: ForwardBatch
    replay: Replay


class GraphedForward:
    """A forward pass that takes batches in host memory and replays decode steps.

    Args:
        forward: the pass on the device; its launches must depend on shapes alone in a step of decodes.
        device: where it computes.
        max_blocks: blocks of the longest sequence.
        scratch_block: a block of the cache that belongs to no sequence.
        block_size: tokens in a block.
        record: turns a call into its replay; only a GPU can.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        *,
        max_blocks: int,
        scratch_block: int,
        block_size: int,
        record: Record,
    ) -> None:
        self._forward = forward
        self._device = device
        self._record = record
        self._empty = lambda rows: empty_decode(rows, max_blocks, scratch_block, block_size)
        self._buckets: dict[int, _Bucket] = {}

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch) -> Tensor:
        """See `GPT2.forward`. Logits of a replayed step last until the next step of its bucket."""
        rows = len(batch.input_ids)
        size = bucket_for(rows) if is_decode(batch) else None
        if size is None:
            return self._forward(to_device(batch, self._device))
        bucket = self._bucket(size)
        fill(bucket.packed.host, batch, bucket.padding)
        bucket.packed.send()
        return bucket.replay()[:rows]

    def prepare(self, max_rows: int) -> int:
        """Record every bucket that a batch of up to so many rows needs, the largest first; their number."""
        largest = bucket_for(max_rows) or BUCKETS[-1]
        needed = [size for size in BUCKETS if size <= largest]
        for size in reversed(needed):  # the smaller ones find their memory in the largest one's
            self._bucket(size)
        return len(needed)

    @torch.inference_mode()
    def _bucket(self, size: int) -> _Bucket:
        if size not in self._buckets:
            padding = self._empty(size)
            packed = Packed(padding, self._device)
            for name in _TENSORS:
                getattr(packed.host, name).copy_(getattr(padding, name))
            packed.send()
            replay = self._record(lambda: self._forward(packed.batch))
            self._buckets[size] = _Bucket(packed, padding, replay)
        return self._buckets[size]


class GraphRecorder:
    """Records calls in CUDA graphs that share one pool of memory. Not verified without a GPU."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Tensor]) -> Replay:
        """Warm up on a side stream, so that kernels are compiled and workspaces exist, then record."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = call()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def plain_call(call: Callable[[], Tensor]) -> Replay:
    """Stands for `GraphRecorder` where there is nothing to record: runs the call each time."""
    return call
