"""Training a tokenizer. Loading and encoding are in `test_tokenizer.py`."""

from pathlib import Path

import pytest

from model_store.tokenizer import Tokenizer
from model_store.training.bpe import train_tokenizer
from model_store.training.errors import InvalidData, InvalidOption

CHINESE = "子曰學而時習之不亦說乎。有朋自遠方來不亦樂乎。\n" * 40


def trained(folder: Path, text: str, vocab_size: int = 300) -> Tokenizer:
    """Train on one text and load what was written."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    train_tokenizer([folder / "text.txt"], folder / "tokenizer", vocab_size)
    return Tokenizer.load(folder / "tokenizer")


def test_a_text_of_another_language_comes_back_as_it_was(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "A plain English text. " * 30)
    assert tokenizer.decode(tokenizer.encode("學而 🙂 naïve")) == "學而 🙂 naïve"


def test_frequent_chinese_words_become_single_tokens(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, CHINESE, 400)
    assert len(tokenizer.encode("不亦")) == 1


def test_the_vocabulary_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    assert trained(tmp_path, CHINESE, 290).vocab_size == 290


def test_the_end_of_text_is_a_token_of_its_own(tmp_path: Path) -> None:
    tokenizer = trained(tmp_path, "Some text. " * 30)
    assert tokenizer.encode_specials("<|endoftext|>") == [tokenizer.eos_id]


def test_template_words_are_learned_beside_the_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some other text. " * 30, encoding="utf-8")
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "t", 400, [" unanswerable"] * 50)
    assert len(Tokenizer.load(tmp_path / "t").encode(" unanswerable")) == 1


def test_the_strings_of_json_lines_are_learned_from(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "zyzzyva", "n": 3}\n' * 50, encoding="utf-8")
    train_tokenizer([tmp_path / "a.jsonl"], tmp_path / "t", 300)
    assert len(Tokenizer.load(tmp_path / "t").encode("zyzzyva")) == 1


def test_a_vocabulary_smaller_than_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="from 257 to"):
        trained(tmp_path, "text", 100)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"text\.txt: is empty"):
        trained(tmp_path, "")
