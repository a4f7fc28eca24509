"""Fine-tuning teaches what serving asks: a toy task is learned, nearly to perfection, through HTTP."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from live_service import Live
from toy import QA, RECORDS, finetuned_model

from model_store.store import resolve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that was fine-tuned on the toy questions."""
    torch.set_num_threads(1)
    return finetuned_model(tmp_path_factory.mktemp("toy"))


def share_right(answers: list[str]) -> float:
    return sum(text == record.answer for text, record in zip(answers, RECORDS, strict=True)) / len(RECORDS)


def test_the_endpoint_gives_the_answers_that_were_learned(model: Path, serve: Callable[..., Live]) -> None:
    live = serve(model=str(model))
    bodies = [
        {"context": record.context, "question": record.question, "max_new_tokens": 4} for record in RECORDS
    ]
    answers = [live.post("/qa", body).json()["answer"] for body in bodies]
    assert share_right(answers) >= 0.95
    assert "" in answers  # some questions have none


def test_the_task_travels_with_the_model(model: Path, tmp_path: Path) -> None:
    assert resolve(str(model), tmp_path).tasks["qa"] == QA
