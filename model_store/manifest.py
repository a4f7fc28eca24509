"""What `manifest.json` holds: the files' checksums, what the model is, what it can do, where it comes from.

A `Draft` is what the maker of a model knows; `Manifest` is a draft with a name, a version and checksums, as
it lies in the store. Parsing names the wrong key. Nothing here touches weights: see `model_store/entry.py`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from model_store.atomic import write_atomically
from model_store.default_tasks import default_tasks
from model_store.errors import InvalidManifest, InvalidTask, UnreadableFile
from model_store.files import read_json
from model_store.task import Task
from model_store.task_files import tasks_from_list, with_generate

MANIFEST = "manifest.json"
FORMAT = 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt and what the model must say to it, greedily.

    Args:
        prompt_ids: At least one token.
        expected_ids: The greedy continuation.
        expected: Its text, for people.
    """

    prompt_ids: tuple[int, ...]
    expected_ids: tuple[int, ...]
    expected: str

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values."""
        ids = {"prompt_ids": list(self.prompt_ids), "expected_ids": list(self.expected_ids)}
        return {**ids, "expected": self.expected}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an entry: its checksum and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Draft:
    """What the maker of a model says about it.

    Args:
        tasks: What it was trained to do, by name; `generate` is added when it is missing.
        architecture: From config.json, for people.
        parameters: How many numbers were trained; tied ones once.
        license: Of the weights.
        data: What it was trained on, one source a line, with attribution.
        evaluation: Measured figures, any JSON object.
        command: The command that made it.
        golden: Prompts that activation runs.
    """

    tasks: Mapping[str, Task] = field(default_factory=default_tasks)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    license: str = ""
    data: tuple[str, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    golden: tuple[GoldenPrompt, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values; `parse_draft` reads them back."""
        return {
            "architecture": dict(self.architecture),
            "parameters": self.parameters,
            "tasks": [task.to_dict() for task in self.tasks.values()],
            "evaluation": dict(self.evaluation),
            "data": list(self.data),
            "license": self.license,
            "command": self.command,
            "golden": [prompt.to_dict() for prompt in self.golden],
        }


