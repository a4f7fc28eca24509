"""Where compiled kernels are kept between runs.

Numba notices a change in the file of a compiled function, but not in the files it calls, so the folder's
name holds a digest of this whole package. It lies in `NUMBA_CACHE_DIR`, which numba itself reads, else
the user's cache folder. A cache that cannot be written (an image's read-only file system, a full volume)
is copied to a temporary folder first; where even that fails, kernels are compiled anew at each start. What is
found there may be damaged: `discard` takes it away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from numba.core import config

from service.engine.backends.cpu import matrix_tiles


def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(b"tiles" if matrix_tiles.is_permitted() else b"")  # the same processor may be refused them
    return digest.hexdigest()[:16]


_ROOM_BYTES = 64 * 2**20  # what all kernels take, generously


def _is_writable(folder: Path) -> bool:
    """Whether kernels can be kept there: numba gives up where writing one of them fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
            return True
    except OSError:
        return False


def prepare(base: Path) -> Path | None:
    """A writable folder with whatever this version has compiled already.

    Args:
        base: the cache folder wished for.

    Returns:
        The folder for this version's kernels, or None where nothing can be written.
    """
    folder = base / _digest()
    if _is_writable(folder):
        return folder
    try:
        copy = Path(tempfile.mkdtemp(prefix="textgen-kernels-"))
        if folder.is_dir():
            shutil.copytree(folder, copy, dirs_exist_ok=True)
    except OSError:
        return None
    return copy


_base = Path(config.CACHE_DIR or os.path.expanduser("~/.cache/textgen-service/kernels"))
_folder = prepare(_base)
CACHE = _folder is not None
# Why kernels compiled now are compiled again at the next start; "" if they are kept.
COMPLAINT = (
    ""
    if _folder is not None and _folder.parent == _base
    else f"compiled kernels are not kept: user {os.getuid()} may not write to {_base} (NUMBA_CACHE_DIR)"
)
if _folder is not None:
    config.CACHE_DIR = str(_folder)


def has_kernels() -> bool:
    """Whether this version has compiled kernels here before."""
    return _folder is not None and next(_folder.rglob("*.nbi"), None) is not None


def discard() -> None:
    """Delete what this version has compiled here: it may be damaged. Another process may be at it, too."""
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
