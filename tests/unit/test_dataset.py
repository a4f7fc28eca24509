"""From files to packed rows: reading, rendering, packing, and what is refused before training."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard
from toy import QA, toy_tokenizer

from model_store.recipes.cloze import make_questions, split_passages
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.dataset import BuildPlan, Built, build
from model_store.training.errors import InvalidData
from model_store.training.examples import Example, Pair, encode_pair, shorten
from model_store.training.grounding import ground, lead_target
from model_store.training.packing import IGNORED, Rows, RowWriter
from model_store.training.recipe import Source
from model_store.training.text_files import documents, expand, records

STORY = "Tom has a ring. Ann gave a coin to Bob because he was sad. In 1984 Max sold the old drum to Ida."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(toy_tokenizer(tmp_path_factory.mktemp("toy")))


def built(folder: Path, tokenizer: Tokenizer, source: Source, block: int = 32, valid: float = 0.0) -> Built:
    plan = BuildPlan((source,), {"qa": QA}, block, is_loss_everywhere=False, valid_share=valid)
    return build(plan, tokenizer, folder / "rows", lambda line: None)


def questions(path: Path, values: Sequence[dict[str, str]]) -> Source:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return Source(path, kind="examples", task="qa")


def all_ids(rows: Rows) -> list[int]:
    return [int(token) for place in range(len(rows)) for token in rows[place]["input_ids"]]


# --- reading


def test_documents_end_at_separator_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n<|endoftext|>\nthree\n", encoding="utf-8")
    assert list(documents(tmp_path / "a.txt")) == ["one\ntwo", "three"]


def test_a_compressed_file_is_read_as_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress("學而\n".encode()))
    assert list(documents(tmp_path / "a.txt.zst")) == ["學而"]


def test_a_folder_gives_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "notes.pdf"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [path.name for path in expand([tmp_path])] == ["a.jsonl", "b.txt"]


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="holds no"):
        expand([tmp_path])


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidData, match="must end in"):
        expand([tmp_path / "a.pdf"])


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff byte\n")
    with pytest.raises(InvalidData, match=r"a\.txt, line 2: is not UTF-8: byte 0xff"):
        list(documents(tmp_path / "a.txt"))


def test_a_wrong_json_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "b"}\n\n{"a": \n', encoding="utf-8")
    with pytest.raises(InvalidData, match=r"a\.jsonl, line 3: is not JSON"):
        list(records(tmp_path / "a.jsonl"))


def test_a_broken_compressed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"no zstd at all")
    with pytest.raises(InvalidData, match="cannot be decompressed"):
        list(documents(tmp_path / "a.txt.zst"))


def test_a_missing_key_is_named_with_its_line_and_the_keys_there(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = questions(tmp_path / "a.jsonl", [{"context": "Tom.", "answer": "Tom"}])
    with pytest.raises(InvalidData, match=r"line 1: has no key 'question'; its keys are answer, context"):
        built(tmp_path, tokenizer, source)


# --- rendering


def pair(context: str, question: str, answer: str) -> Pair:
    return Pair({"context": context, "question": question}, answer)


def test_an_example_is_the_prompt_of_serving_and_the_answer(tokenizer: Tokenizer) -> None:
    asked = pair("Tom has a ring.", "What does Tom have?", "ring")
    example = encode_pair(QA, tokenizer, asked, is_loss_everywhere=False)
    assert example.ids == QA.encode(tokenizer, asked.fields) + QA.encode_answer(tokenizer, "ring")


def test_only_the_answer_and_its_end_count_in_the_loss(tokenizer: Tokenizer) -> None:
    asked = pair("Tom has a ring.", "What?", "ring")
    example = encode_pair(QA, tokenizer, asked, is_loss_everywhere=False)
    targets = [token for token, is_target in zip(example.ids, example.is_target, strict=True) if is_target]
    assert targets == QA.encode_answer(tokenizer, "ring")


def test_a_long_document_is_cut_at_a_token(tokenizer: Tokenizer) -> None:
    short = shorten(QA, tokenizer, pair(STORY, "Who?", "Tom"), 5)
    assert len(tokenizer.encode(short.fields["context"])) == 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a ring", "a ring"),
        ("IN 1984", "In 1984"),
        ("he was very sad", "he was sad"),
        ("a purple elephant", ""),
    ],
)
def test_an_answer_becomes_the_nearest_span_of_its_context(answer: str, expected: str) -> None:
    found = ground(STORY, answer)
    assert (found.text if found.overlap >= 0.55 else "") == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (3, 20, "Tom has a ring."),
        (5, 20, "Tom has a ring. Ann gave a coin to Bob because he was sad."),
        (5, 10, "Tom has a ring."),
        (2, 3, "Tom has a"),
    ],
)
def test_a_lead_is_whole_sentences_within_its_bounds(low: int, high: int, expected: str) -> None:
    assert lead_target(STORY, low, high) == expected


def test_made_questions_have_answers_that_stand_in_the_passage() -> None:
    made = [q for seed in range(30) for q in make_questions(STORY, random.Random(seed), 5)]
    assert made and all(question.answer in STORY for question in made)


def test_a_made_question_does_not_hold_its_answer() -> None:
    made = [q for seed in range(30) for q in make_questions(STORY, random.Random(seed), 5)]
    assert not [q for q in made if q.answer.lower() in q.question.lower()]


def test_passages_together_are_the_document() -> None:
    assert " ".join(split_passages(STORY, random.Random(0), 4, 8)) == STORY


# --- packing


def test_texts_are_packed_end_to_end(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=4, pad_id=0, vocab_size=100)
    for ids in ([1, 2, 3], [4, 5, 6, 7, 8]):
        writer.add_text(Example(ids, [True] * len(ids)))
    writer.finish()
    assert all_ids(Rows(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_examples_stay_whole_and_share_rows(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=40, pad_id=0, vocab_size=100)
    for ids in ([1] * 22, [2] * 30, [3] * 17):
        writer.add_whole(Example(ids, [True] * len(ids)))
    writer.finish()
    assert sorted(set(row["input_ids"].tolist()) for row in map(Rows(tmp_path).__getitem__, range(2))) == [
        {0, 1, 3},
        {0, 2},
    ]


def test_an_example_longer_than_a_row_is_not_packed(tmp_path: Path) -> None:
    with RowWriter(tmp_path, block=4, pad_id=0, vocab_size=100) as writer:
        assert not writer.add_whole(Example([1] * 5, [True] * 5))


def test_padding_does_not_count_in_the_loss(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=4, pad_id=0, vocab_size=100)
    writer.add_whole(Example([1, 2], [False, True]))
    writer.finish()
    assert Rows(tmp_path)[0]["labels"].tolist() == [IGNORED, 2, IGNORED, IGNORED]


def test_a_large_vocabulary_keeps_its_ids(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=2, pad_id=0, vocab_size=100_000)
    writer.add_whole(Example([99_999, 70_000], [True, True]))
    writer.finish()
    assert all_ids(Rows(tmp_path)) == [99_999, 70_000]


def test_shifted_rows_end_within_the_positions(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=8, pad_id=0, vocab_size=100)
    for _ in range(50):
        writer.add_text(Example([1] * 8, [True] * 8))
    writer.finish()
    rows = Rows(tmp_path, num_positions=20, shifted_share=0.5)
    ends = torch.stack([rows[place]["position_ids"][-1] for place in range(50)])
    assert ends.max() < 20 and ends.unique().numel() > 3


def test_prompts_can_count_a_little_and_padding_never(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=6, pad_id=0, vocab_size=100)
    writer.add_whole(Example([1, 2, 3, 0], [False, False, True, True]))
    writer.finish()
    weights = Rows(tmp_path, prompt_weight=0.25)[0]["weights"]
    assert weights.tolist() == [0.0, 0.25, 1.0, 1.0, 0.0, 0.0]


def two_examples_in_a_row(folder: Path) -> Path:
    writer = RowWriter(folder, block=8, pad_id=0, vocab_size=100)
    for ids in ([1, 2, 0], [3, 4, 0]):
        writer.add_whole(Example(ids, [True] * 3))
    writer.finish()
    return folder


def test_positions_begin_anew_with_each_example(tmp_path: Path) -> None:
    row = Rows(two_examples_in_a_row(tmp_path))[0]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


def test_nothing_is_learned_from_the_end_of_the_example_before(tmp_path: Path) -> None:
    row = Rows(two_examples_in_a_row(tmp_path))[0]
    assert row["labels"].tolist() == [IGNORED, 2, 0, IGNORED, 4, 0, IGNORED, IGNORED]


def test_positions_of_texts_run_on(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, block=6, pad_id=0, vocab_size=100)
    for ids in ([1, 2, 0], [3, 4, 0]):
        writer.add_text(Example(ids, [True] * 3))
    writer.finish()
    assert Rows(tmp_path)[0]["position_ids"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_shifted_row_moves_all_its_examples_alike(tmp_path: Path) -> None:
    rows = Rows(two_examples_in_a_row(tmp_path), num_positions=20, shifted_share=0.999)
    positions = rows[0]["position_ids"]
    assert positions[0] > 0 and (positions - positions[0]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0]


def test_pairs_on_one_document_stay_on_one_side(tmp_path: Path, tokenizer: Tokenizer) -> None:
    contexts = [f"Tom has a ring and {n} coins." for n in range(20)]
    values = [{"context": c, "question": q, "answer": "Tom"} for c in contexts for q in ("Who?", "Who has?")]
    found = built(tmp_path, tokenizer, questions(tmp_path / "a.jsonl", values), block=64, valid=0.5)
    train, valid = (tokenizer.decode(all_ids(Rows(folder))) for folder in (found.train, found.valid))
    counts = [(train.count(context), valid.count(context)) for context in contexts]
    assert set(counts) == {(0, 2), (2, 0)}


# --- building


def test_a_question_whose_answer_is_no_span_is_left_out_and_counted(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = questions(tmp_path / "a.jsonl", [{"context": "Tom.", "question": "Is he?", "answer": "yes"}] * 3)
    assert built(tmp_path, tokenizer, source).counts == {"answer is no span": 3}


def test_an_empty_answer_becomes_the_no_answer_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = questions(tmp_path / "a.jsonl", [{"context": "Tom.", "question": "Who?", "answer": ""}])
    rows = Rows(built(tmp_path, tokenizer, source).train)
    assert tokenizer.decode([i for i in rows[0]["labels"].tolist() if i > 0]).strip() == "unanswerable"


def test_what_a_share_leaves_out_is_not_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = questions(tmp_path / "a.jsonl", [{"context": "Tom.", "question": "Who?", "answer": ""}] * 40)
    counts = built(tmp_path, tokenizer, replace(source, share=0.5)).counts
    assert 0 < counts["unanswerable"] == counts["qa pairs"] < 40


def test_a_share_of_the_documents_is_kept_for_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("Tom has a ring.\n<|endoftext|>\n" * 200, encoding="utf-8")
    result = built(tmp_path, tokenizer, Source(tmp_path / "a.txt"), valid=0.3)
    sizes = [Rows(folder).info.num_tokens for folder in (result.train, result.valid)]
    assert 0.2 < sizes[1] / sum(sizes) < 0.4


def test_the_same_data_is_packed_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("Tom has a ring.\n" * 50, encoding="utf-8")
    first = built(tmp_path, tokenizer, Source(tmp_path / "a.txt"))
    stamp = (first.train / "ids.bin").stat().st_mtime_ns
    built(tmp_path, tokenizer, Source(tmp_path / "a.txt"))
    assert (first.train / "ids.bin").stat().st_mtime_ns == stamp


def test_changed_data_is_packed_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("Tom has a ring.\n" * 50, encoding="utf-8")
    first = built(tmp_path, tokenizer, Source(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("Tom has a coin.\n" * 51, encoding="utf-8")
    assert built(tmp_path, tokenizer, Source(tmp_path / "a.txt")).train != first.train


def test_a_wrong_file_leaves_no_rows_behind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok\n\xff\n")
    with pytest.raises(InvalidData):
        built(tmp_path, tokenizer, Source(tmp_path / "a.txt"))
    assert not list((tmp_path / "rows").iterdir())


# --- evidence and conversations


def test_a_question_whose_answer_is_outside_the_evidence_is_left_out(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    task = replace(QA, evidence=1)
    asked = [("What does Tom have?", "a ring"), ("What does Tom have?", "the old drum")]
    values = [{"context": STORY, "question": question, "answer": answer} for question, answer in asked]
    plan = BuildPlan((questions(tmp_path / "q.jsonl", values),), {"qa": task}, 64, is_loss_everywhere=False)
    found = build(plan, tokenizer, tmp_path / "rows", lambda line: None)
    assert found.counts["answer is outside the evidence"] == 1
    assert found.counts["qa pairs"] == 1
    text = tokenizer.decode(all_ids(Rows(found.train)))
    assert "Tom has a ring." in text and "drum" not in text


def test_conversations_become_examples_of_their_task(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text('"Who is it?"\n"It is me."\nThe end.\n', encoding="utf-8")
    talk = Task("talk", "generate", "{history}\n{speaker}:", document="history")
    source = Source(tmp_path / "a.txt", kind="dialogue", task="talk")
    plan = BuildPlan((source,), {"talk": talk}, 64, is_loss_everywhere=False)
    found = build(plan, tokenizer, tmp_path / "rows", lambda line: None)
    assert found.counts["talk pairs"] == 1
    assert "A: Who is it?\nB: It is me." in tokenizer.decode(all_ids(Rows(found.train)))


def test_an_answer_over_a_line_break_stands_in_the_evidence_as_it_is_shown(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    task = replace(QA, evidence=20)
    values = [{"context": "Tom has the old\ndrum.", "question": "What?", "answer": "the old\ndrum"}]
    plan = BuildPlan((questions(tmp_path / "q.jsonl", values),), {"qa": task}, 64, is_loss_everywhere=False)
    found = build(plan, tokenizer, tmp_path / "rows", lambda line: None)
    assert found.counts["qa pairs"] == 1
    assert tokenizer.decode(all_ids(Rows(found.train))).count("the old drum") == 2
