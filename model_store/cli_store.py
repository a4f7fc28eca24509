"""What the commands of the store and of training share: which store, and errors in one line."""

from __future__ import annotations

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
    except (StoreError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
