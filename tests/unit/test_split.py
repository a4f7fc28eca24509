"""The validation share: exact, by document and dialogue, with nothing in it that training has seen."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_tokenizer

from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import BuildPlan, Built, build
from model_store.training.errors import InvalidData
from model_store.training.packing import Rows
from model_store.training.recipe import Source
from model_store.training.split import draw_examples, draw_texts, num_duplicates, seen_in_training
from model_store.training.spool import TEXT, Table

MOOD = Task("mood", "choice", "{text}\nMood:", document="text", labels=("good", "bad"))
CHAT = Task("chat", "generate", "{history}\n{speaker}:", document="history", stop=("\n",))
ADVICE = Task("advice", "generate", "{topic}: {question}\n", document=None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(toy_tokenizer(tmp_path_factory.mktemp("toy")))


def table(tasks: Sequence[int], groups: Sequence[int], lengths: Sequence[int] = ()) -> Table:
    count = len(tasks)
    return Table(
        np.array(tasks, np.int32),
        np.array(lengths or [10] * count, np.int64),
        np.array(groups, np.uint64),
        np.arange(count, dtype=np.uint64),
        np.zeros(count, np.int32),
    )


def built(
    folder: Path,
    tokenizer: Tokenizer,
    task: Task,
    rows: Sequence[object],
    share: float | None,
    group: str = "",
    is_array: bool = False,
) -> Built:
    """Build rows of a file of JSON lines, or of an array on one line."""
    path = folder / ("rows.json" if is_array else "rows.jsonl")
    text = json.dumps(rows) if is_array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    source = Source(path, "examples", task.name, group=group)
    plan = BuildPlan((source,), {task.name: task}, 128, is_loss_everywhere=False, valid_share=share)
    return build(plan, tokenizer, folder / "built", lambda line: None)


def examples(rows: Rows, tokenizer: Tokenizer) -> list[str]:
    """The texts of the examples in packed rows."""
    found = []
    for index in range(len(rows)):
        row = rows[index]
        starts = [*(row["position_ids"] == 0).nonzero()[:, 0].tolist(), rows.info.block]
        for start, end in pairwise(starts):
            if end - start > 1:
                found.append(tokenizer.decode(row["input_ids"][start:end].tolist()))
    return found


@given(
    sizes=st.lists(st.integers(1, 4), min_size=12, max_size=80),
    share=st.floats(0.05, 0.5),
    seed=st.integers(0, 9),
)
def test_the_share_is_exact_where_single_rows_fill_it(sizes: list[int], share: float, seed: int) -> None:
    sizes = [*sizes, *[1] * 6]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    is_valid, by_row = draw_examples(table([0] * len(groups), groups), share, seed)
    wanted = max(1, round(share * len(groups)))
    assert wanted - 3 <= is_valid.sum() <= wanted and not by_row
    held = {group for group, flag in zip(groups, is_valid, strict=True) if flag}
    left = {group for group, flag in zip(groups, is_valid, strict=True) if not flag}
    assert not held & left


@pytest.mark.parametrize(("share", "expected"), [(0.02, 16), (0.1, 80), (0.25, 200)])
def test_of_unlike_rows_exactly_the_share_validates(share: float, expected: int) -> None:
    is_valid, _ = draw_examples(table([0] * 800, range(800)), share, seed=3)
    assert is_valid.sum() == expected


def test_each_task_has_its_share() -> None:
    tasks = [0] * 100 + [1] * 40 + [2] * 10
    is_valid, _ = draw_examples(table(tasks, range(150)), 0.1, seed=0)
    assert [int(is_valid[np.array(tasks) == task].sum()) for task in range(3)] == [10, 4, 1]


def test_one_document_under_all_rows_is_split_by_rows_and_said() -> None:
    is_valid, by_row = draw_examples(table([0] * 50, [7] * 50), 0.1, seed=0)
    assert (int(is_valid.sum()), by_row) == (5, {0})


def test_groups_larger_than_the_share_give_the_smallest() -> None:
    groups = [0] * 40 + [1] * 30 + [2] * 30
    is_valid, by_row = draw_examples(table([0] * 100, groups), 0.02, seed=0)
    assert int(is_valid.sum()) == 30 and not by_row


def test_nothing_validates_without_a_share() -> None:
    assert not draw_examples(table([0] * 9, range(9)), 0.0, seed=0)[0].any()
    assert not draw_texts(table([TEXT] * 9, range(9)), 0.0, seed=0).any()


def test_whole_documents_validate_where_they_fit() -> None:
    held = draw_texts(table([TEXT] * 100, range(100), [50] * 100), 0.1, seed=0)
    assert sorted(held.tolist()) == [0] * 90 + [50] * 10


def test_of_a_single_document_the_end_validates() -> None:
    assert draw_texts(table([TEXT], [1], [1000]), 0.1, seed=0).tolist() == [100]


def test_equal_documents_validate_together() -> None:
    held = draw_texts(table([TEXT] * 40, [1] * 20 + [2] * 20), 0.5, seed=0)
    assert sorted({*held[:20].tolist(), *held[20:].tolist()}) == [0, 10]


def test_what_training_has_is_no_validation() -> None:
    rows = table([0] * 4, [1, 2, 3, 4])
    rows.row[:] = [5, 5, 6, 7]
    seen = seen_in_training(rows, np.array([False, True, True, False]))
    assert seen.tolist() == [False, True, False, False]


def test_a_second_reading_makes_no_duplicates() -> None:
    rows = table([0] * 4, [1, 1, 1, 1])
    rows.row[:], rows.reading[:] = [5, 5, 5, 6], [0, 0, 1, 1]
    assert num_duplicates(rows) == 1


# --- from files


def test_duplicates_are_counted_and_stay_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"Tom has {n % 50} coins.", "label": "good"} for n in range(100)]
    random.Random(1).shuffle(rows)
    found = built(tmp_path, tokenizer, MOOD, rows, 0.2)
    train, valid = (examples(Rows(folder), tokenizer) for folder in (found.train, found.valid))
    assert found.counts == {"mood pairs": 100, "duplicates": 50}
    assert (len(train), len(valid)) == (80, 20) and not set(train) & set(valid)


@pytest.mark.parametrize("is_array", [False, True])
def test_the_turns_of_a_conversation_stay_on_one_side(
    tmp_path: Path, tokenizer: Tokenizer, is_array: bool
) -> None:
    rows = [
        {
            "messages": [
                {"role": role, "content": f"{said} {n}"}
                for turn in range(3)
                for role, said in (("user", f"ask {turn}"), ("assistant", f"say {turn}"))
            ]
        }
        for n in range(20)
    ]
    found = built(tmp_path, tokenizer, CHAT, rows, 0.2, is_array=is_array)
    assert not found.notes
    sides = [
        {text.rsplit(" ", 1)[-1] for text in examples(Rows(folder), tokenizer)}
        for folder in (found.train, found.valid)
    ]
    assert len(sides[1]) == 4 and not sides[0] & sides[1]


def test_histories_that_grow_are_one_dialogue(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = []
    for n in range(10):
        history = f"A: Hello {n}"
        for turn in range(3):
            rows.append({"history": history, "speaker": "B", "completion": f"reply {turn} to {n}"})
            history += f"\nB: reply {turn} to {n}\nA: more"
    found = built(tmp_path, tokenizer, CHAT, rows, 0.2)
    sides = [
        [text.split("Hello ")[1][0] for text in examples(Rows(folder), tokenizer)]
        for folder in (found.train, found.valid)
    ]
    assert len(sides[1]) == 6 and not set(sides[0]) & set(sides[1])


def test_an_equal_turn_of_another_dialogue_does_not_validate(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}
        for _ in range(20)
    ]
    found = built(tmp_path, tokenizer, CHAT, rows, 0.2)
    assert found.counts["left out of validation, as training has them"] == 4
    assert len(Rows(found.valid)) == 0 and len(examples(Rows(found.train), tokenizer)) == 16


def test_a_column_says_what_belongs_together(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"topic": f"t{n}", "question": "why", "completion": "so", "case": str(n // 5)} for n in range(100)
    ]
    found = built(tmp_path, tokenizer, ADVICE, rows, 0.1, group="case")
    sides = [
        {int(text.split("t")[1].split(":")[0]) // 5 for text in examples(Rows(folder), tokenizer)}
        for folder in (found.train, found.valid)
    ]
    assert len(sides[1]) == 2 and not sides[0] & sides[1]


def test_a_column_that_is_not_there_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidData, match="line 1: has no key 'case' to group by; its keys are label, text"):
        built(tmp_path, tokenizer, MOOD, [{"text": "a", "label": "good"}], 0.1, group="case")


def test_one_plain_text_file_gives_rows_to_validate_on(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(f"Tom has {n} coins." for n in range(900)), encoding="utf-8")
    plan = BuildPlan((Source(path),), {}, 64, is_loss_everywhere=True, valid_share=0.1)
    found = build(plan, tokenizer, tmp_path / "built", lambda line: None)
    train, valid = Rows(found.train).info, Rows(found.valid).info
    assert valid.num_tokens == round(0.1 * (train.num_tokens + valid.num_tokens))


def test_the_rows_of_valid_that_are_learned_from_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"Tom has {n} coins.", "label": "good"} for n in range(30)]
    (tmp_path / "other").mkdir()
    train = built(tmp_path, tokenizer, MOOD, rows, 0.0)
    valid = built(tmp_path / "other", tokenizer, MOOD, [{**rows[3], "label": "bad"}, *rows[-4:]], 0.0)
    assert train.num_equal(valid) == 4 and valid.num_equal(valid) == 5


def test_small_data_keeps_a_tenth_where_no_share_is_given(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"Tom has {n} coins.", "label": "good"} for n in range(60)]
    found = built(tmp_path, tokenizer, MOOD, rows, None)
    assert len(examples(Rows(found.valid), tokenizer)) == 6


def test_labels_without_an_example_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"Tom has {n} coins.", "label": "good"} for n in range(6)]
    assert built(tmp_path, tokenizer, MOOD, rows, 0.0).notes == (
        "task 'mood': no example has the label 'bad'",
    )
