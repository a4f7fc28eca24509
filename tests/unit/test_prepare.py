"""What the built-in model's recipes read and no file of the corpora holds as it is."""

import json
from pathlib import Path

import pytest
import zstandard

from model_store.recipes.simple.prepare import fact_of, split_text, topic_of
from model_store.training.text_files import documents


@pytest.mark.parametrize(
    ("request_line", "topic"),
    [
        ("A: Tell me a story about a big cat.", "a big cat"),
        ("A: Can you tell me a story about a boy named Tim?", "a boy named Tim"),
    ],
)
def test_a_story_s_topic_is_what_was_asked_for(request_line: str, topic: str) -> None:
    assert topic_of(request_line) == topic


def test_a_fact_is_a_subject_and_whole_sentences() -> None:
    said = "The endometrium is the lining of the uterus. It is shed."
    assert fact_of(said) == {"topic": "endometrium", "completion": said}


def test_a_fact_ends_before_the_sentence_that_is_too_much() -> None:
    first = "Bronchitis (bron-KI-tis) is a condition of the lungs."
    found = fact_of(first + " Then" + " more" * 70 + ".")
    assert found == {"topic": "Bronchitis", "completion": first}


@pytest.mark.parametrize("text", ["What is a cold? It is a disease.", "Eat less salt."])
def test_a_text_that_names_no_subject_is_no_fact(text: str) -> None:
    assert fact_of(text) is None


def test_documents_of_the_valid_file_are_held_out(tmp_path: Path) -> None:
    stories = [f"There was a cat number {n}. It slept." for n in range(5)]
    text, valid = tmp_path / "tinystories.txt.zst", tmp_path / "valid.jsonl.zst"
    text.write_bytes(zstandard.compress("\n<|endoftext|>\n".join(stories).encode()))
    valid.write_bytes(zstandard.compress(json.dumps({"reply": stories[3]}).encode() + b"\n"))
    for folder in ("pretrain", "heldout"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    split_text(text, tmp_path / "out", valid, "reply", every=400)
    kept, held = (list(documents(tmp_path / "out" / f / "tinystories.txt")) for f in ("pretrain", "heldout"))
    assert held == [stories[3]] and kept == stories[:3] + stories[4:]
