"""The store under faults: processes that are really killed, files that are damaged. Nothing sleeps."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_store import CHILD, accept, fill_with, flip_byte, leftovers, make_store, weights

from model_store.errors import CorruptEntry
from model_store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two versions of `story`; the first is active."""
    return make_store(tmp_path / "store")


@pytest.fixture
def both_used(store: Store) -> Store:
    """The same, with the second version active after the first."""
    store.activate("story@2", accept)
    return store


# --- killed processes


def kill_at(store: Store, what: str, point: str, count: int) -> int:
    """Run a change in a process that kills itself at the (count + 1)th call of `os.<point>`."""
    command = [sys.executable, "-c", CHILD, str(store.root), what, point, str(count)]
    return subprocess.run(command, check=False, capture_output=True).returncode


@pytest.mark.parametrize(
    ("point", "count"),
    [("fsync", 0), ("fsync", 1), ("fsync", 3), ("replace", 0), ("replace", 1), ("walk", 0)],
)
def test_a_process_killed_while_adding_leaves_the_old_versions(store: Store, point: str, count: int) -> None:
    assert kill_at(store, "add", point, count) == -signal.SIGKILL
    assert [listing.version for listing in store.listings()] == ["1", "2"]


def test_a_process_killed_after_the_rename_leaves_a_whole_version(store: Store) -> None:
    assert kill_at(store, "add", "fsync", 6) == -signal.SIGKILL
    assert store.resolve("story@3").manifest.files["weights.bin"].size == 5000


def test_leftovers_are_swept_by_the_next_change(store: Store) -> None:
    kill_at(store, "add", "replace", 1)
    assert leftovers(store)
    store.add("story", fill_with(b"3"))
    assert (leftovers(store), len(store.listings())) == ([], 3)


@pytest.mark.parametrize(("point", "count"), [("fsync", 0), ("replace", 0)])
def test_a_process_killed_while_activating_leaves_the_old_version(
    store: Store, point: str, count: int
) -> None:
    assert kill_at(store, "activate", point, count) == -signal.SIGKILL
    assert store.resolve("story").version == "1"


def test_a_process_killed_between_the_pointers_has_activated(store: Store) -> None:
    assert kill_at(store, "activate", "replace", 1) == -signal.SIGKILL
    assert (store.resolve("story").version, store.default_name()) == ("2", "")


@pytest.mark.parametrize("count", [0, 1])
def test_a_process_killed_while_removing_leaves_a_model_that_loads(both_used: Store, count: int) -> None:
    kill_at(both_used, "remove", "replace", count)
    assert both_used.resolve("story").version == "2"


# --- corrupt entries


def test_a_flipped_byte_is_noticed(store: Store) -> None:
    flip_byte(weights(store, "2"))
    with pytest.raises(CorruptEntry, match=r"story@2 .* weights\.bin differs from its checksum"):
        store.resolve("story@2")


def test_a_truncated_file_is_noticed(store: Store) -> None:
    os.truncate(weights(store, "2"), 4999)
    with pytest.raises(CorruptEntry, match=r"weights\.bin has 4999 bytes instead of 5000"):
        store.resolve("story@2")


def test_a_missing_file_is_noticed(store: Store) -> None:
    weights(store, "2").unlink()
    with pytest.raises(CorruptEntry, match=r"weights\.bin is missing"):
        store.resolve("story@2")


def test_an_extra_file_is_noticed(store: Store) -> None:
    weights(store, "2").with_name("pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CorruptEntry, match=r"pytorch_model\.bin does not belong to it"):
        store.resolve("story@2")


def test_an_entry_without_manifest_is_refused(store: Store) -> None:
    (store.root / "story" / "2" / "manifest.json").unlink()
    with pytest.raises(CorruptEntry, match=r"story@2 .* manifest\.json: file: cannot be read"):
        store.resolve("story@2")


def test_a_changed_manifest_is_refused(store: Store) -> None:
    path = store.root / "story" / "2" / "manifest.json"
    path.write_text(path.read_text().replace('"none"', '"MIT"'))
    with pytest.raises(CorruptEntry, match="checksum: does not fit"):
        store.resolve("story@2")


def test_an_entry_under_another_name_is_refused(store: Store) -> None:
    (store.root / "story").rename(store.root / "poem")
    with pytest.raises(CorruptEntry, match="its manifest is that of story@1"):
        store.resolve("poem@1")


def test_the_version_active_before_takes_the_place_of_a_corrupt_one(both_used: Store) -> None:
    flip_byte(weights(both_used, "2"))
    entry = both_used.resolve("story")
    assert entry.version == "1" and "story@2" in entry.warnings[0] and entry.warnings[1].startswith("story@1")


def test_a_newer_version_that_was_never_active_takes_no_place(both_used: Store) -> None:
    both_used.add("story", fill_with(b"3"))
    flip_byte(weights(both_used, "2"))
    assert both_used.resolve("story").version == "1"


def test_a_whole_version_gives_no_warning(store: Store) -> None:
    assert store.resolve("story").warnings == ()


def test_no_version_takes_the_place_of_one_asked_for_by_number(both_used: Store) -> None:
    flip_byte(weights(both_used, "2"))
    with pytest.raises(CorruptEntry):
        both_used.resolve("story@2")


def test_every_problem_is_named_when_nothing_is_whole(store: Store) -> None:
    flip_byte(weights(store, "1"))
    with pytest.raises(CorruptEntry, match="story@1"):
        store.resolve("story")
