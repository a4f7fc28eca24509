"""Which device computes, and what suits it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from service.engine.devices import NoSuchDevice, find_device
from service.engine_setup import engine_config
from service.errors import SettingsError
from service.settings import load_settings


@pytest.mark.parametrize(
    ("has_gpu", "wanted", "device"),
    [(False, "auto", "cpu"), (True, "auto", "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda")],
)
def test_a_gpu_is_taken_where_there_is_one_and_nobody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, wanted: str, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert find_device(wanted) == device


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoSuchDevice):
        find_device("cuda")
    with pytest.raises(SettingsError, match=r"^TEXTGEN_DEVICE is cuda, and no CUDA device can be used here$"):
        engine_config(load_settings({"device": "cuda"}), Path())


@pytest.mark.parametrize(("has_gpu", "limits"), [(False, (192, 64)), (True, (2048, 256))])
def test_limits_that_nobody_sets_suit_the_device(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, limits: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    config = engine_config(load_settings(), Path())
    assert (config.max_batch_tokens, config.max_running) == limits


def test_a_step_has_room_for_all_that_may_run() -> None:
    config = engine_config(load_settings({"device": "cpu", "max_running": "300"}), Path())
    assert (config.max_batch_tokens, config.max_running) == (600, 300)


def test_old_names_of_settings_are_told_once_in_the_log() -> None:
    with capture_logs() as lines:
        config = engine_config(load_settings({"device": "cpu", "quantization": "int8"}), Path())
    assert config.precision == "int8"
    (line,) = lines
    assert line["log_level"] == "warning" and "say TEXTGEN_PRECISION=int8 instead" in line["event"]


def test_limits_that_somebody_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = engine_config(load_settings({"max_batch_tokens": "33", "max_running": "3"}), Path())
    assert (config.max_batch_tokens, config.max_running) == (33, 3)
