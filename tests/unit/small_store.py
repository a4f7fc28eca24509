"""A small store for tests: two versions of `story` with weights of one letter, and ways to spoil them."""

from collections.abc import Callable
from pathlib import Path

from model_store.entry import ModelEntry
from model_store.manifest import Draft
from model_store.store import Store

CHILD = """
import os, signal, sys
from pathlib import Path
from model_store.manifest import Draft
from model_store.store import Store

root, what, point, countdown = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
real = getattr(os, point)

def die_later(*args, **kwargs):
    global countdown
    countdown -= 1
    if countdown < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

def fill(folder):
    (folder / "config.json").write_text("{}")
    (folder / "weights.bin").write_bytes(b"2" * 5000)
    return Draft()

setattr(os, point, die_later)
store = Store(root, builtin=None)
if what == "add":
    store.add("story", fill)
elif what == "activate":
    store.activate("story@2", lambda entry: None, is_default=True)
else:
    store.remove("story@1", is_forced=True)
"""


def make_store(root: Path) -> Store:
    """Make a store with two versions of `story`; the first is active."""
    made = Store(root, builtin=None)
    made.add("story", fill_with(b"1" * 5000))
    made.activate("story", accept)
    made.add("story", fill_with(b"2" * 5000))
    return made


def fill_with(content: bytes) -> Callable[[Path], Draft]:
    def fill(folder: Path) -> Draft:
        (folder / "config.json").write_text("{}")
        (folder / "weights.bin").write_bytes(content)
        return Draft(license="none")

    return fill


def accept(entry: ModelEntry) -> None:
    """A check that every model passes."""


def weights(store: Store, version: str) -> Path:
    return store.root / "story" / version / "weights.bin"


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def leftovers(store: Store) -> list[str]:
    return [path.name for path in store.root.glob(".[!l]*")]
