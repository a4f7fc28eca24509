"""Reads training files piece by piece: text, and rows of JSON, CSV, TSV, XLSX, parquet and hub data sets.

Everything is streamed, so no file has to fit in memory; whatever is wrong is named with file and line.
Documents of a text file are separated by lines that are exactly `<|endoftext|>`; a file without such lines is
one document per `MAX_DOCUMENT_CHARS`. The formats are in `tables.py` and `hub_data.py`, what a task makes of
a row in `task_rows.py`. No tokens here: see `packing.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_store.entry import hash_file
from model_store.training import hub_data, tables
from model_store.training.errors import InvalidData
from model_store.training.raw_lines import PACKED, lines, table_encoding

if TYPE_CHECKING:
    from model_store.training.recipe import Source

DOCUMENT_END = "<|endoftext|>"
MAX_DOCUMENT_CHARS = 1 << 20  # a longer document is cut at a line end, so that memory stays bounded
_TEXT = (".txt", ".md", ".text")
_ROWS: Mapping[str, Callable[[Path, str], Iterator[tables.Row]]] = {
    ".jsonl": tables.json_lines,
    ".ndjson": tables.json_lines,
    ".json": tables.json_array,
    ".csv": tables.separated,
    ".tsv": tables.separated,
    ".xlsx": lambda path, _: tables.sheet(path),
    ".parquet": lambda path, _: tables.parquet(path),
}
_SPLIT = re.compile(r"(?:^|[-_./])(train|test|valid|validation|dev|val)(?=[-_./]|$)")
_LEGAL = ".txt, .md, .jsonl, .json, .csv or .tsv, plain or with .zst or .gz, or .xlsx or .parquet"


def expand(paths: list[Path], is_rows: bool = False) -> list[Path]:
    """Give the data files among `paths`, folders replaced by the data files in them, sorted, recursively.

    Args:
        paths: Files, folders, `FOLDER:SPLIT`, or `hf:OWNER/NAME:SPLIT`.
        is_rows: Rows are wanted, which text files have none of.

    Raises:
        InvalidData: A path does not exist, a folder holds no data file or several splits, or a name ends in
            something unknown.
    """
    files: list[Path] = []
    for path in paths:
        files += [path] if hub_data.is_hub_data(path) else _files(path, is_rows)
    for file in files:
        if not _suffix(file) and not hub_data.is_hub_data(file) and not hub_data.is_saved(file):
            raise InvalidData(file, f"must end in {_LEGAL}")
    return files


def _files(path: Path, is_rows: bool) -> list[Path]:
    folder, split = path, ""
    if not path.exists() and ":" in path.name:
        name, _, split = path.name.rpartition(":")
        folder = path.with_name(name)
    if not folder.exists():
        raise InvalidData(path, "does not exist")
    if not folder.is_dir() or hub_data.is_saved(folder):
        if split:
            raise InvalidData(folder, f"is no folder with the split {split}")
        return [folder]
    if splits := hub_data.saved_splits(folder):
        if split not in splits:
            raise InvalidData(folder, f"holds the splits {', '.join(splits)}; name one: {folder}:SPLIT")
        return [folder / split]
    kinds = _ROWS if is_rows else (*_ROWS, *_TEXT)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and _suffix(file) in kinds)
    by_split = {file: _split(file.relative_to(folder)) for file in files}
    if split:
        files = [file for file in files if by_split[file] == split]
    elif is_rows and len(there := sorted(set(by_split.values()) - {""})) > 1:
        raise InvalidData(folder, f"holds the splits {', '.join(there)}; name one: {folder}:{there[0]}")
    if not files:
        what = "row" if is_rows else "data"
        raise InvalidData(path, f"holds no {what} file{f' of the split {split}' if split else ''}: {_LEGAL}")
    return files


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of a text file, or the `text` of each row of a table.

    Raises:
        InvalidData: The file is empty, not UTF-8, or a row is wrong.
    """
    if is_table(path):
        for number, record in records(path):
            yield text_of(path, number, record, "text")
        return
    is_empty = True
    for document in _text_documents(path):
        is_empty = False
        yield document
    if is_empty:
        raise InvalidData(path, "is empty")


