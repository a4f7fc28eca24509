"""Where things lie in a store; reads names and pointers, deletes leftovers. See `model_store/store.py`."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import StoreError
from model_store.manifest import is_name, is_version, version_key


@dataclass(frozen=True, slots=True)
class Listing:
    """One version as `list` shows it; nothing was verified."""

    name: str
    version: str
    path: Path
    is_active: bool
    is_default: bool
    is_builtin: bool


def default_store() -> Path:
    """The user's own store: in the data folder that the XDG base directory specification names."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share") / "textgen"


def versions(source: Path, name: str) -> list[str]:
    """Give the versions of a model, in numeric order; whether they are whole is not looked at."""
    if not is_name(name) or not (source / name).is_dir():
        return []
    names = [path.name for path in (source / name).iterdir() if path.is_dir() and is_version(path.name)]
    return sorted(names, key=version_key)


def model_names(source: Path) -> list[str]:
    """Names of the models that have at least one version in a source, sorted."""
    if not source.is_dir():
        return []
    return sorted(path.name for path in source.iterdir() if versions(source, path.name))


def history(source: Path, name: str) -> list[str]:
    """The active version, then those active before it; only what is there."""
    path = source / name / "active"
    lines = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return [line for line in lines if is_version(line) and (source / name / line).is_dir()]


def figures_path(root: Path, name: str, version: str) -> Path:
    """Where figures that were measured on a version are kept, beside it."""
    return root / name / "figures" / f"{version}.json"


def removed(source: Path, name: str) -> list[str]:
    """The versions of a model that were there once and were removed."""
    path = source / name / "removed"
    lines = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
    return [line for line in lines if is_version(line)]


def read_line(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def check_label(name: str, version: str) -> None:
    """Raise `StoreError` unless a name and a version, where there is one, are legal."""
    if not is_name(name):
        raise StoreError(
            f"the name {name!r} is not legal: lower-case letters, digits, '.', '_', '-'; at most 64"
        )
    if version and not is_version(version):
        raise StoreError(f"the version {version!r} is not legal: numbers with dots, as 1 or 1.2")


def sweep(root: Path) -> None:
    """Delete what processes that died left; called under the lock, when nobody else can be at work."""
    for pattern in (".adding-*", ".removed-*", ".*.tmp", "*/.*.tmp"):
        for path in root.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
