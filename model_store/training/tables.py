"""Rows of tables, streamed: CSV and TSV as spreadsheets write them, XLSX, parquet, JSON arrays and lines.

Each row is a number, which a person finds it by, and its values under the header's names. Values of CSV and
XLSX are text. No tasks here (`task_rows.py`), no encodings (`raw_lines.py`).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from model_store.training.errors import InvalidData, MissingExtra, Ordinal
from model_store.training.raw_lines import chunks, lines, table_encoding

Row = tuple[int, dict[str, Any]]
_DELIMITERS = (",", ";", "\t", "|")
_PROBE = 20  # records that have to agree on a delimiter
_MAX_CELL = 1 << 26  # characters; csv's own limit is 131,072
_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
_MARKS: Mapping[str, Mapping[str, str]] = {  # where one is in an array -> a mark -> where one is behind it
    "begin": {"[": "first"},
    "first": {"]": "end"},
    "item": {},
    "after": {",": "item", "]": "end"},
    "end": {},
}


def json_lines(path: Path, encoding: str = "") -> Iterator[Row]:
    """Yield (line number, object) for each line of a JSON-lines file; blank lines are skipped.

    Raises:
        InvalidData: A line is not a JSON object.
    """
    for number, line in lines(path, encoding):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidData(path, f"is not JSON: {error}", number) from error
        if not isinstance(record, dict):
            raise InvalidData(path, "must be a JSON object", number)
        yield number, record


def json_array(path: Path, encoding: str = "") -> Iterator[Row]:
    """Yield (line number, object) for each object of a JSON array; JSON lines are taken, too.

    An object that begins on the line of the one before has its `Ordinal` in the place of a line. Only one
    object has to fit in memory.

    Raises:
        InvalidData: It is neither, or something in the array is no object.
    """
    text = next((chunk for chunk in chunks(path, encoding) if chunk.strip()), "")
    if not text.lstrip().startswith("["):
        yield from json_lines(path, encoding)
        return
    pieces, decoder = chunks(path, encoding), json.JSONDecoder()
    text, place, number, state = "", 0, 1, "begin"
    count, last = 0, 0
    while True:
        gap = _SPACE.match(text, place)
        assert gap is not None  # it matches nothing, too
        number += text.count("\n", place, gap.end())
        place = gap.end()
        if place < len(text) and state == "end":
            raise InvalidData(path, "has something after the array's end", number)
        if place < len(text) and text[place] in _MARKS[state]:
            state, place = _MARKS[state][text[place]], place + 1
            continue
        if place < len(text) and (state not in ("item", "first") or text[place] != "{"):
            raise InvalidData(path, "must be an array of objects, [{…}, {…}]", number)
        try:
            record, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:  # it goes on in the next piece, or is wrong
            more = "".join(islice(pieces, 1 + (len(text) - place) // _CHUNK))  # twice as much each time
            if more:
                text, place = text[place:] + more, 0
                continue
            if state == "end":
                return
            raise InvalidData(path, f"is not JSON, or not whole: {error.msg}", number) from error
        count += 1
        yield Ordinal(count) if number == last else number, record
        last = number
        number += text.count("\n", place, end)
        place, state = end, "after"


def separated(path: Path, encoding: str = "") -> Iterator[Row]:
    """Yield (line number, row) of a CSV or TSV file; rows without any text are skipped.

    The delimiter is the one that gives the first records equally many cells; a first line `sep=;`, as Excel
    takes it, names it. Quoted cells may hold line breaks.

    Raises:
        InvalidData: A row has not as many cells as the header, a quote does not end, a name stands twice.
    """
    csv.field_size_limit(_MAX_CELL)
    encoding = encoding or table_encoding(path)
    skipped, delimiter = dialect(path, encoding)
    numbered = lines(path, encoding)
    for _ in range(skipped):
        next(numbered)
    reader = csv.reader((line + "\n" for _, line in numbered), delimiter=delimiter, strict=True)
    header: list[str] = []
    before = 0
    try:
        for cells in reader:
            number, before = skipped + before + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(path, cells, number)
                continue
            if len(cells) != len(header):
                counts = f"{len(cells)} cells where the header has {len(header)}"
                raise InvalidData(path, f"has {counts}; a cell with {delimiter!r} in it needs quotes", number)
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InvalidData(path, f"is no {path.suffix[1:].upper()}: {error}", skipped + before + 1) from error


def dialect(path: Path, encoding: str) -> tuple[int, str]:
    """Say how many lines stand before a CSV file's header, and what separates its cells."""
    head = [line for _, line in islice(lines(path, encoding), 200)]
    if head and head[0].strip().lower().startswith("sep=") and len(head[0].strip()) == 5:
        return 1, head[0].strip()[4]
    if ".tsv" in path.suffixes:
        return 0, "\t"
    return 0, max(_DELIMITERS, key=lambda delimiter: _agreement(head, delimiter))


def _agreement(head: list[str], delimiter: str) -> tuple[float, int]:
    """How many of the first records have as many cells as the header, where it has two or more."""
    try:
        reader = csv.reader((line + "\n" for line in head), delimiter=delimiter)
        records = [len(cells) for cells in islice(reader, _PROBE) if cells]
    except csv.Error:
        return 0.0, 0
    if not records or records[0] < 2:
        return 0.0, 0
    return records.count(records[0]) / len(records), records[0]


def sheet(path: Path) -> Iterator[Row]:
    """Yield (row number, row) of an XLSX file's first sheet, every cell as text.

    Raises:
        InvalidData: It is no XLSX file, or its header is wrong.
        MissingExtra: `openpyxl` is not installed.
    """
    book = open_workbook(path)
    try:
        header: list[str] = []
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
            texts = [_cell(value) for value in cells]
            if not any(text.strip() for text in texts):
                continue
            if not header:
                last = max(place for place, text in enumerate(texts) if text.strip())
                header = _header(path, texts[: last + 1], number)
                continue
            if any(text.strip() for text in texts[len(header) :]):
                raise InvalidData(path, "has a cell to the right of the header's last name", number)
            yield number, dict(zip(header, [*texts, *[""] * len(header)], strict=False))
    finally:
        book.close()


def open_workbook(path: Path) -> Any:
    """Open an XLSX file for reading row by row. Raises as `sheet`."""
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ModuleNotFoundError as error:
        raise MissingExtra("openpyxl", "data") from error
    from zipfile import BadZipFile

    try:
        return load_workbook(path, read_only=True, data_only=True)
    except (InvalidFileException, BadZipFile, KeyError) as error:
        raise InvalidData(path, f"is no XLSX file: {error}") from error


def parquet(path: Path) -> Iterator[Row]:
    """Yield (row number, row) of a parquet file; labels that are numbers with names get their names.

    Raises:
        InvalidData: It is no parquet file.
        MissingExtra: `datasets`, which brings pyarrow, is not installed.
    """
    try:
        import pyarrow
        from datasets import ClassLabel, Features
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "data") from error
    try:
        with ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            named = {name: kind for name, kind in features.items() if isinstance(kind, ClassLabel)}
            number = 0
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    names = {
                        key: kind.int2str(record[key])
                        for key, kind in named.items()
                        if isinstance(record[key], int) and record[key] >= 0
                    }
                    yield number, {**record, **names}
    except pyarrow.ArrowInvalid as error:
        raise InvalidData(path, f"is no parquet file: {error}") from error


def _header(path: Path, cells: list[str], number: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1 and name}):
        raise InvalidData(path, f"has the column {twice[0]!r} twice", number)
    return names


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
