"""Manifests: what may stand in one, and that an error names the key."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from model_store.entry import as_manifest
from model_store.errors import InvalidManifest
from model_store.manifest import (
    Draft,
    FileRecord,
    GoldenPrompt,
    is_name,
    is_version,
    parse_draft,
    parse_manifest,
    read_json_manifest,
    version_key,
)

DRAFT = Draft(
    architecture={"type": "gpt2", "n_layer": 2},
    parameters=1234,
    license="CC-BY 4.0",
    data=("A source, with attribution",),
    evaluation={"qa": {"f1": 31.5}},
    command="textgen model finetune",
    golden=(GoldenPrompt((1, 2), (3,), "a"),),
)
MANIFEST = as_manifest(DRAFT, "story", "1.2", {"config.json": FileRecord("0" * 64, 10)})


def with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Give values the checksum that fits them, so that the next check is the one that speaks."""
    rest = {key: value for key, value in values.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def test_a_manifest_survives_the_way_through_a_file() -> None:
    assert parse_manifest(json.loads(json.dumps(MANIFEST.to_dict()))) == MANIFEST


def test_a_draft_without_keys_has_default_tasks() -> None:
    assert list(parse_draft({}).tasks) == ["generate", "summarize", "qa"]


def test_a_changed_value_is_noticed() -> None:
    values = MANIFEST.to_dict()
    values["tasks"][1]["template"] = "{text}\nShort:"
    with pytest.raises(InvalidManifest, match="checksum: does not fit"):
        parse_manifest(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: must be 1"),
        ({"name": "../evil"}, "name: must be lower-case"),
        ({"version": "one"}, "version: must be numbers with dots"),
        ({"parameters": "many"}, "parameters: must be an integer"),
        ({"parameters": True}, "parameters: must be an integer"),
        ({"license": None}, "license: must be a string"),
        ({"data": ["a", 5]}, "data: must be a list of strings"),
        ({"evaluation": []}, "evaluation: must be an object"),
        ({"tasks": []}, "tasks: must be a list of at least one task"),
        ({"tasks": [{"name": "a", "kind": "generate"}]}, "tasks[0].template: is missing"),
        ({"files": {}}, "files: must be an object with at least one file"),
        ({"files": {"../x": {}}}, "files.../x: must be a path within the entry"),
        ({"files": {"/x": {}}}, "files./x: must be a path within the entry"),
        ({"files": {"x": {"sha256": "0", "size": 1}}}, "files.x.sha256: must be 64 hexadecimal digits"),
        ({"files": {"x": {"sha256": "0" * 64, "size": -1}}}, "files.x.size: must be a number of bytes"),
        ({"golden": [5]}, "golden[0]: must be an object"),
        ({"golden": [{"prompt_ids": []}]}, "golden[0].expected_ids: must be a list"),
        ({"golden": [{"prompt_ids": [], "expected_ids": []}]}, "golden[0].prompt_ids: must not be empty"),
        ({"golden": [{"prompt_ids": [-1], "expected_ids": []}]}, "golden[0].prompt_ids: must be a list"),
    ],
)
def test_a_wrong_value_names_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(with_checksum({**MANIFEST.to_dict(), **change}))
    assert f"manifest.json: {message}" in str(caught.value)


@pytest.mark.parametrize("key", ["format", "name", "version", "tasks", "files", "checksum"])
def test_a_missing_key_is_named(key: str) -> None:
    values = {name: value for name, value in MANIFEST.to_dict().items() if name != key}
    with pytest.raises(InvalidManifest, match=key):
        parse_manifest(values)


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "[" * 99_999], ids=str.__len__)
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InvalidManifest, match="file: "):
        read_json_manifest(tmp_path)


def test_versions_sort_as_numbers() -> None:
    assert sorted(["10", "2.10", "2", "2.9"], key=version_key) == ["2", "2.9", "2.10", "10"]


@pytest.mark.parametrize("text", ["", "1.", "v1", "01", "1.2.3.4.5", "-1", "../1", "1\n"])
def test_what_is_no_version_is_refused(text: str) -> None:
    assert not is_version(text)


@pytest.mark.parametrize("text", ["", "A", "a b", ".a", "-a", "a/b", "a" * 65, "a\n"])
def test_what_is_no_name_is_refused(text: str) -> None:
    assert not is_name(text)
