"""Figures that were measured on versions of a store, kept beside them, since a version itself never changes.

    <store>/<name>/figures/<version>.json    test set -> its figures, when, and the file's checksum

The built-in models' figures lie in the user's store, too. What the figures are is the business of those who
measure; here they are JSON values. Read next: `model_store/store.py`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.atomic import write_atomically
from model_store.entry import ModelEntry
from model_store.errors import StoreError, UnreadableFile
from model_store.files import read_json
from model_store.layout import figures_path


def read_figures(root: Path, name: str, version: str) -> dict[str, dict[str, Any]]:
    """Give what was measured on a version, by test set; nothing where nothing was.

    Raises:
        StoreError: The file is no JSON object.
    """
    path = figures_path(root, name, version)
    if not path.is_file():
        return {}
    try:
        values = read_json(path)
    except UnreadableFile as error:
        raise StoreError(f"{error}; delete it and measure again") from error
    if not all(isinstance(value, dict) for value in values.values()):
        raise StoreError(f"{path} must hold an object of objects; delete it and measure again")
    return values


def record_figures(root: Path, entry: ModelEntry, figures: Mapping[str, Mapping[str, Any]]) -> Path:
    """Keep figures of a version; those of the same test set are replaced.

    Args:
        root: The user's store.
        entry: The version; a plain folder has none.
        figures: By test set.

    Raises:
        StoreError: The entry is no version of a store.
    """
    if not entry.version:
        raise StoreError(f"{entry.path} is no version of a store")
    path: Path = figures_path(root, entry.name, entry.version)
    values = {**read_figures(root, entry.name, entry.version), **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return path


def in_words(figures: Mapping[str, Any]) -> str:
    """One line of the figures of a test set: numbers, with their intervals."""
    intervals = figures.get("intervals", {})
    parts = []
    for name, value in figures.items():
        if isinstance(value, int | float):
            low, high = intervals.get(name, (None, None))
            shown = f"{value:,.0f}" if isinstance(value, int) else f"{value:,.2f}"
            parts.append(f"{name} {shown}" + ("" if low is None else f" ({low:,.1f} to {high:,.1f})"))
    return ", ".join(parts)


def main_figure(figures: Mapping[str, Any]) -> str:
    """The figure that a list shows of a test set: `accuracy 91.2`; "" where there is none."""
    name = figures.get("main", "perplexity")
    value = figures.get(name)
    return f"{name} {value:.1f}" if isinstance(value, int | float) else ""
