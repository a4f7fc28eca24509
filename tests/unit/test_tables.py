"""Tables as people have them: spreadsheets' CSV, XLSX, parquet, JSON, the encodings they come in."""

# ruff: noqa: RUF001 -- a dash of cp1252, and Cyrillic

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pytest

from model_store.training.errors import InvalidData, InvalidOption, origin
from model_store.training.raw_lines import check_encoding, lines
from model_store.training.text_files import describe, documents, expand, records

ROWS = [{"text": "gut; sehr", "stars": "5"}, {"text": 'Zeile 1\nZeile "2"', "stars": "1"}]
EXCEL = 'text;stars\r\n"gut; sehr";5\r\n"Zeile 1\nZeile ""2""";1\r\n'


def read(path: Path, encoding: str = "") -> list[dict[str, Any]]:
    return [record for _, record in records(path, encoding)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_excels_csv_is_read_in_the_encodings_it_is_saved_in(tmp_path: Path, encoding: str) -> None:
    text = EXCEL.replace("gut", "größe – €")
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (tmp_path / "a.csv").write_bytes(mark + text.encode(encoding))
    assert read(tmp_path / "a.csv") == [{"text": "größe – €; sehr", "stars": "5"}, ROWS[1]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_separates_cells_is_found_out(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text(f'a{delimiter}b\n"1, 2 und 3"{delimiter}x\n', encoding="utf-8")
    assert read(tmp_path / "a.csv") == [{"a": "1, 2 und 3", "b": "x"}]


def test_a_comma_in_a_semicolon_header_does_not_mislead(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text, german;stars\nschön, ja, gut;5\nnaja;3\n", encoding="utf-8")
    assert read(tmp_path / "a.csv")[0] == {"text, german": "schön, ja, gut", "stars": "5"}


def test_a_first_line_may_name_what_separates(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=|\na,b|c\n1,2|3\n", encoding="utf-8")
    assert list(records(tmp_path / "a.csv")) == [(3, {"a,b": "1,2", "c": "3"})]


def test_rows_are_numbered_by_the_line_they_begin_in(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"1\n2\n3",x\n\n4,y\n', encoding="utf-8")
    assert [number for number, _ in records(tmp_path / "a.csv")] == [2, 6]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n1,2,3\n", "line 3: has 3 cells where the header has 2"),
        ("a,b\n1,2\n1\n", "line 3: has 1 cells where the header has 2"),
        ('a,b\n1,2\n"1,2\n', "line 3: is no CSV: unexpected end of data"),
        ("a,a\n1,2\n", "line 1: has the column 'a' twice"),
        ("a,b\n", "is empty"),
    ],
)
def test_a_wrong_table_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidData, match=problem):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["gb18030", "cp1251", "shift_jis"])
def test_an_encoding_that_can_only_be_guessed_has_to_be_named(tmp_path: Path, encoding: str) -> None:
    text = "вопрос,ответ\nкак дела,хорошо\n" if encoding == "cp1251" else "問,答\n日本東京,中国北京\n"
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    with pytest.raises(InvalidData, match=r"neither UTF-8 nor Windows-1252.*--encoding"):
        read(tmp_path / "a.csv")
    assert list(read(tmp_path / "a.csv", encoding)[0].values()) == text.splitlines()[1].split(",")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'utf-88' is no encoding"):
        check_encoding("utf-88")


def test_how_a_table_was_understood_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("a;b\nschön;x\n".encode("cp1252"))
    assert describe(tmp_path / "a.csv") == "; between cells, cp1252"


def test_text_with_a_utf16_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("春眠\r\n不觉晓\r\n".encode("utf-16"))
    assert list(documents(tmp_path / "a.txt")) == ["春眠\n不觉晓"]
    assert list(lines(tmp_path / "a.txt")) == [(1, "春眠"), (2, "不觉晓")]


def test_a_gzipped_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(EXCEL.encode()))
    assert read(tmp_path / "a.csv.gz") == ROWS


def test_a_broken_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(InvalidData, match="cannot be decompressed"):
        read(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_object_by_object(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": "a}] ] " * 3000 + str(n), "list": [{"x": n}]} for n in range(20)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert read(tmp_path / "a.json") == rows


