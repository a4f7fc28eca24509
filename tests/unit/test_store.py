"""The store: versions, pointers, names. Faults are in `test_store_faults.py`."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_store import CHILD, accept, fill_with, flip_byte, leftovers, make_store, weights

from model_store.entry import ModelEntry
from model_store.errors import (
    CorruptEntry,
    EntryExists,
    EntryInUse,
    GoldenMismatch,
    ModelNotFound,
    StoreError,
    UnsupportedCheckpoint,
)
from model_store.manifest import Draft
from model_store.store import Store, resolve


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two versions of `story`; the first is active."""
    return make_store(tmp_path / "store")


@pytest.fixture
def both_used(store: Store) -> Store:
    """The same, with the second version active after the first."""
    store.activate("story@2", accept)
    return store


def reject(entry: ModelEntry) -> None:
    raise GoldenMismatch("golden prompt 0")


# --- adding


def test_versions_are_counted_up(store: Store) -> None:
    assert [listing.version for listing in store.listings()] == ["1", "2"]


def test_a_new_version_does_not_become_active(store: Store) -> None:
    assert store.resolve("story").version == "1"


def test_a_version_that_is_there_is_not_replaced(store: Store) -> None:
    with pytest.raises(EntryExists, match="story@2 is there already"):
        store.add("story", fill_with(b"3"), "2")


def test_a_number_is_never_given_twice(store: Store) -> None:
    store.remove("story@2")
    assert store.add("story", fill_with(b"3")).version == "3"
    with pytest.raises(EntryExists, match="story@2 was removed; a number is never given twice"):
        store.add("story", fill_with(b"2"), "2")


def test_a_number_stays_taken_after_the_last_version_is_gone(store: Store) -> None:
    for version in ("story@1", "story@2"):
        store.remove(version, is_forced=True)
    assert store.add("story", fill_with(b"3")).version == "3"


def test_versions_are_ordered_as_numbers(store: Store) -> None:
    store.add("story", fill_with(b"3"), "10")
    store.add("story", fill_with(b"3"), "9")
    assert [listing.version for listing in store.listings()] == ["1", "2", "9", "10"]


def test_the_manifest_holds_the_checksum_of_every_file(store: Store) -> None:
    files = store.resolve("story@2").manifest.files
    assert {path: record.sha256 for path, record in files.items()} == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "weights.bin": hashlib.sha256(b"2" * 5000).hexdigest(),
    }


def test_nothing_stays_when_filling_fails(store: Store) -> None:
    def fail(folder: Path) -> Draft:
        (folder / "half").write_text("half")
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        store.add("story", fail)
    assert (len(store.listings()), leftovers(store)) == (2, [])


@pytest.mark.parametrize("name", ["", "../evil", "Story", "a/b"])
def test_an_illegal_name_is_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="is not legal"):
        store.add(name, fill_with(b"3"))


@pytest.mark.parametrize("version", ["..", "v1", "1/2"])
def test_an_illegal_version_is_refused(store: Store, version: str) -> None:
    with pytest.raises(StoreError, match="is not legal"):
        store.add("story", fill_with(b"3"), version)


def test_a_link_in_an_entry_is_refused(store: Store) -> None:
    def link(folder: Path) -> Draft:
        (folder / "weights.bin").symlink_to("/etc/hostname")
        return Draft()

    with pytest.raises(CorruptEntry, match=r"weights\.bin is not a plain file"):
        store.add("story", link)


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "store").add("story", fill_with(b"3"))


# --- activating


def test_a_model_that_fails_its_golden_prompts_is_not_activated(store: Store) -> None:
    with pytest.raises(GoldenMismatch):
        store.activate("story@2", reject)
    assert store.resolve("story").version == "1"


def test_a_corrupt_version_is_not_activated(store: Store) -> None:
    flip_byte(weights(store, "2"))
    with pytest.raises(CorruptEntry):
        store.activate("story@2", accept)


def test_a_name_alone_activates_the_newest_version(store: Store) -> None:
    assert store.activate("story", accept).version == "2"


def test_the_default_is_what_an_empty_name_resolves_to(store: Store) -> None:
    store.activate("story@2", accept, is_default=True)
    assert store.resolve("").label == "story@2"


def test_a_rollback_goes_to_the_version_active_before(both_used: Store) -> None:
    entry, left = both_used.rollback("story", accept)
    assert (entry.label, left, both_used.resolve("story").version) == ("story@1", "story@2", "1")


