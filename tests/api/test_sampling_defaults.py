"""What is sampled when a request does not say how: the checkpoint's own way, else what suits small models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_service import Live


@pytest.fixture(scope="module")
def opinionated(
    serve: Callable[..., Live], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Live:
    """A checkpoint with sampling defaults of its own."""
    folder = tmp_path_factory.mktemp("models") / "opinionated"
    shutil.copytree(tiny_model, folder)
    config: dict[str, Any] = {"eos_token_id": 256, "temperature": 0.5, "top_k": 3}
    (folder / "generation_config.json").write_text(json.dumps(config))
    return serve(model=str(folder))


def texts(live: Live, **fields: Any) -> list[str]:
    body = {"prompt": "the sea", "seed": 4, "n": 4, "max_new_tokens": 12, **fields}
    return [choice["text"] for choice in live.post("/generate", body).json()["choices"]]


def test_a_checkpoints_own_defaults_apply_and_are_shown(opinionated: Live) -> None:
    assert opinionated.http.get("/info").json()["model"]["sampling"] == {"temperature": 0.5, "top_k": 3}
    assert texts(opinionated) == texts(opinionated, temperature=0.5, top_k=3)


def test_a_request_overrides_them(opinionated: Live) -> None:
    assert texts(opinionated, temperature=1.5, top_k=0) != texts(opinionated)
    assert len(set(texts(opinionated, temperature=0))) == 1


def test_without_any_they_suit_small_models(live: Live) -> None:
    assert live.http.get("/info").json()["model"]["sampling"] == {"temperature": 0.7, "top_p": 0.9}
    assert texts(live) == texts(live, temperature=0.7, top_p=0.9)


def test_openais_own_default_is_openais(live: Live) -> None:
    body = {"prompt": "the sea", "seed": 4, "max_tokens": 12}
    whole = live.post("/v1/completions", {**body, "temperature": 1}).json()["choices"]
    assert live.post("/v1/completions", body).json()["choices"] == whole
