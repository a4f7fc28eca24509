"""How each server that `peers` compares is installed, started, paused and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import end_with_parent

from service.engine.devices import Host

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 900.0  # beside others' work vLLM compiles for minutes


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are.

    Args:
        work: logs and converted models.
        checkpoint: the Hugging Face folder all are given.
        python: interpreter of the peers that are Python packages.
        llama_server: binary, or None.
        vllm: command, or None.
        threads: compute threads of each peer.
        sequences: that each must be able to have running at once.
    """

    work: Path
    checkpoint: Path
    python: Path
    llama_server: Path | None
    vllm: Path | None
    threads: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One server.

    Args:
        name: in the tables.
        precision: of its weights.
        command: `{port}` stands for the port.
        environment: added to ours.
        ready: path that answers 200 when it is.
        model: for the body, where it must be named.
        extra: more fields of the body.
        missing: why it cannot be run; empty when it can.
    """

    name: str
    precision: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/health"
    model: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""


def known_peers(places: Places, has_speculation: bool) -> list[Peer]:
    """Ours first, then the others, whether or not they are installed."""
    return [
        _ours(places, "bf16", has_speculation),
        _ours(places, "int8", has_speculation),
        _llama_cpp(places, "bf16"),
        _llama_cpp(places, "q8_0"),
        _llama_cpp(places, "q4_k_m"),
        _vllm(places),
        _llama_cpp_python(places, "bf16"),
    ]


def _ours(places: Places, precision: str, has_speculation: bool) -> Peer:
    settings = {
        "MODEL": str(places.checkpoint),
        "PRECISION": "int8" if precision == "int8" else "bfloat16",
        "SPECULATION": "1" if has_speculation else "0",
        "MAX_RUNNING": str(max(places.sequences, Host.max_running)),  # as many places as the others
        "LOG_LEVEL": "warning",
    }
    return Peer(
        f"textgen-{precision}",
        precision,
        (sys.executable, "-m", "service.cli", "serve", "--port", "{port}"),
        {f"TEXTGEN_{name}": value for name, value in settings.items()} | {"PYTHONPATH": str(_ROOT)},
        "/readyz",
    )


def _llama_cpp(places: Places, kind: str) -> Peer:
    """A slot for each sequence, with room for a full window."""
    name = f"llama.cpp-{kind}"
    if places.llama_server is None:
        return Peer(name, kind, missing="--llama-server is not given")
    try:
        model = _gguf(places, kind)
    except RuntimeError as error:
        return Peer(name, kind, missing=str(error))
    threads = str(places.threads)
    command = (str(places.llama_server), "-m", str(model), "--host", "127.0.0.1", "--port", "{port}")
    slots, context = str(places.sequences), str(places.sequences * 1024)
    return Peer(name, kind, (*command, "-np", slots, "-c", context, "-t", threads, "-tb", threads))


def _llama_cpp_python(places: Places, kind: str) -> Peer:
    """Its server handles one request at a time: it cannot batch, so it only says something at one client."""
    name = f"llama-cpp-python-{kind}"
    if not _has(places.python, "llama_cpp"):
        return Peer(name, kind, missing=f"{places.python} has no llama-cpp-python[server]")
    command = (str(places.python), "-m", "llama_cpp.server", "--model", str(_gguf(places, kind)))
    options = ("--host", "127.0.0.1", "--port", "{port}", "--n_threads", str(places.threads))
    return Peer(name, kind, (*command, *options), ready="/v1/models")


def _vllm(places: Places) -> Peer:
    if places.vllm is None:
        return Peer("vllm-bf16", "bf16", missing="--vllm is not given (a build for processors)")
    command = (str(places.vllm), "serve", str(places.checkpoint), "--host", "127.0.0.1", "--port", "{port}")
    options = ("--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", str(places.sequences))
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # it keeps one from its threads otherwise: half of two
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(places.threads),
        "PATH": f"{places.vllm.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return Peer("vllm-bf16", "bf16", (*command, *options), environment, model=str(places.checkpoint))


def _gguf(places: Places, kind: str) -> Path:
    """The checkpoint as GGUF, written by the peers' interpreter, which has the package."""
    target = places.checkpoint / f"model-{kind}.gguf"
    if target.exists():
        return target
    if kind == "q4_k_m" and places.llama_server is not None:  # what only its own program writes
        quantize = str(places.llama_server.with_name("llama-quantize"))
        command = [quantize, str(_gguf(places, "f32")), str(target), kind]
    else:
        script = str(_ROOT / "bench" / "checkpoint.py")
        command = [str(places.python), script, str(places.checkpoint), "--gguf", kind]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no GGUF: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return target


def _has(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True).returncode == 0


class PeerServer:
    """A running server.

    Args:
        peer: which.
        work: where its log goes.
    """

    def __init__(self, peer: Peer, work: Path) -> None:
        self.peer = peer
        self.log_path = work / f"{peer.name}.log"
        self.seconds_to_ready = 0.0

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, or took too long; names its log.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [part.format(port=port) for part in self.peer.command]
        environment = os.environ | dict(self.peer.environment)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        began_at = time.monotonic()
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - began_at > _START_S:
                self.stop()
                raise RuntimeError(f"did not get ready; see {self.log_path}")
            time.sleep(0.1)
        self.seconds_to_ready = time.monotonic() - began_at

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.peer.ready, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def pause(self) -> None:
        """Let it use no processor time."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and whatever it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
