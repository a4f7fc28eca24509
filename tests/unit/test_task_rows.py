"""What tasks make of rows: columns, conversations, Alpaca, labels, empty texts, cuts."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy import QA, toy_tokenizer

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.errors import EncodesToNothing, InvalidData, InvalidOption
from model_store.training.evaluate import read_items
from model_store.training.examples import Pair, encode_pair, encode_text, fit
from model_store.training.recipe import Source
from model_store.training.task_rows import TaskRow, mapped, task_rows, task_source

MOOD = Task("mood", "choice", "{text}\nMood:", document="text", labels=("good", "bad"))
BOT = Task("bot", "generate", "Q: {text}\nA:", document="text")
CHAT = Task("chat", "generate", "{history}\n{speaker}:", document="history")
SUPPORT = Task("support", "generate", "{system}\n{history}\nQ: {message}\nA:", document="history")
TALK = [
    ("system", "Be kind."),
    ("user", "Hi"),
    ("assistant", "Hello\nyou"),
    ("user", "Bye"),
    ("assistant", "So long"),
]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(
    folder: Path, task: Task, rows: Sequence[dict[str, Any]], maps: Sequence[str] = (), counts: Any = None
) -> list[TaskRow]:
    path = write(folder / "a.jsonl", rows)
    (source,) = mapped([task_source(f"{task.name}={path}", "--data")], maps, {task.name: task})
    return list(task_rows(source, task, path, counts if counts is not None else Counter()))


# --- columns


def test_columns_are_mapped_to_fields_and_target(tmp_path: Path) -> None:
    (row,) = read(tmp_path, MOOD, [{"body": "fine", "stars": " good "}], ["text=body,label=stars"])
    assert (row.fields, row.references, row.origin.partition("a.jsonl")[2]) == (
        {"text": "fine"},
        ("good",),
        ", line 1",
    )


def test_a_map_may_be_for_one_task_only(tmp_path: Path) -> None:
    sources = [Source(tmp_path, kind="examples", task=task) for task in ("mood", "bot")]
    found = mapped(sources, ["mood:text=body"], {"mood": MOOD, "bot": BOT})
    assert [source.rename for source in found] == [{"text": "body"}, {}]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("text", "must be FIELD=COLUMN"),
        ("text=", "must be FIELD=COLUMN"),
        ("stars=label", "'stars' is none of task 'mood': text, label, messages"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path: Path, item: str, problem: str) -> None:
    with pytest.raises(InvalidOption, match=problem):
        mapped([Source(tmp_path, kind="examples", task="mood")], [item], {"mood": MOOD})


def test_labels_that_are_numbers_are_read_as_their_digits(tmp_path: Path) -> None:
    stars = Task("stars", "choice", "{text}", labels=("1", "5"))
    assert read(tmp_path, stars, [{"text": "x", "label": 5}])[0].references == ("5",)


# --- what is wrong, all at once


def test_unknown_labels_are_listed_all_at_once(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": label} for label in ("good", "god", "neutral", "god")]
    with pytest.raises(
        InvalidData, match=r"labels good, bad, and not 'god' \(2 times, first in 2\), 'neutral'"
    ):
        read(tmp_path, MOOD, rows)


def test_a_reference_label_that_the_task_lacks_is_an_error_in_a_test_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": ["good", "fine"]}])
    with pytest.raises(InvalidData, match="'fine'"):
        read_items(path, MOOD)


def test_empty_texts_are_listed_with_their_rows(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "good"} for text in ("x", " ", "y", "")]
    with pytest.raises(InvalidData, match=r"'text' is empty in 2 rows: 2, 4"):
        read(tmp_path, MOOD, rows)


def test_rows_with_empty_texts_are_left_out_where_that_is_wanted(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in (("x", "good"), (" ", "good"), ("y", ""))]
    path = write(tmp_path / "a.jsonl", rows)
    source = Source(path, "examples", "mood", skip_empty=True)
    counts: Counter[str] = Counter()
    assert [row.fields["text"] for row in task_rows(source, MOOD, path, counts)] == ["x"]
    assert counts == {"left out, as 'text' is empty": 1, "left out, as 'label' is empty": 1}


def test_what_is_wrong_is_told_of_the_rows_that_a_limit_lets_be_read(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": label} for label in ("good", "goood", "bad", "baad")]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidData, match=r"'goood' \(once, first in 2\)$"):
        read_items(path, MOOD, limit=2)
    assert len(read_items(path, MOOD, limit=1)) == 1


def test_an_empty_target_is_refused_but_for_questions(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="'completion' is empty in 1 rows: 1"):
        read(tmp_path, BOT, [{"text": "x", "completion": ""}])
    assert read(tmp_path, QA, [{"context": "x", "question": "y", "answer": []}])[0].references == ("",)


def test_squads_answers_are_read(tmp_path: Path) -> None:
    answers = {"text": ["Tom", "he"], "answer_start": [0, 0]}
    (row,) = read(tmp_path, QA, [{"context": "x", "question": "y", "answers": answers}], ["answer=answers"])
    assert row.references == ("Tom", "he")


# --- conversations


def messages() -> list[dict[str, Any]]:
    return [{"messages": [{"role": role, "content": text} for role, text in TALK]}]


def sharegpt() -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"conversations": [{"from": names[role], "value": text} for role, text in TALK]}]


@pytest.mark.parametrize("rows", [messages(), sharegpt()])
def test_each_reply_of_a_conversation_is_an_example(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    first, second = read(tmp_path, CHAT, rows)
    assert (first.fields, first.references) == ({"history": "A: Hi", "speaker": "B"}, ("Hello you",))
    assert second.fields["history"] == "A: Hi\nB: Hello you\nA: Bye"
    assert first.origin == second.origin


def test_a_task_may_take_system_history_and_message_apart(tmp_path: Path) -> None:
    first, second = read(tmp_path, SUPPORT, messages())
    assert first.fields == {"system": "Be kind.", "history": "", "message": "Hi"}
    assert second.fields == {"system": "Be kind.", "history": "A: Hi\nB: Hello you", "message": "Bye"}


def test_what_a_task_cannot_hold_of_a_conversation_is_counted(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    rows = read(tmp_path, BOT, messages(), counts=counts)
    assert [(row.fields["text"], row.references[0]) for row in rows] == [
        ("Hi", "Hello\nyou"),
        ("Bye", "So long"),
    ]
    assert counts == {
        "system messages left out: the task has no field system": 1,
        "replies without the turns before: the task has no field history": 1,
    }


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "robot", "content": "x"}, "message 0 has a role that is none of"),
        ({"role": "user"}, "message 0 must have its text in content, or in value"),
        ("hi", "message 0 must be an object"),
    ],
)
def test_a_wrong_message_is_named(tmp_path: Path, message: Any, problem: str) -> None:
    with pytest.raises(InvalidData, match=f"line 1: key 'messages': {problem}"):
        read(tmp_path, BOT, [{"messages": [message]}])


def test_a_column_may_hold_the_messages(tmp_path: Path) -> None:
    rows = [{"log": messages()[0]["messages"]}]
    assert len(read(tmp_path, CHAT, rows, ["messages=log"])) == 2


# --- Alpaca


@pytest.mark.parametrize(("given", "asked"), [("", "Say hi"), ("in French", "Say hi\nin French")])
def test_alpaca_fills_the_tasks_field(tmp_path: Path, given: str, asked: str) -> None:
    (row,) = read(tmp_path, BOT, [{"instruction": "Say hi", "input": given, "output": "hi"}])
    assert (row.fields["text"], row.references) == (asked, ("hi",))


def test_alpacas_parts_stay_apart_where_the_task_takes_them_so(tmp_path: Path) -> None:
    task = Task("do", "generate", "{instruction}\n{input}\n=>")
    (row,) = read(tmp_path, task, [{"instruction": "Say hi", "output": "hi"}])
    assert row.fields == {"instruction": "Say hi", "input": ""}


# --- cuts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(toy_tokenizer(tmp_path_factory.mktemp("toy")))


LONG = "Tom has a ring. " + "Ann gave a coin to Bob. " * 10 + "Max sold the old drum."


@pytest.mark.parametrize(
    ("task", "pair", "kept"),
    [
        (MOOD, Pair({"text": LONG}, "good"), "sold the old drum."),
        (QA, Pair({"context": LONG, "question": "Who?"}, "Tom"), "Tom has a ring."),
        (QA, Pair({"context": LONG, "question": "What?"}, "old drum"), "sold the old drum."),
    ],
)
def test_a_long_document_is_cut_to_the_block_as_serving_does(
    tokenizer: Tokenizer, task: Task, pair: Pair, kept: str
) -> None:
    fitted = fit(task, tokenizer, pair, 40)
    assert fitted is not None and kept in fitted.fields[task.document or ""]
    assert 36 <= len(encode_pair(task, tokenizer, fitted, False).ids) <= 40


def test_what_fits_stays_and_what_cannot_be_cut_is_left_out(tokenizer: Tokenizer) -> None:
    pair = Pair({"text": "Tom has a ring."}, "good")
    assert fit(MOOD, tokenizer, pair, 100) is pair
    assert fit(MOOD, tokenizer, pair, 4) is None
    assert fit(replace(MOOD, document=None), tokenizer, Pair({"text": LONG}, "good"), 40) is None


def test_a_tokenizer_that_knows_nothing_of_a_text_is_refused(tmp_path: Path) -> None:
    folder = toy_tokenizer(tmp_path)
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = values["model"]["vocab"]
    values["model"]["vocab"] = {
        piece: n for piece, n in vocabulary.items() if piece.isascii() or piece[0] == "Ġ"
    }
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    english = Tokenizer.load(folder)
    with pytest.raises(EncodesToNothing, match=r"faq.csv, line 7: the tokenizer encodes it to no token"):
        encode_pair(BOT, english, Pair({"text": "春眠"}, "Tom", "faq.csv, line 7"), False)
    with pytest.raises(EncodesToNothing):
        encode_text(english, "春眠")
