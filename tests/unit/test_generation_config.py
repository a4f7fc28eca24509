"""A checkpoint's own sampling defaults, and those of one that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_store.default_tasks import default_tasks
from model_store.generation_config import FOR_SMALL_MODELS, sampling_defaults, with_sampling
from model_store.task import Task


def write(folder: Path, **config: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({"temperature": 0.6, "top_k": 40}, {"temperature": 0.6, "top_k": 40}),
        ({"top_p": 0.8}, {"temperature": 1, "top_p": 0.8}),
        ({"repetition_penalty": 1.3, "do_sample": True}, {"temperature": 1, "repetition_penalty": 1.3}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": False, "temperature": 0.9}, {"temperature": 0}),
        ({"eos_token_id": 5, "use_cache": True, "temperature": None}, FOR_SMALL_MODELS),
    ],
)
def test_a_checkpoint_says_how_it_is_sampled(tmp_path: Path, config: Any, defaults: Any) -> None:
    assert sampling_defaults(write(tmp_path, **config)) == (dict(defaults), [])


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({"repetition_penalty": 1.3}, {"temperature": 1, "repetition_penalty": 1.3}),
        # every config.json of transformers 2 has all of these
        (
            {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0},
            None,
        ),
        ({"do_sample": True, "top_k": 20, "temperature": 1.0}, {"temperature": 1, "top_k": 20}),
    ],
)
def test_a_config_of_old_says_so_where_there_is_no_file_for_it(
    tmp_path: Path, config: Any, defaults: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sampling_defaults(tmp_path) == (dict(defaults or FOR_SMALL_MODELS), [])
    assert sampling_defaults(write(tmp_path, eos_token_id=0)) == (dict(FOR_SMALL_MODELS), [])


def test_what_would_change_texts_and_is_not_read_is_told(tmp_path: Path) -> None:
    neutral = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "bad_words_ids": None}
    assert sampling_defaults(write(tmp_path, **neutral, top_k=5))[1] == []
    [line] = sampling_defaults(write(tmp_path, num_beams=4, bad_words_ids=[[3]], min_length=0))[1]
    assert line.endswith("bad_words_ids, num_beams")


def test_without_a_file_they_are_those_for_small_models(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == ({"temperature": 0.7, "top_p": 0.9}, [])


def test_a_value_that_is_not_legal_is_left_out_and_told(tmp_path: Path) -> None:
    defaults, lines = sampling_defaults(write(tmp_path, temperature=-1, top_k=5))
    assert defaults == {"temperature": 1, "top_k": 5}
    assert len(lines) == 1 and "temperature must be at least 0 and at most 2" in lines[0]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    defaults, lines = sampling_defaults(tmp_path)
    assert defaults == FOR_SMALL_MODELS and "generation_config.json" in lines[0]


def test_only_tasks_that_say_nothing_of_it_take_them() -> None:
    own = Task("reply", "generate", "{line}", sampling={"temperature": 1, "max_new_tokens": 5})
    tasks = with_sampling({**default_tasks(), "reply": own}, {"temperature": 0.6, "top_k": 40})
    assert tasks["generate"].sampling == {"temperature": 0.6, "top_k": 40, "max_new_tokens": 128}
    assert tasks["reply"] is own
    assert tasks["summarize"] == default_tasks()["summarize"]
