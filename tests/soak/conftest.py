"""The model that the storms run on: tiny, but with words for tokens and a window that real prompts fit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_CHECKPOINT = Path(__file__).resolve().parents[2] / "bench" / "checkpoint.py"


@pytest.fixture(scope="session")
def storm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random 2-layer GPT-2 with a window of 256 tokens, a word each."""
    return _made(tmp_path_factory.mktemp("storm") / "tiny", "tiny")


@pytest.fixture(scope="session")
def gpt2_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 of the real size, whose capacity the model bounds and not its load's cost."""
    return _made(tmp_path_factory.mktemp("storm") / "124m", "124m")


def _made(folder: Path, shape: str) -> Path:
    spec = importlib.util.spec_from_file_location("checkpoint", _CHECKPOINT)
    assert spec is not None and spec.loader is not None
    checkpoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checkpoint)
    made: Path = checkpoint.make_checkpoint(folder, shape)
    return made
