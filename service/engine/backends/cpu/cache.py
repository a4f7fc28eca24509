"""Where compiled kernels are kept between runs: a file for these kernels, their compilers and this processor.

It lies in `NUMBA_CACHE_DIR`, else in the user's cache folder, and begins with a digest of all that follows:
one flipped bit of code is noticed before it runs. A folder that cannot be written (an image's read-only file
system, a full volume) may still hold the file; where it does not, kernels are compiled at each start.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from service.engine.backends.cpu import processor

_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
_MAX_BYTES = 1 << 26  # a file takes half a megabyte


class DamagedKernels(RuntimeError):
    """The file holds something else than what was once written; the message names it."""


def folder() -> Path:
    """Where kernels are kept."""
    return Path(os.environ.get("NUMBA_CACHE_DIR") or os.path.expanduser("~/.cache/textgen-service/kernels"))


def path() -> Path:
    """The file of these kernels, for this processor."""
    digest = hashlib.blake2b(digest_size=8)
    here = Path(__file__).parent
    for source in (here / "records.py", here / "processor.py", *sorted((here / "native").glob("*.py"))):
        digest.update(source.read_bytes())
    compilers = (version("numba"), version("llvmlite"))
    # Tiles may be refused to a process.
    target = (processor.name(), processor.features(), processor.HAS_TILES)
    digest.update(repr((compilers, target)).encode())
    return folder() / f"{digest.hexdigest()}.nbk"


def has_kernels() -> bool:
    """Whether these kernels were compiled here before."""
    return path().is_file()


def read() -> list[bytes] | None:
    """The object files that are kept, or None.

    Raises:
        DamagedKernels: they are not what was written.
    """
    if not has_kernels():  # else a pipe of that name would be waited for
        return None
    try:
        if path().stat().st_size > _MAX_BYTES:
            raise DamagedKernels(f"{path()} is damaged")
        data = path().read_bytes()
    except OSError:
        return None
    given, rest = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if _digest(rest) != given:
        raise DamagedKernels(f"{path()} is damaged")
    objects = []
    while rest:
        size = int.from_bytes(rest[:_LENGTH_BYTES], "little")
        objects.append(rest[_LENGTH_BYTES : _LENGTH_BYTES + size])
        rest = rest[_LENGTH_BYTES + size :]
    return objects


def keep(objects: Sequence[bytes]) -> str:
    """Write object files, whole or not at all.

    Returns:
        Why they are compiled again at the next start; "" if they are kept.
    """
    rest = b"".join(len(code).to_bytes(_LENGTH_BYTES, "little") + code for code in objects)
    target = path()
    waiting = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with waiting.open("wb") as file:
                file.write(_digest(rest) + rest)
                file.flush()
                os.fsync(file.fileno())
            os.replace(waiting, target)
        finally:
            waiting.unlink(missing_ok=True)  # a full volume took a part of it
    except OSError as error:
        return (
            f"each start compiles the kernels again: user {os.getuid()} cannot keep them in {target.parent} "
            f"(NUMBA_CACHE_DIR): {error.strerror or error}"
        )
    return ""


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
