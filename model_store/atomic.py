"""Small files that are replaced whole, and names that last through a power cut."""

import os
from pathlib import Path


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


def sync_folder(folder: Path) -> None:
    """Make names in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
