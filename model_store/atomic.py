"""Small files and whole folders that are replaced at once, and names that last through a power cut."""

import ctypes
import os
import shutil
import sys
from pathlib import Path

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, and RENAME_EXCHANGE of Linux or RENAME_SWAP of macOS


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file: whenever somebody reads it or this process dies, it is the old or the new one."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with waiting.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(waiting, path)
    except OSError as error:  # the disk is full, say
        waiting.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def replace_folder(new: Path, folder: Path) -> None:
    """Put a folder in the place of another, or of none: whenever this process dies, one of them is there.

    Args:
        new: On the file system of `folder`. What was in the place before is deleted under this name, or, if
            this process dies before, left there.
        folder: The place. Where the file system cannot exchange two names, it is empty for a moment.

    Raises:
        OSError: It may not be replaced.
    """
    if not folder.exists():
        os.replace(new, folder)
    elif not _exchange(new, folder):
        os.replace(folder, _put_away(folder))
        os.replace(new, folder)
        os.replace(_put_away(folder), new)
    sync_folder(folder.parent)
    shutil.rmtree(new, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put a folder back where a process died while its place was empty; see `replace_folder`."""
    if not folder.exists() and _put_away(folder).exists():
        os.replace(_put_away(folder), folder)
    shutil.rmtree(_put_away(folder), ignore_errors=True)


def _put_away(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        done: int = libc.renamex_np(*names, _EXCHANGE)
    elif hasattr(libc, "renameat2"):
        done = libc.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE)
    else:
        return False
    return not done


def sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