def test_objects_of_an_array_are_numbered_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n\n{\n"a": 2}\n,{"a": 3}]\n', encoding="utf-8")
    assert [number for number, _ in records(tmp_path / "a.json")] == [2, 4, 6]


def test_an_object_that_shares_its_line_is_named_by_its_count(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2},\n{"a": 3}, {"a": 4}]', encoding="utf-8")
    assert [origin(path, number) for number, _ in records(path)] == [
        f"{path}, {where}" for where in ("line 1", "object 2", "line 2", "object 4")
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n{"a": ]\n', "line 2: is not JSON, or not whole"),
        ('[{"a": 1},\n{"a": 2}\n', "line 3: is not JSON, or not whole"),
        ('[{"a": 1},\n3]', "line 2: must be an array of objects"),
        ('[{"a": 1}]\n]', "line 2: has something after the array's end"),
        ('[{"a": 1}\n{"a": 1}]', "line 2: must be an array of objects"),
        ("[]", "is empty"),
    ],
)
def test_a_wrong_array_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidData, match=problem):
        read(tmp_path / "a.json")


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    assert read(tmp_path / "a.json") == [{"a": 1}, {"a": 2}]


def test_a_spreadsheet_gives_its_cells_as_text(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (
        ["text", "stars", None],
        [None, None, None],
        ["gut", 5, None],
        ["3/4", 1.5, None],
        [True, None, None],
    ):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    assert list(records(tmp_path / "a.xlsx")) == [
        (3, {"text": "gut", "stars": "5"}),
        (4, {"text": "3/4", "stars": "1.5"}),
        (5, {"text": "true", "stars": ""}),
    ]
    assert describe(tmp_path / "a.xlsx") == "sheet 'Sheet'"


def test_a_column_without_a_name_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in ([None, "text", None, "stars"], [0, "gut", None, 5], [1, "schlecht", "!", 1]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    found = [(row["text"], row["stars"]) for row in read(tmp_path / "a.xlsx")]
    assert found == [("gut", "5"), ("schlecht", "1")]


def test_what_is_no_spreadsheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("text;stars", encoding="utf-8")
    with pytest.raises(InvalidData, match="is no XLSX file"):
        read(tmp_path / "a.xlsx")


def hub_set() -> datasets.Dataset:
    labels = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)


NAMED = [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]


def test_numbered_labels_of_parquet_get_their_names(tmp_path: Path) -> None:
    hub_set().to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == NAMED


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(InvalidData, match="is no parquet file"):
        read(tmp_path / "a.parquet")


def test_a_saved_data_set_is_read_split_by_split(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": hub_set(), "test": hub_set()}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InvalidData, match="holds the splits test, train; name one"):
        expand([tmp_path / "saved"], is_rows=True)
    (found,) = expand([tmp_path / "saved:test"], is_rows=True)
    assert read(found) == NAMED


def test_a_folder_with_train_and_test_is_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000.jsonl", "train-00001.jsonl", "test.jsonl", "README.md"):
        (tmp_path / name).write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(InvalidData, match="holds the splits test, train"):
        expand([tmp_path], is_rows=True)
    found = expand([tmp_path.with_name(tmp_path.name + ":train")], is_rows=True)
    assert [path.name for path in found] == ["train-00000.jsonl", "train-00001.jsonl"]


def test_a_set_of_the_hub_is_streamed_with_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **named: Any) -> datasets.IterableDataset:
        asked.append((arguments, named))
        return hub_set().to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    (path,) = expand([Path("hf:owner/name/de:train")], is_rows=True)
    assert read(path) == NAMED
    assert asked == [(("owner/name", "de"), {"split": "train", "streaming": True})]


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way\nto get there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InvalidData, match=r"hf:owner/name:train: cannot be fetched: no way$"):
        read(Path("hf:owner/name:train"))
