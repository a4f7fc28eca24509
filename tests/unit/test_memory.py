"""How much memory is taken, and what is said when there is not enough."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from model_store.errors import UnsupportedCheckpoint
from service.engine import memory
from service.engine.huge_pages import huge_array
from service.engine.memory import one_line_without_host_memory, out_of_memory_line

TORCH_SAYS = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


MAP_FAILS = "libtorch_cpu.so: failed to map segment from shared object"
FILE_FAILS = "unable to mmap 14204216 bytes from file <model.safetensors>: Cannot allocate memory (12)"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "no memory"),
        RuntimeError(TORCH_SAYS),
        RuntimeError(FILE_FAILS),
        OSError(MAP_FAILS),
        ImportError(MAP_FAILS),
    ],
)
def test_running_out_of_memory_is_one_line(error: Exception) -> None:
    line = r"^out of memory at start: \d+ MiB are left "
    with pytest.raises(UnsupportedCheckpoint, match=line), one_line_without_host_memory():
        raise error


SAYS = """
import resource, sys
from service.engine.memory import free_host_bytes, out_of_memory_line

print(out_of_memory_line())
for name in sys.argv[1:]:
    number = getattr(resource, name)
    resource.setrlimit(number, (1 << 30, 1 << 30))
print(out_of_memory_line())
print(free_host_bytes() >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much is used")
@pytest.mark.parametrize(
    ("limit", "name"), [("RLIMIT_AS", "address space (`ulimit -v`)"), ("RLIMIT_DATA", "data (`ulimit -d`)")]
)
def test_the_limit_that_leaves_least_is_named(limit: str, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SAYS, limit], capture_output=True, text=True, check=True)
    before, after, left = done.stdout.splitlines()
    assert "ulimit" not in before
    assert re.search(rf"\d MiB are left below this process's limit of {re.escape(name)}; raise it, ", after)
    assert 0 < int(left) < 1024


def test_a_containers_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left_bytes", lambda: 5 << 20)
    assert "5 MiB are left below the limit of the container or unit; raise it, " in out_of_memory_line()


def test_other_faults_pass_as_they_are() -> None:
    with pytest.raises(OSError, match="gone"), one_line_without_host_memory():
        raise OSError(errno.ENOENT, "gone")


LOAD = """
import sys
from pathlib import Path
from service.engine.backends.cpu.backend import CpuBackend
from service.engine.model.gpt2 import GPT2
import torch

def status(name):
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) << 10

folder, precision = Path(sys.argv[1]), sys.argv[2]
backend = CpuBackend(precision)
backend.linear(torch.ones(64, 64), None)
before = status("VmRSS")
model = GPT2.load(folder, backend)
mapped = str(folder) in Path("/proc/self/maps").read_text()
print(before, status("VmRSS"), status("VmHWM"), mapped)
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 MB of float32 in shards."""
    width, layers, vocabulary = 512, 16, 16384
    config = GPT2Config(
        n_embd=width, n_layer=layers, n_head=8, n_positions=64, vocab_size=vocabulary, eos_token_id=0
    )
    folder = tmp_path_factory.mktemp("large")
    GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="60MB")
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_loading_takes_little_more_than_what_is_kept(large_checkpoint: Path, precision: str) -> None:
    command = [sys.executable, "-c", LOAD, str(large_checkpoint), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after, peak, mapped = done.stdout.split()
    kept, most = int(after) - int(before), int(peak) - int(before)
    assert mapped == "False"
    assert most <= 1.3 * kept, (most >> 20, kept >> 20)


def test_memory_is_taken_when_it_is_written() -> None:
    before = resident_bytes()
    room = huge_array(256 << 20)
    assert resident_bytes() - before < 32 << 20
    room[: 64 << 20] = 1
    assert 64 << 20 <= resident_bytes() - before < 96 << 20
    assert room.ctypes.data % (2 << 20) == 0 and not room[64 << 20 :].any()


def resident_bytes() -> int:
    """Memory of this process that is there."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_large_arrays_may_have_huge_pages() -> None:
    """Only private memory gets them where shared memory is left to the system's default."""
    room = huge_array(8 << 20)
    maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
    ours = [part for part in maps if holds(part.splitlines(), room.ctypes.data)]
    assert len(ours) == 1 and "/dev/zero" not in ours[0]
    flags = maps[maps.index(ours[0]) + 1].splitlines()[0].split()
    assert "sh" not in flags and "hg" in flags


def holds(lines: list[str], address: int) -> bool:
    """Whether a mapping, as `smaps` describes it, holds an address."""
    ranges = [line.split()[0].split("-") for line in lines if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line)]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)
