"""Reads training files piece by piece: text, JSON lines, plain or compressed with zstd, and folders of them.

Everything is streamed, so no file has to fit in memory; whatever is wrong is named with file and line.
Documents of a text file are separated by lines that are exactly `<|endoftext|>`; a file without such lines is
one document per `MAX_DOCUMENT_CHARS`. No tokens here: see `packing.py`.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from model_store.training.errors import InvalidData, MissingExtra

SEPARATOR = "<|endoftext|>"
MAX_DOCUMENT_CHARS = 1 << 20  # a longer document is cut at a line end, so that memory stays bounded
_ZSTD_WINDOW = 1 << 31  # files made with `zstd --long` need a large window
_TEXT_SUFFIXES = (".txt", ".md", ".text")
_JSON_SUFFIXES = (".jsonl", ".ndjson")


def expand(paths: list[Path]) -> list[Path]:
    """Give the data files among `paths`, folders replaced by the data files in them, sorted, recursively.

    Raises:
        InvalidData: A path does not exist, a folder holds no data file, or a name ends in something unknown.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InvalidData(path, "does not exist")
        found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p)) if path.is_dir() else [path]
        if not found:
            raise InvalidData(path, "holds no .txt, .jsonl or .zst file")
        files += found
    for file in files:
        if not _kind(file):
            raise InvalidData(file, "must end in .txt, .md or .jsonl, or one of these and .zst")
    return files


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of a text file, or the `text` of each line of a JSON-lines file.

    Raises:
        InvalidData: The file is empty, not UTF-8, or a JSON line is wrong.
    """
    if is_json_lines(path):
        for number, record in records(path):
            yield text_of(path, number, record, "text")
        return
    is_empty = True
    for document in _text_documents(path):
        is_empty = False
        yield document
    if is_empty:
        raise InvalidData(path, "is empty")


def is_json_lines(path: Path) -> bool:
    """Say whether a data file's name is that of a JSON-lines file."""
    return _kind(path) == "json"


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line of a JSON-lines file; blank lines are skipped.

    Raises:
        InvalidData: The file is empty, not UTF-8, or a line is not a JSON object.
    """
    is_empty = True
    for number, line in lines(path):
        if not line.strip():
            continue
        is_empty = False
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidData(path, f"is not JSON: {error}", number) from error
        if not isinstance(record, dict):
            raise InvalidData(path, "must be a JSON object", number)
        yield number, record
    if is_empty:
        raise InvalidData(path, "is empty")


def text_of(path: Path, line: int, record: dict[str, Any], key: str) -> str:
    """Give a record's text under `key`.

    Raises:
        InvalidData: The key is missing (the keys that are there are named), or its value is no string.
    """
    if key not in record:
        raise InvalidData(
            path, f"has no key {key!r}; its keys are {', '.join(sorted(record)) or 'none'}", line
        )
    if not isinstance(record[key], str):
        raise InvalidData(path, f"key {key!r} must be a string", line)
    value: str = record[key]
    return value


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end) of a file, decompressed when its name ends in .zst.

    Raises:
        InvalidData: A line is not UTF-8, or the compressed stream is broken.
    """
    with _opened(path) as stream:
        number = 0
        try:
            for number, raw in enumerate(stream, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problem = (
                f"is not UTF-8: byte {error.object[error.start]:#04x} at place {error.start} of the line"
            )
            raise InvalidData(path, problem, number) from error


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as raw:
        if path.suffix != ".zst":
            yield raw
            return
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise MissingExtra("zstandard") from error
        try:
            stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(raw)
            with io.BufferedReader(stream, 1 << 18) as buffered:
                yield buffered
        except zstandard.ZstdError as error:
            raise InvalidData(path, f"cannot be decompressed: {error}") from error


def _text_documents(path: Path) -> Iterator[str]:
    buffer: list[str] = []
    size = 0
    for _, line in lines(path):
        is_border = line == SEPARATOR
        if not is_border:
            buffer.append(line)
            size += len(line) + 1
        if is_border or size >= MAX_DOCUMENT_CHARS:
            if document := "\n".join(buffer).strip():
                yield document
            buffer, size = [], 0
    if document := "\n".join(buffer).strip():
        yield document


def _kind(path: Path) -> str:
    """'text', 'json', or '' for a file that is no data file."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".zst"]
    last = suffixes[-1] if suffixes else ""
    if last in _JSON_SUFFIXES:
        return "json"
    return "text" if last in _TEXT_SUFFIXES else ""
