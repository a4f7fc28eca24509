"""Figures outside ASCII, of several references, with intervals: against sacrebleu and rouge_score."""

# ruff: noqa: RUF001 -- Cyrillic, and Chinese punctuation

from collections.abc import Sequence

import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF
from toy import QA

from model_store.task import Task
from model_store.training.grounding import ground
from model_store.training.judged import Item, judge
from model_store.training.measures import bleu, chrf, difference, macro_f1, mean
from model_store.training.metrics_text import (
    ROUGE,
    bleu_tokenizer,
    exact_match,
    lead_sentences,
    repetition_rate,
    rouge,
    token_f1,
)

MOOD = Task("mood", "choice", "{text}", document="text", labels=("good", "bad", "mixed"))
TRANSLATE = Task("translate", "generate", "{text}", document="text")
CHAT = Task("chat", "generate", "{history}\n{speaker}:", document="history")
CHINESE = "春眠不觉晓，处处闻啼鸟。"


@pytest.mark.parametrize(
    "text",
    ["Добрый день", CHINESE, "नमस्ते दुनिया", "สวัสดีชาวโลก", "これはペンです", "안녕하세요 세계", "l'été à Noël"],
)
def test_rouge_and_f1_of_a_text_with_itself_are_one(text: str) -> None:
    assert set(rouge(text, text).values()) == {1.0} and token_f1(text, text) == 1.0


def test_rouge_of_english_is_that_of_rouge_score() -> None:
    said = "The running dogs, they're 3.5 times_faster than U.S. cats!"
    wanted = "Dogs were faster; the dog is running 3.5 times as fast as US cats."
    reference = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True).score(wanted, said)
    assert rouge(said, wanted) == {name: score.fmeasure for name, score in reference.items()}


def test_accents_tell_words_apart() -> None:
    assert rouge("été", "ete")["rouge1"] == 0.0


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [("北京市", "北京", 0.8), ("北京。", "「北京」", 1.0), ("上海", "北京", 0.0)],
)
def test_f1_of_chinese_counts_characters(said: str, wanted: str, expected: float) -> None:
    assert token_f1(said, wanted) == pytest.approx(expected)


def test_full_width_digits_and_foreign_punctuation_do_not_make_an_answer_wrong() -> None:
    assert exact_match("１９８４年。", ["1984年"]) == 1.0 and exact_match("«Да»!", ["да"]) == 1.0


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("\u200fمرحبا\u200e", "مرحبا"),  # marks of direction
        ("می\u200cخواهم", "میخواهم"),  # a non-joiner
        ("co\u00adoperate", "cooperate"),
        ("ℌello", "hello"),  # a capital that only NFKC shows
        ("cafe\u0301", "café"),
    ],
)
def test_what_cannot_be_seen_makes_no_answer_wrong(said: str, wanted: str) -> None:
    assert exact_match(said, [wanted]) == token_f1(said, wanted) == rouge(said, wanted)["rouge1"] == 1.0


def test_arabic_hindi_and_thai_words_count_as_their_readers_count_them() -> None:
    assert token_f1("ذهب الولد", "ذهب الولد إلى المدرسة") == pytest.approx(2 * 2 / (2 + 4))
    assert rouge("लड़का घर गया।", "लड़का स्कूल गया।")["rouge1"] == pytest.approx(2 / 3)
    assert token_f1("ไทย", "ไทยแลนด์") == pytest.approx(2 * 3 / (3 + 8))  # characters
    assert rouge("소년이 갔다", "소년이 학교에 갔다.")["rouge1"] == pytest.approx(0.8)


def test_repetition_of_chinese_counts_characters() -> None:
    assert repetition_rate("好" * 100) > 0.9 and repetition_rate("春眠不觉晓") == 0.0


def test_a_chinese_lead_is_joined_without_spaces() -> None:
    assert lead_sentences("他来了。她走了。好。") == "他来了。她走了。"


def test_a_near_answer_is_found_in_a_chinese_context() -> None:
    found = ground("中国的首都是北京市，人口很多。", "首都北京市")
    assert found.text == "首都是北京市" and found.overlap > 0.9


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        (CHINESE, "zh"),
        ("我在 Microsoft Azure 上部署了 Kubernetes cluster", "zh"),
        ("これはペンです", "char"),
        ("สวัสดีชาวโลก", "char"),
        ("Hallo", "13a"),
        ("A quotation of 春眠 stands in an English text", "13a"),
        ("안녕하세요", "13a"),
        ("नमस्ते दुनिया", "13a"),
        ("مرحبا بالعالم", "13a"),
    ],
)
def test_bleus_tokenizer_is_chosen_by_script(text: str, tokenizer: str) -> None:
    assert bleu_tokenizer([text]) == tokenizer


SAID = ["the cat sat on the mat today", "a dog barks at night"]
WANTED = [("the cat sat on a mat", "the cat sat on the mat"), ("dogs bark at night",)]


