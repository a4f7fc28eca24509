"""What the commands of the store and of training share: which store, and errors in one line."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model_store.errors import StoreError
from model_store.layout import default_store

DEFAULT_STORE = default_store()
StoreFolder = Annotated[
    Path,
    typer.Option(
        "--store", envvar="TEXTGEN_STORE", help="The store's folder.", show_default="~/.local/share/textgen"
    ),
]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with one line on standard error and exit code 2, not with a traceback."""
    try:
        yield
    except StoreError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"error: {_told(error)}", err=True)
        sys.exit(2)


def _told(error: OSError) -> str:
    """What happened, and where a disk is full: a folder, and no name of an unfinished file."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(error)
    folder = Path(str(error.filename2 or error.filename or "")).parent
    if folder.name.startswith("."):
        folder = folder.parent
    where = f" where {folder} lies" if error.filename else ""
    return f"the disk is full{where}; free some room and try again"
