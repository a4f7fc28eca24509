"""Resolve pyproject.toml into the lock files: `make lock`; `make lock ARGS=--upgrade` for newer versions.

`requirements.lock` holds what serving needs; `requirements-dev.lock` what training, reading data, testing
and tracing add, `requirements-scale.lock` what Ray adds. They hold one exact version a line for every
platform, with markers where they differ, and nothing that ties them to one machine: no index address, no
hash, no local version label. Left out on purpose: torch's CUDA libraries, since a CUDA build of torch names
the exact versions it wants, and a CPU build wants none. `deploy/image.lock` holds the image's packages with
the hashes of all their files, torch excepted: its CPU and CUDA builds are other files under one version.
Needs `uv`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"
SCALE_LOCK = ROOT / "requirements-scale.lock"
IMAGE_LOCK = ROOT / "deploy" / "image.lock"
OLDEST_PYTHON = "3.11"
TORCH_OWN = re.compile(r"^(nvidia-|cuda-|triton\b)")  # what a CUDA build of torch brings by itself
LOCAL_LABEL = re.compile(r"\+[a-z0-9.]+")


def main() -> None:
    """Rewrite the lock files; versions already locked stay unless `--upgrade` is given."""
    upgrade = "--upgrade" in sys.argv[1:]
    locked = "" if upgrade else "".join(map(_lines_of, (RUNTIME_LOCK, DEV_LOCK, SCALE_LOCK)))
    everything = _resolve(["train", "data", "otel", "dev", "scale"], locked)
    pins = "\n".join(everything)
    serving = {line.split("==")[0] for line in _resolve([], pins)}
    runtime = [line for line in everything if line.split("==")[0] in serving]  # with markers for every extra
    working = _resolve(["train", "data", "otel", "dev"], pins)
    RUNTIME_LOCK.write_text(_page("what serving needs", runtime), encoding="utf-8")
    for lock, what, lines in (
        (DEV_LOCK, "what training, reading data, testing and tracing add", working),
        (SCALE_LOCK, "what Ray adds", _resolve(["scale"], pins)),
    ):
        added = ["-r requirements.lock", *(line for line in lines if line.split("==")[0] not in serving)]
        lock.write_text(_page(what, added), encoding="utf-8")
    hashed = _resolve(["otel"], pins, "--generate-hashes", "--no-emit-package", "torch")
    IMAGE_LOCK.write_text(_page("the image's packages but torch", hashed), encoding="utf-8")


def _lines_of(lock: Path) -> str:
    """The pins of a lock file, without its comments and its reference to the other file."""
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    return "".join(f"{line}\n" for line in text.splitlines() if line and line[0] not in "#-")


def _resolve(extras: list[str], constraints: str, *options: str) -> list[str]:
    """Ask uv for one exact version of everything, then strip what belongs to one machine or one build."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "constraints.txt"
        wanted.write_text(constraints, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-header"]
        command += [
            "--no-annotate",
            "--python-version",
            OLDEST_PYTHON,
            "--constraints",
            str(wanted),
            *options,
        ]
        command += [part for extra in extras for part in ("--extra", extra)]
        done = subprocess.run(
            [*command, "pyproject.toml"], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
        )
    lines = [LOCAL_LABEL.sub("", line) for line in done.stdout.splitlines()]
    return [line for line in lines if line and not TORCH_OWN.match(line)]


def _page(what: str, lines: list[str]) -> str:
    """A lock file: one line on what it is, then its pins."""
    return "\n".join([f"# Made by `make lock` from pyproject.toml: {what}.", *lines, ""])


if __name__ == "__main__":
    main()
