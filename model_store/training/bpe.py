"""Trains a byte-level BPE tokenizer, GPT-2's kind: any text can be encoded, no character is unknown.

Works for every language, Chinese included, because it starts from the 256 bytes. Loading and encoding are in
`model_store/tokenizer.py`; reading the files in `text_files.py`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from model_store.atomic import write_atomically
from model_store.training.errors import InvalidOption
from model_store.training.text_files import DOCUMENT_END, documents, expand, is_table, records

_MINIMUM = 257  # 256 bytes and the end of text
_MAXIMUM = 1 << 20


def train_tokenizer(
    paths: list[Path], folder: Path, vocab_size: int, words: Iterable[str] = (), max_chars_per_file: int = 0
) -> int:
    """Train a tokenizer and write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        paths: Text files, JSON lines (every string in them is used), .zst, folders.
        folder: Where the two files go; made when missing.
        vocab_size: Tokens wanted, from 257 (bytes and the end of text) to about a million.
        words: Texts to learn from besides the files: the literals of task templates, say.
        max_chars_per_file: Read at most so many characters of each file; 0 reads all.

    Returns:
        The tokens there are: fewer than wanted when the text is small.

    Raises:
        InvalidData: A file is empty, not UTF-8, or has a wrong JSON line.
        InvalidOption: The vocabulary's size is out of range.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not _MINIMUM <= vocab_size <= _MAXIMUM:
        raise InvalidOption("--vocab-size", f"must be from {_MINIMUM} to {_MAXIMUM}, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[DOCUMENT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(expand(paths), words, max_chars_per_file), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    return int(tokenizer.get_vocab_size())


def _texts(files: list[Path], words: Iterable[str], limit: int) -> Iterator[str]:
    yield from words
    for file in files:
        read = 0
        for text in _file_texts(file):
            yield text
            read += len(text)
            if limit and read >= limit:
                break


def _file_texts(file: Path) -> Iterator[str]:
    """Documents, or the strings of rows whatever their keys."""
    if not is_table(file):
        yield from documents(file)
        return
    for _, record in records(file):
        yield from (value for value in record.values() if isinstance(value, str))


def _write_config(folder: Path) -> None:
    values = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": DOCUMENT_END,
        "eos_token": DOCUMENT_END,
        "unk_token": DOCUMENT_END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(values, indent=2) + "\n")