def test_rollbacks_go_further_back_each_time(both_used: Store) -> None:
    both_used.add("story", fill_with(b"3"))
    both_used.activate("story@3", accept)
    both_used.rollback("story", accept)
    assert both_used.rollback("story", accept)[0].label == "story@1"
    with pytest.raises(StoreError, match="no other version of story was active before"):
        both_used.rollback("story", accept)


def test_a_rollback_to_what_fails_its_golden_prompts_changes_nothing(both_used: Store) -> None:
    with pytest.raises(GoldenMismatch):
        both_used.rollback("story", reject)
    assert both_used.resolve("story").version == "2"


def test_a_rollback_of_an_unknown_model_names_those_there_are(store: Store) -> None:
    with pytest.raises(ModelNotFound, match="did you mean story"):
        store.rollback("stori", accept)


def test_many_activations_at_once_leave_one_whole_pointer(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.activate(f"story@{n % 2 + 1}", accept), range(40)))
    lines = (store.root / "story" / "active").read_text().split()
    assert sorted(lines) == ["1", "2"] and store.resolve("story").version == lines[0]


def test_two_processes_that_add_at_once_both_succeed(store: Store) -> None:
    command = [sys.executable, "-c", CHILD, str(store.root), "add", "walk", "1000"]
    children = [subprocess.Popen(command) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert [store.resolve(f"story@{n}").version for n in (3, 4)] == ["3", "4"]


# --- removing


def test_the_active_version_is_not_removed(store: Store) -> None:
    with pytest.raises(EntryInUse, match="story@1 is active"):
        store.remove("story@1")


def test_the_active_version_goes_when_forced_and_the_one_before_is_active(both_used: Store) -> None:
    both_used.remove("story@2", is_forced=True)
    assert both_used.resolve("story").version == "1" and not leftovers(both_used)


def test_the_last_version_goes_with_its_pointers(store: Store) -> None:
    store.activate("story@1", accept, is_default=True)
    store.remove("story@2")
    store.remove("story@1", is_forced=True)
    assert (store.listings(), store.default_name()) == ([], "")


def test_a_corrupt_version_can_be_removed(store: Store) -> None:
    (store.root / "story" / "2" / "manifest.json").unlink()
    store.remove("story@2")
    assert len(store.listings()) == 1


def test_removing_needs_a_version(store: Store) -> None:
    with pytest.raises(ModelNotFound, match="name@version"):
        store.remove("story")


# --- names


def test_an_unknown_name_suggests_a_near_one(store: Store) -> None:
    with pytest.raises(ModelNotFound, match="did you mean story"):
        store.resolve("storry")


def test_an_unknown_version_lists_those_there_are(store: Store) -> None:
    with pytest.raises(ModelNotFound, match="it has 1, 2"):
        store.resolve("story@7")


def test_an_empty_store_has_no_default(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no default"):
        Store(tmp_path, builtin=None).resolve("")


def test_the_built_in_models_are_a_second_source(store: Store, tmp_path: Path) -> None:
    store.activate("story@2", accept, is_default=True)
    user = Store(tmp_path / "user", builtin=store.root)
    assert user.resolve("").label == "story@2" and user.listings()[0].is_builtin


def test_a_built_in_model_cannot_be_removed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        Store(tmp_path / "user", builtin=store.root).remove("story@2")


def test_a_built_in_model_takes_the_place_of_a_corrupt_one_of_its_name(store: Store, tmp_path: Path) -> None:
    user = Store(tmp_path / "user", builtin=store.root)
    user.add("story", fill_with(b"mine"), "7")
    flip_byte(user.root / "story" / "7" / "weights.bin")
    assert user.resolve("story").label == "story@1"


# --- folders


def test_a_plain_folder_gets_default_tasks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert list(resolve(str(tmp_path), tmp_path / "store").tasks) == ["generate", "summarize", "qa"]


def test_an_entrys_folder_is_verified_too(store: Store, tmp_path: Path) -> None:
    flip_byte(weights(store, "2"))
    with pytest.raises(CorruptEntry, match="differs from its checksum"):
        resolve(str(store.root / "story" / "2"), tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        resolve(str(tmp_path / "none"), tmp_path)


def test_a_file_is_answered_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "gpt2.Q8_0.gguf").touch()
    with pytest.raises(ModelNotFound, match=f"Q8_0.gguf is a file; name the folder .* {tmp_path}$"):
        resolve(str(tmp_path / "gpt2.Q8_0.gguf"), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"config\.json is missing"):
        resolve(str(tmp_path), tmp_path)