def is_table(path: Path) -> bool:
    """Say whether a data file holds rows, and no bare text."""
    return _suffix(path) not in _TEXT


def records(path: Path, encoding: str = "") -> Iterator[tables.Row]:
    """Yield (number, row) for each row of a data file; the number is that of its line where it has lines.

    Args:
        path: One that `expand` gave.
        encoding: Of text; "" to find it out (`raw_lines.py`).

    Raises:
        InvalidData: The file is empty or wrong; names the line.
        MissingExtra: What reads this kind of file is not installed.
    """
    if hub_data.is_hub_data(path):
        numbered = hub_data.hub_rows(path)
    elif hub_data.is_saved(path):
        numbered = hub_data.saved_rows(path)
    elif reader := _ROWS.get(_suffix(path)):
        numbered = reader(path, encoding)
    else:
        raise InvalidData(
            path,
            "is text, where rows are wanted: .jsonl, .json, .csv, .tsv, .xlsx, .parquet; a table that a "
            "spreadsheet saved as text is a .tsv",
        )
    is_empty = True
    for number, record in numbered:
        is_empty = False
        yield number, record
    if is_empty:
        raise InvalidData(path, "is empty")


def describe(path: Path, encoding: str = "") -> str:
    """Say how a file was understood, where that was found out and not told: '; between cells, cp1252'."""
    suffix = _suffix(path)
    if suffix in (".csv", ".tsv"):
        name = encoding or table_encoding(path)
        mark = {"\t": "tab", " ": "space"}.get(mark := tables.dialect(path, name)[1], mark)
        return f"{mark} between cells, {name}"
    if suffix == ".xlsx":
        book = tables.open_workbook(path)
        names = list(book.sheetnames)
        book.close()
        return f"sheet {names[0]!r}" + (f" of {len(names)}" if len(names) > 1 else "")
    return encoding


def stamp(path: Path) -> tuple[str, str]:
    """Give what tells a data file from another: its name and a checksum; for the hub its name only."""
    if hub_data.is_hub_data(path):
        return str(path), ""
    return path.name, hash_file(path / "state.json" if path.is_dir() else path).sha256


def file_lines(sources: Sequence["Source"]) -> list[str]:
    """Name the files of sources with size and SHA-256, one a line, for manifest and card.

    Raises:
        InvalidData: As `expand`.
    """
    told = []
    for source in sources:
        for path in expand([source.path], is_rows=source.kind == "examples"):
            what = f"task {source.task}" if source.task else source.kind
            if path.is_file():
                record = hash_file(path)
                told.append(f"{path.name} ({what}): {record.size:,} bytes, sha256 {record.sha256}")
            else:
                told.append(f"{path} ({what})")
    return told


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


def _text_documents(path: Path) -> Iterator[str]:
    buffer: list[str] = []
    size = 0
    for _, line in lines(path):
        is_border = line == DOCUMENT_END
        if not is_border:
            buffer.append(line)
            size += len(line) + 1
        if is_border or size >= MAX_DOCUMENT_CHARS:
            if document := "\n".join(buffer).strip():
                yield document
            buffer, size = [], 0
    if document := "\n".join(buffer).strip():
        yield document


def _suffix(path: Path) -> str:
    """The suffix that says what a file holds, that of its packing left out; "" for a file that is no data."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix not in PACKED]
    last = suffixes[-1] if suffixes else ""
    return last if last in _ROWS or last in _TEXT else ""


def _split(path: Path) -> str:
    """The split that a file's name, or that of a folder above it, stands for; "" for none."""
    named = _SPLIT.findall(path.with_suffix("").as_posix())
    full = {"dev": "validation", "val": "validation", "valid": "validation"}
    return full.get(named[-1], named[-1]) if named else ""