@dataclass(frozen=True, slots=True)
class Manifest(Draft):
    """A draft that has become an entry.

    Args:
        name: Of the model.
        version: Numbers with dots.
        files: Path within the entry, with `/` -> checksum and size; every file but the manifest.
    """

    name: str = ""
    version: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give JSON values, with a checksum over them all."""
        files = {path: {"sha256": r.sha256, "size": r.size} for path, r in sorted(self.files.items())}
        head = {"format": FORMAT, "name": self.name, "version": self.version}
        values = {**head, **Draft.to_dict(self), "files": files}
        return {**values, "checksum": _checksum(values)}


def is_name(text: str) -> bool:
    """Say whether a text can name a model: lower-case letters, digits, `.`, `_`, `-`; at most 64."""
    return bool(_NAME.fullmatch(text))


def is_version(text: str) -> bool:
    """Say whether a text is a version: up to four numbers with dots."""
    return bool(_VERSION.fullmatch(text))


def version_key(version: str) -> tuple[int, ...]:
    """Give what versions are sorted by: 2 < 2.1 < 10."""
    return tuple(int(part) for part in version.split("."))


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Write `manifest.json` in one atomic step."""
    write_atomically(folder / MANIFEST, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json_manifest(folder: Path) -> dict[str, Any]:
    """Read `manifest.json` as JSON.

    Raises:
        InvalidManifest: The file cannot be read or holds no JSON object.
    """
    try:
        return read_json(folder / MANIFEST)
    except UnreadableFile as error:
        raise InvalidManifest("file", f"cannot be read: {error}") from error


def parse_draft(values: Mapping[str, Any]) -> Draft:
    """Read what a maker wrote; keys that only an entry has are ignored.

    Raises:
        InvalidManifest: A value is not legal; the message names its key.
    """
    return Draft(**_draft_values(values))


def parse_manifest(values: Mapping[str, Any]) -> Manifest:
    """Read an entry's manifest, its own checksum included.

    Raises:
        InvalidManifest: A key is missing, a value is not legal, or the manifest was changed.
    """
    if values.get("format") != FORMAT:
        raise InvalidManifest("format", f"must be {FORMAT}")
    for key in ("name", "version", "tasks", "files", "checksum"):
        if key not in values:
            raise InvalidManifest(key, "is missing")
    if values["checksum"] != _checksum({key: value for key, value in values.items() if key != "checksum"}):
        raise InvalidManifest("checksum", "does not fit the content: the manifest was changed")
    name, version = _get(values, "name", str, ""), _get(values, "version", str, "")
    if not is_name(name):
        raise InvalidManifest("name", "must be lower-case letters, digits, '.', '_' or '-'")
    if not is_version(version):
        raise InvalidManifest("version", "must be numbers with dots, as 1 or 1.2")
    if not isinstance(values["files"], dict) or not values["files"]:
        raise InvalidManifest("files", "must be an object with at least one file")
    files = {path: _file(path, value) for path, value in values["files"].items()}
    return Manifest(**_draft_values(values), name=name, version=version, files=files)


def _draft_values(values: Mapping[str, Any]) -> dict[str, Any]:
    data: list[Any] = _get(values, "data", list, [])
    if not all(isinstance(line, str) for line in data):
        raise InvalidManifest("data", "must be a list of strings")
    golden: list[Any] = _get(values, "golden", list, [])
    return {
        "tasks": _tasks(values),
        "architecture": _get(values, "architecture", dict, {}),
        "parameters": _get(values, "parameters", int, 0),
        "license": _get(values, "license", str, ""),
        "data": tuple(data),
        "evaluation": _get(values, "evaluation", dict, {}),
        "command": _get(values, "command", str, ""),
        "golden": tuple(_golden(index, item) for index, item in enumerate(golden)),
    }


def _tasks(values: Mapping[str, Any]) -> dict[str, Task]:
    if "tasks" not in values:
        return default_tasks()
    try:
        return with_generate(tasks_from_list(values["tasks"]))
    except InvalidTask as error:
        raise InvalidManifest(error.key, error.problem) from error


def _file(path: str, value: object) -> FileRecord:
    key = f"files.{path}"
    if not is_inside(path):
        raise InvalidManifest(key, "must be a path within the entry")
    if not isinstance(value, dict):
        raise InvalidManifest(key, "must be an object with sha256 and size")
    digest, size = value.get("sha256"), value.get("size")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise InvalidManifest(f"{key}.sha256", "must be 64 hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidManifest(f"{key}.size", "must be a number of bytes")
    return FileRecord(digest, size)


def is_inside(path: str) -> bool:
    """Say whether a relative path with `/` stays within its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path


def _golden(index: int, value: object) -> GoldenPrompt:
    key = f"golden[{index}]"
    if not isinstance(value, dict):
        raise InvalidManifest(key, "must be an object")
    prompt_ids, expected_ids = (_ids(key, name, value.get(name)) for name in ("prompt_ids", "expected_ids"))
    if not prompt_ids:
        raise InvalidManifest(f"{key}.prompt_ids", "must not be empty")
    return GoldenPrompt(prompt_ids, expected_ids, _get(value, "expected", str, ""))


def _ids(key: str, name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise InvalidManifest(f"{key}.{name}", "must be a list of token ids")
    return tuple(value)


def _get(values: Mapping[str, Any], key: str, kind: Callable[..., _Value], default: _Value) -> _Value:
    value = values.get(key, default)
    if type(value) is not kind:
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
        raise InvalidManifest(key, f"must be {names[kind]}")  # type: ignore[index]  # one of the four above
    return value  # type: ignore[no-any-return]  # its type was just checked


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
