"""A folder is replaced at once: a process that dies anywhere leaves the one before or the new one."""

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from model_store import atomic
from model_store.atomic import replace_folder, restore_folder

# dies before the nth thing that it does to the disk
CHILD = """
import os, signal, sys
from pathlib import Path
from model_store import atomic

last, can_exchange = int(sys.argv[1]), sys.argv[2] == "True"
new, folder = Path(sys.argv[3]), Path(sys.argv[4])
if not can_exchange:
    atomic._exchange = lambda one, other: False
done = 0

def count(event, args):
    global done
    if event in ("os.rename", "os.remove", "os.rmdir", "open", "shutil.rmtree", "ctypes.dlsym"):
        done += 1
        if done > last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
atomic.replace_folder(new, folder)
"""


def made(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("weights", "config"):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text(encoding="utf-8") for name in ("weights", "config")]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_process_that_dies_anywhere_leaves_a_whole_folder(tmp_path: Path, can_exchange: bool) -> None:
    seen = set()
    for last in count():
        run = tmp_path / str(last)
        new, folder = made(run / ".model.unfinished", "new"), made(run / "model", "old")
        given = [str(last), str(can_exchange), str(new), str(folder)]
        code = subprocess.run([sys.executable, "-c", CHILD, *given], check=False).returncode
        if not can_exchange:
            restore_folder(folder)
        found = texts(folder)
        assert found in (["old"] * 2, ["new"] * 2)
        seen.add(found[0])
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert seen == {"old", "new"} and last > 3
    assert os.listdir(run) == ["model"]


def test_a_folder_takes_an_empty_place_too(tmp_path: Path) -> None:
    replace_folder(made(tmp_path / "new", "new"), tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"] and texts(tmp_path / "model") == ["new"] * 2


def test_two_folders_are_exchanged_here(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", "one"), made(tmp_path / "other", "other")
    assert atomic._exchange(one, other)
    assert (texts(one), texts(other)) == (["other"] * 2, ["one"] * 2)
    assert not atomic._exchange(one, tmp_path / "none")
