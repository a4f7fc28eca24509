"""How much memory the engine takes for keys and values when nobody says."""

from __future__ import annotations

import pytest
from tiny import checkpoint

from model_store.architecture import read_architecture
from model_store.errors import UnsupportedCheckpoint
from service.engine.backends.torch.backend import TorchBackend
from service.engine.config import EngineConfig
from service.engine.devices import Host
from service.engine.loader import BLOCK_SIZE, allocate_cache

BACKEND = TorchBackend("float32", is_exact=True)


def num_blocks(max_running: int, free: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of a cache of automatic size, with so many bytes of memory free."""
    monkeypatch.setattr(Host, "free_bytes", lambda self: free)
    config = EngineConfig(checkpoint(1), max_running=max_running)
    return int(allocate_cache(config, read_architecture(config.folder), BACKEND).k.shape[1])


def test_the_cache_holds_half_of_the_running_texts_at_full_length(monkeypatch: pytest.MonkeyPatch) -> None:
    per_text = -(-read_architecture(checkpoint(1)).n_positions // BLOCK_SIZE)
    assert num_blocks(9, 1 << 30, monkeypatch) == 5 * per_text
    assert num_blocks(1, 1 << 30, monkeypatch) == per_text


def test_the_cache_takes_a_quarter_of_the_free_memory_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    per_block = read_architecture(checkpoint(1)).kv_bytes_per_token(4) * BLOCK_SIZE
    assert num_blocks(64, 4 * 100 * per_block, monkeypatch) == 100


def test_a_cache_larger_than_the_free_memory_is_refused_with_what_is_legal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Host, "free_bytes", lambda self: 1 << 30)
    config = EngineConfig(checkpoint(1), kv_cache_bytes=(1 << 30) + 1)
    with pytest.raises(UnsupportedCheckpoint, match=r"^`kv_cache_bytes` .* auto, or \d+ … 1073741824$"):
        allocate_cache(config, read_architecture(config.folder), BACKEND)
