"""Opens files that others wrote. Each failure is one line that names the file and the cause.

Only regular files are opened: a FIFO would wait for ever, a device never ends.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from model_store.errors import UnreadableFile

_LFS_POINTER = b"version https://git-lfs"
_MAX_JSON_BYTES = 256 << 20


def open_file(path: Path) -> BinaryIO:
    """Open a regular file that is not empty.

    Raises:
        UnreadableFile: It is missing, empty, no regular file, a pointer of git-lfs, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        reason = "is a link to a file that is missing" if path.is_symlink() else "is missing"
        raise UnreadableFile(f"{path} {reason}") from error
    except PermissionError as error:
        raise UnreadableFile(f"{path} cannot be read: permission denied{_owner(path)}") from error
    except OSError as error:
        raise UnreadableFile(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or what is no Unicode
        raise UnreadableFile(f"{path} cannot be read: no file can have this name") from error
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        os.close(handle)
        raise UnreadableFile(f"{path} is {_kind(path)}, not a file")
    start = file.read(len(_LFS_POINTER))
    file.seek(0)
    if start and start != _LFS_POINTER:
        return file
    file.close()
    if not start:
        raise UnreadableFile(f"{path} is empty")
    raise UnreadableFile(f"{path} is a pointer of git-lfs, not the file itself; run: git lfs pull")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UnreadableFile: As `open_file`, or it is no JSON object in UTF-8.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_JSON_BYTES:
            raise UnreadableFile(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB")
        try:
            values = json.loads(file.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UnreadableFile(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
        except ValueError as error:
            raise UnreadableFile(f"{path} is not JSON: {error}") from error
        except RecursionError as error:
            raise UnreadableFile(f"{path} is nested too deeply") from error
    if not isinstance(values, dict):
        raise UnreadableFile(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values


def read_json_if_any(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one.

    Raises:
        UnreadableFile: As `read_json`; also for a link to nothing, as an unfinished download leaves it.
    """
    return read_json(path) if os.path.lexists(path) else {}


def is_readable(path: Path) -> bool:
    """Say whether there is a file.

    Raises:
        UnreadableFile: As `open_file`: something is there that is no file, or may not be read.
    """
    if not os.path.lexists(path):
        return False
    open_file(path).close()
    return True


def _owner(path: Path) -> str:
    """Whose the file is and who asks; "" where even that may not be known."""
    try:
        status = path.stat()
    except OSError:
        return ""
    mode = stat.S_IMODE(status.st_mode)
    return f" (mode {mode:04o}, owner {status.st_uid}; this process is user {os.geteuid()})"


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")
