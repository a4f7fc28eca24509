"""One entry of the store on disk: its files, their checksums, and what is wrong with them.

No names and versions here, no activation: `model_store/store.py`.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model_store.checkpoint import require_config
from model_store.errors import CorruptEntry, InvalidManifest
from model_store.hub import folder_name
from model_store.manifest import (
    MANIFEST,
    Draft,
    FileRecord,
    Manifest,
    parse_draft,
    parse_manifest,
    read_json_manifest,
)
from model_store.task import Task


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be loaded.

    Args:
        name: Of the model, or of the folder.
        version: Of the model; "" for a plain folder.
        path: The folder, in Hugging Face format.
        manifest: What it says of itself; for a plain folder, default tasks and no files.
        warnings: What a log should say: that another version was asked for, and why it is not this one.
    """

    name: str
    version: str
    path: Path
    manifest: Manifest
    warnings: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """`name@version`, or the name alone for a plain folder."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks it serves, by name."""
        return self.manifest.tasks


def hash_file(path: Path) -> FileRecord:
    """Read a file once and give its checksum and size."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(digest, file.tell())


def hash_folder(folder: Path) -> dict[str, FileRecord]:
    """Checksum every file of a folder but the manifest, several at a time.

    Raises:
        CorruptEntry: Something in it is neither a file nor a folder.
    """
    paths = list_files(folder)
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(paths, pool.map(lambda path: hash_file(folder / path), paths), strict=True))


def sync_files(folder: Path) -> None:
    """Make every file of a folder last through a power cut, the folders' names too."""
    for parent, _, names in os.walk(folder):
        for path in [*(Path(parent, name) for name in names), Path(parent)]:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def list_files(folder: Path) -> list[str]:
    """Give the paths of a folder's files but the manifest, sorted, with `/`.

    Raises:
        CorruptEntry: A symbolic link or something else that is no file; an entry holds plain files only.
    """
    relatives = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CorruptEntry(f"{relative} is not a plain file")
        if path.is_file() and relative != MANIFEST:
            relatives.append(relative)
    return relatives


def read_entry(folder: Path, name: str, version: str) -> ModelEntry:
    """Read and check an entry: the manifest, that all files are there and no other, every checksum.

    Raises:
        CorruptEntry: Names the entry and the first thing that is wrong.

    Cost: reads every byte; 1 to 2 GB/s for each of up to four files.
    """
    try:
        manifest = parse_manifest(read_json_manifest(folder))
        if (manifest.name, manifest.version) != (name, version):
            raise CorruptEntry(f"its manifest is that of {manifest.name}@{manifest.version}")
        check_files(folder, manifest.files)
    except (InvalidManifest, CorruptEntry, OSError) as error:
        raise CorruptEntry(f"{name}@{version} in {folder} is corrupt: {error}") from error
    return ModelEntry(name, version, folder, manifest)


def check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Compare a folder with its checksums; sizes first, since they cost nothing.

    Raises:
        CorruptEntry: Names the file.
    """
    present = set(list_files(folder))
    for path, record in files.items():
        if path not in present:
            raise CorruptEntry(f"{path} is missing")
        size = (folder / path).stat().st_size
        if size != record.size:
            raise CorruptEntry(f"{path} has {size} bytes instead of {record.size}")
    if extra := sorted(present - files.keys()):
        raise CorruptEntry(f"{extra[0]} does not belong to it")
    for path, actual in hash_folder(folder).items():
        if actual.sha256 != files[path].sha256:
            raise CorruptEntry(f"{path} differs from its checksum")


def read_folder(folder: Path) -> ModelEntry:
    """Read a folder that is in no store. What it has is checked; a manifest is not asked for.

    Raises:
        UnsupportedCheckpoint: It holds no config.json.
        CorruptEntry: It has a manifest and differs from it.
    """
    require_config(folder)
    name = folder_name(folder)
    try:
        values = read_json_manifest(folder) if os.path.lexists(folder / MANIFEST) else {}
        if "checksum" not in values:
            return ModelEntry(name, "", folder, as_manifest(parse_draft(values)))
        manifest = parse_manifest(values)
        check_files(folder, manifest.files)
    except (InvalidManifest, CorruptEntry, OSError) as error:
        raise CorruptEntry(f"{folder} is corrupt: {error}") from error
    return ModelEntry(manifest.name, manifest.version, folder, manifest)


def as_manifest(
    draft: Draft, name: str = "", version: str = "", files: Mapping[str, FileRecord] | None = None
) -> Manifest:
    """Give a draft its name, version and checksums."""
    values = {key: getattr(draft, key) for key in Draft.__dataclass_fields__}
    return Manifest(**values, name=name, version=version, files=files or {})