def test_bleu_and_chrf_of_several_references_are_sacrebleus() -> None:
    streams = [["the cat sat on a mat", "dogs bark at night"], ["the cat sat on the mat", None]]
    assert bleu(SAID, WANTED).value == pytest.approx(BLEU().corpus_score(SAID, streams).score)
    assert chrf(SAID, WANTED).value == pytest.approx(CHRF().corpus_score(SAID, streams).score)


def test_chinese_bleu_is_that_of_sacrebleus_zh() -> None:
    said = "春眠不觉晓，到处是鸟。"
    expected = BLEU(tokenize="zh").corpus_score([said], [[CHINESE]]).score
    assert bleu([said], [(CHINESE,)]).value == pytest.approx(expected) and expected > 10


@pytest.mark.parametrize(
    ("task", "fields"),
    [(TRANSLATE, {"text": "x"}), (MOOD, {"text": "x"}), (QA, {"context": "x", "question": "y"})],
)
def test_any_of_several_references_is_right(task: Task, fields: dict[str, str]) -> None:
    item = Item(fields, ("good", "bad"))
    for said in item.references:
        judged = judge(task, [item], [said])
        assert judged.measure("accuracy" if task.kind == "choice" else judged.main).value == pytest.approx(
            100
        )


# --- choices


def judged_moods(said: Sequence[str]) -> dict[str, object]:
    wanted = ["good"] * 6 + ["bad"] * 3 + ["mixed"]
    return judge(MOOD, [Item({"text": "x"}, (label,)) for label in wanted], said).figures()


def test_choices_stand_beside_the_majority_with_each_labels_figures() -> None:
    figures = judged_moods(["good"] * 5 + ["bad"] * 3 + ["good", "good"])
    assert (figures["accuracy"], figures["majority_accuracy"]) == (70.0, 60.0)
    assert figures["labels"]["bad"] == {"count": 3, "precision": 66.67, "recall": 66.67, "f1": 66.67}  # type: ignore[index]
    assert figures["labels"]["mixed"]["f1"] == 0.0  # type: ignore[index]
    assert figures["confusion"]["bad"] == {"good": 1, "bad": 2, "mixed": 0}  # type: ignore[index]
    assert figures["macro_f1"] == pytest.approx((100 * 10 / 13 + 200 / 3 + 0) / 3, abs=0.01)


def test_the_majority_is_the_label_that_is_right_most_often_where_several_are() -> None:
    wanted = [("good", "bad"), ("good", "bad"), ("mixed", "bad"), ("mixed",)]
    figures = judge(MOOD, [Item({"text": "x"}, labels) for labels in wanted], ["bad"] * 4).figures()
    assert figures["majority_accuracy"] == 75.0 == figures["accuracy"]


def test_a_label_that_never_occurs_does_not_count_in_the_macro_f1() -> None:
    assert macro_f1(MOOD.labels, [("good",), ("bad",)], ["good", "bad"]).value == 100


# --- texts


def test_texts_stand_beside_copying_what_was_given() -> None:
    items = [Item({"text": "one two three four"}, ("one two three four five",))]
    figures = judge(TRANSLATE, items, ["five"]).figures()
    assert figures["copy_rougeL"] == pytest.approx(100 * 8 / 9, abs=0.01) and figures["rougeL"] < 50


def test_copying_a_conversation_is_repeating_its_last_turn() -> None:
    items = [Item({"history": "A: Hi\nB: Hello\nA: How are you", "speaker": "B"}, ("How are you",))]
    assert judge(CHAT, items, ["x"]).figures()["copy_rougeL"] == 100


def test_the_worst_answers_come_first_and_right_ones_never() -> None:
    items = [Item({"text": "x"}, (text,)) for text in ("all of it", "nearly it", "nothing")]
    worst = judge(TRANSLATE, items, ["all of it", "nearly this", "0"]).worst()
    assert [said for _, said, _ in worst] == ["0", "nearly this"]


# --- intervals


@pytest.mark.parametrize(("right", "low", "high"), [(80, 95.42, 100.0), (0, 0.0, 4.58), (40, 39.3, 60.7)])
def test_a_share_has_wilsons_interval(right: int, low: float, high: float) -> None:
    found = mean("accuracy", [1.0] * right + [0.0] * (80 - right)).interval()
    assert found == pytest.approx((low, high), abs=0.05)


def test_a_mean_of_other_numbers_has_that_of_drawn_test_sets() -> None:
    values = [0.2, 0.4, 0.9, 0.5] * 25
    low, high = mean("f1", values).interval()
    assert low == pytest.approx(50 - 1.96 * 25.5 / 10, abs=0.6) and high == pytest.approx(55, abs=0.6)


def test_a_difference_on_the_same_items_is_surer_than_the_figures_are() -> None:
    first, second = [1.0, 0.0] * 50, [1.0, 0.0] * 45 + [1.0] * 10
    found = difference(mean("a", first), mean("a", second))
    assert (found.first, found.second) == (50.0, 55.0)
    assert found.is_clear and found.high - found.low < 10


def test_equal_models_do_not_differ() -> None:
    same = mean("a", [1.0, 0.0] * 20)
    found = difference(same, same)
    assert (found.low, found.high, found.is_clear) == (0.0, 0.0, False)
