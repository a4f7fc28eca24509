"""The command-line option that says which store, for every command that takes one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model_store.layout import default_store

DEFAULT_STORE = default_store()
StoreFolder = Annotated[
    Path,
    typer.Option(
        "--store", envvar="TEXTGEN_STORE", help="The store's folder.", show_default="~/.local/share/textgen"
    ),
]
