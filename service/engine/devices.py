"""Where tensors live, whichever backend computes there: the machine's memory or a GPU's.

Each device knows what is free on it, how much of that may go to keys and values, how to allocate, and what to
say when there is not enough. A backend is asked about arithmetic, its device about memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from model_store.errors import UnsupportedCheckpoint
from service.engine.config import DeviceName
from service.engine.huge_pages import huge_array
from service.engine.memory import free_host_bytes, one_line_without_host_memory

GIB = 1 << 30


class NoSuchDevice(ValueError):
    """The device cannot be used on this machine."""


class Device(Protocol):
    """What the engine asks of a device."""

    name: str  # as torch calls it
    max_batch_tokens: int  # of one step, where no setting says
    max_running: int  # sequences of one step, where no setting says
    kv_share: float  # of the free memory, at most, for keys and values

    def num_full_sequences(self, max_running: int) -> int:
        """How many sequences at full length the cache has room for, where no setting says."""
        ...

    def free_bytes(self) -> int:
        """Memory that is left."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros whose memory is really there, so that it stays flat from now on."""
        ...

    def out_of_memory_explained(self) -> AbstractContextManager[None]:
        """Turn running out of memory at start into one line that says what to do.

        Raises:
            UnsupportedCheckpoint: the memory does not suffice.
        """
        ...


class Host:
    """The machine's memory, or what a container may use of it."""

    name = "cpu"
    max_batch_tokens = 192
    max_running = 64
    kv_share = 0.25

    def num_full_sequences(self, max_running: int) -> int:
        """See `Device`. Few texts fill the window, and touching memory takes time at start."""
        return -(-max_running // 2)

    def free_bytes(self) -> int:
        """See `Device`."""
        return free_host_bytes()

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Device`; in huge pages."""
        return torch.from_numpy(huge_array(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)

    def out_of_memory_explained(self) -> AbstractContextManager[None]:
        """See `Device`."""
        return one_line_without_host_memory()


class Gpu:
    """A CUDA device's memory. A GPU takes more rows and sequences at once than a processor."""

    name = "cuda"
    max_batch_tokens = 2048
    max_running = 256
    kv_share = 0.8

    def num_full_sequences(self, max_running: int) -> int:
        """See `Device`; all of them."""
        return max_running

    def free_bytes(self) -> int:
        """See `Device`; what loading left behind counts as free."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.name)[0])

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Device`."""
        return torch.zeros(shape, dtype=dtype, device=self.name)

    @contextmanager
    def out_of_memory_explained(self) -> Iterator[None]:
        """See `Device`; either memory may be the one that is short."""
        with one_line_without_host_memory():
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise UnsupportedCheckpoint(out_of_memory(*torch.cuda.mem_get_info(self.name))) from error


def out_of_memory(free_bytes: int, total_bytes: int) -> str:
    """The one line."""
    return (
        f"out of GPU memory at start: {free_bytes / GIB:.1f} of {total_bytes / GIB:.1f} GiB are left; "
        "stop what else runs on it (nvidia-smi lists it), choose another one with CUDA_VISIBLE_DEVICES, "
        "or lower `kv_cache_bytes` or `max_running`"
    )


DEVICES: dict[DeviceName, Device] = {"cpu": Host(), "cuda": Gpu()}


def find_device(wanted: str) -> DeviceName:
    """The device to compute on.

    Args:
        wanted: a device's name, or "auto" for a GPU where there is one.

    Raises:
        NoSuchDevice: it cannot be used here.
    """
    usable: list[DeviceName] = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    for name in usable:
        if wanted in ("auto", name):
            return name
    raise NoSuchDevice(f"`device` is {wanted}, and no {wanted.upper()} device can be used here")
