"""The store: immutable versions of models, one of each name active. Adding and activating are atomic.

    <store>/<name>/<version>/     the model, in Hugging Face format, and manifest.json
    <store>/<name>/active         the active version, then those active before it, one a line
    <store>/<name>/figures/       what was measured on versions (`model_store/figures.py`)
    <store>/<name>/removed        versions that are gone, one a line: a number is never given twice
    <store>/default               the name of the model that is served when none is asked for
    <store>/.adding-*, .removed-* what a process that died left behind; never read, swept by the next change
    <store>/.lock                 held while something changes

A version comes to be by one rename and a pointer changes by one replace, so a process that dies leaves the
old state. What is corrupt is refused by name and an older version takes its place. The models that ship with
the code are a second, read-only source of the same shape.

Read next: `model_store/layout.py`, `model_store/entry.py`, `model_store/importer.py`.
"""

import difflib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from model_store.atomic import sync_folder, write_atomically
from model_store.entry import ModelEntry, as_manifest, hash_folder, read_entry, read_folder, sync_files
from model_store.errors import CorruptEntry, EntryExists, EntryInUse, ModelNotFound, StoreError
from model_store.hub import download, is_hub_id, no_folder
from model_store.layout import (
    Listing,
    check_label,
    figures_path,
    history,
    model_names,
    read_line,
    removed,
    sweep,
    versions,
)
from model_store.manifest import Draft, is_name, version_key, write_manifest

BUILTIN = Path(__file__).parent / "models"

Check = Callable[[ModelEntry], None]


