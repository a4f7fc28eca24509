"""Fine-tuning teaches what serving asks: a toy task is learned, nearly to perfection, through one `Task`."""

from pathlib import Path

import pytest
import torch
from toy import QA, RECORDS, finetuned_model

from model_store.answering import LocalModel
from model_store.store import resolve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that was fine-tuned on the toy questions."""
    torch.set_num_threads(1)
    return finetuned_model(tmp_path_factory.mktemp("toy"))


def test_a_toy_task_is_learned_nearly_to_perfection(model: Path) -> None:
    local = LocalModel(model)
    found = [local.answer(QA, record.context, record.question) for record in RECORDS]
    said = [answer.text if answer.score >= 0 else "" for answer in found]
    right = sum(text == record.answer for text, record in zip(said, RECORDS, strict=True))
    assert right >= 0.95 * len(RECORDS)


def test_the_task_travels_with_the_model(model: Path, tmp_path: Path) -> None:
    assert resolve(str(model), tmp_path).tasks["qa"] == QA