class Store:
    """A folder of models, beside the built-in ones.

    Args:
        root: The user's store; made when something is added.
        builtin: The read-only second source; None for none.
    """

    def __init__(self, root: Path, builtin: Path | None = BUILTIN) -> None:
        self.root = root
        self._sources = [root] if builtin is None or builtin == root else [root, builtin]

    def listings(self) -> list[Listing]:
        """Give every version of every model, the user's first, versions in numeric order."""
        return [
            Listing(
                name=name,
                version=version,
                path=source / name / version,
                is_active=version == (history(source, name) or [""])[0],
                is_default=name == self.default_name(),
                is_builtin=source != self.root,
            )
            for source in self._sources
            for name in model_names(source)
            for version in versions(source, name)
        ]

    def default_name(self) -> str:
        """Give the model that is served when none is asked for; "" when there is none."""
        named = (read_line(source / "default") for source in self._sources)
        return next((name for name in named if is_name(name)), "")

    def resolve(self, model: str) -> ModelEntry:
        """Find and check a model.

        Args:
            model: "" for the default, a name, or `name@version`, which takes no other version's place.

        Returns:
            The active version; where it is corrupt the one active before it, and so on, with warnings.

        Raises:
            ModelNotFound: There is no such model or version.
            CorruptEntry: Nothing of that name is whole.
        """
        name, _, version = (model or self.default_name()).partition("@")
        if not name:
            raise ModelNotFound("no model is named, and there is no default one; import and activate one")
        candidates = list(self._candidates(name, version))
        if not candidates:
            raise ModelNotFound(self._not_found(name, version))
        problems: list[str] = []
        for folder in candidates:
            try:
                entry = read_entry(folder, name, folder.name)
            except CorruptEntry as error:
                problems.append(str(error))
                continue
            warnings = [*problems, f"{entry.label} takes its place"] if problems else []
            if not version and not history(folder.parent.parent, name):
                warnings.append(f"no version of {name} is active; {entry.label} is the newest")
            return replace(entry, warnings=tuple(warnings))
        raise CorruptEntry("; ".join(problems))

    def add(self, name: str, fill: Callable[[Path], Draft], version: str = "") -> ModelEntry:
        """Add a version. It is there whole or not at all.

        Args:
            name: Of the model.
            fill: Writes the files into an empty folder and says what the model is.
            version: Numbers with dots; "" for the next whole number, counted past those that were removed.

        Raises:
            EntryExists: That version is there already, or was.
            StoreError: The name or version is not legal, or what `fill` raises.
        """
        check_label(name, version)
        with self._changing():
            gone = removed(self.root, name)
            given = [version_key(v)[0] for v in (*versions(self.root, name), *gone)]
            version = version or str(max(given, default=0) + 1)
            target = self.root / name / version
            if target.exists():
                raise EntryExists(f"{name}@{version} is there already; versions never change")
            if version in gone:
                raise EntryExists(f"{name}@{version} was removed; a number is never given twice")
            with self._staging() as folder:
                manifest = as_manifest(fill(folder), name, version, hash_folder(folder))
                write_manifest(folder, manifest.to_dict())
                sync_files(folder)
                target.parent.mkdir(exist_ok=True)
                os.replace(folder, target)
            sync_folder(target.parent)
            sync_folder(self.root)
        return ModelEntry(name, version, target, manifest)

    def activate(self, label: str, check: Check, is_default: bool = False) -> ModelEntry:
        """Make a version the one that its name stands for.

        Args:
            label: `name@version`, or a name for its newest version.
            check: Runs the golden prompts and raises when they fail; the old version then stays active.
            is_default: Also serve this model when none is asked for.

        Raises:
            ModelNotFound, CorruptEntry: As in `resolve`; no other version takes its place.
            StoreError: What `check` raises.
        """
        name, _, version = label.partition("@")
        newest = next(iter(reversed(versions(self.root, name))), "")
        entry = self.resolve(f"{name}@{version or newest}" if version or newest else name)
        check(entry)
        with self._changing():
            if entry.path.parent.parent == self.root:
                if not entry.path.exists():
                    raise ModelNotFound(self._not_found(name, entry.version))
                before = [v for v in history(self.root, name) if v != entry.version]
                write_atomically(self.root / name / "active", "\n".join([entry.version, *before[:9]]) + "\n")
            elif not is_default:
                raise StoreError(f"{entry.label} is built in and active already; add --default to serve it")
            if is_default:
                write_atomically(self.root / "default", name + "\n")
        return entry

    def rollback(self, name: str, check: Check) -> tuple[ModelEntry, str]:
        """Make the version active that was so before the active one, which leaves the list of these.

        Returns:
            The version that is active now, and the label of the one that was.

        Raises:
            StoreError: As `activate`, or no other version was active before.
        """
        check_label(name, "")
        before = history(self.root, name)
        if not versions(self.root, name):
            raise ModelNotFound(self._not_found(name, ""))
        if len(before) < 2:
            raise StoreError(f"no other version of {name} was active before; activate one by name: {name}@1")
        entry = self.resolve(f"{name}@{before[1]}")
        check(entry)
        with self._changing():
            if history(self.root, name) != before:
                raise StoreError(f"another version of {name} became active meanwhile; look, and try again")
            write_atomically(self.root / name / "active", "\n".join(before[1:]) + "\n")
        return entry, f"{name}@{before[0]}"

    def remove(self, label: str, is_forced: bool = False) -> None:
        """Remove one version; a name without versions goes with its pointers. Its number stays taken.

        Args:
            label: `name@version`.
            is_forced: Remove the active version too.

        Raises:
            ModelNotFound: There is no such version, or it is built in.
            EntryInUse: The version is active and `is_forced` is false.
        """
        name, _, version = label.partition("@")
        check_label(name, version)
        folder = self.root / name / version
        with self._changing():
            if not version or not folder.is_dir():
                raise ModelNotFound(self._not_found(name, version) if version else "say which: name@version")
            active = history(self.root, name)
            if version == (active or [""])[0] and not is_forced:
                raise EntryInUse(f"{label} is active; activate another version first, or use --force")
            if kept := [v for v in active if v != version]:
                write_atomically(self.root / name / "active", "\n".join(kept) + "\n")
            elif active:
                (self.root / name / "active").unlink()
            is_last = versions(self.root, name) == [version]
            if is_last and read_line(self.root / "default") == name:
                (self.root / "default").unlink()
            gone = sorted({*removed(self.root, name), version}, key=version_key)
            write_atomically(folder.with_name("removed"), "\n".join(gone) + "\n")
            figures_path(self.root, name, version).unlink(missing_ok=True)
            os.replace(folder, Path(tempfile.mkdtemp(prefix=".removed-", dir=self.root)) / version)
            sync_folder(folder.parent)
            sweep(self.root)

    def _candidates(self, name: str, version: str) -> Iterator[Path]:
        """The folders that can stand for a name, best first: the user's store, then the built-in models.

        In each: the active version, those active before, older ones; newer ones where none is active.
        """
        for source in self._sources if is_name(name) else []:
            present, active = versions(source, name), history(source, name)
            older = [v for v in present if not active or version_key(v) < version_key(active[0])]
            order = [*active, *(v for v in reversed(older) if v not in active)]
            wanted = [v for v in present if v == version] if version else order
            yield from (source / name / v for v in wanted)

    def _not_found(self, name: str, version: str) -> str:
        names = sorted({listing.name for listing in self.listings()})
        if name in names:
            present = [listing.version for listing in self.listings() if listing.name == name]
            return f"{name} has no version {version!r}; it has {', '.join(present)}"
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"
        ways = f"a folder is written with a slash (./{name}), a model of the hub with hf: (hf:{name})"
        return f"no model {name!r} in {self.root}; {hint}; {ways}"

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=".adding-", dir=self.root))
        try:
            folder.chmod(0o755)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the store's lock; whoever dies loses it, so what lies around under it is a leftover."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a")
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error.strerror}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sweep(self.root)
            yield


def resolve(model: str, store: Path) -> ModelEntry:
    """Find and check the model that a setting names.

    Args:
        model: "" for the default, a name, `name@version`, a folder (with a `/` in it), or `hf:<hub id>`.
        store: The user's store; need not exist.

    Raises:
        StoreError: Nothing whole answers to that name; one line for a person.
    """
    try:
        if model.startswith("hf:"):
            return read_folder(download(model.removeprefix("hf:")))
        if os.sep not in model and model not in (".", ".."):
            return Store(store).resolve(model)
        folder = Path(model).expanduser()
        if folder.is_dir():
            return read_folder(folder)
    except OSError as error:
        raise StoreError(f"{error.filename or store} cannot be read: {error.strerror}") from error
    hint = f"; a model of the hub is written hf:{model}" if is_hub_id(model) else ""
    raise ModelNotFound(no_folder(model) + hint)
