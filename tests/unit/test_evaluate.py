"""Metrics, baselines and the evaluation of models and services."""

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from toy import QA

from model_store.task import Task
from model_store.training.errors import EvaluationFailed, InvalidData
from model_store.training.evaluate import Item, Service, evaluate, read_items
from model_store.training.metrics_text import (
    best_f1,
    exact_match,
    lead_sentences,
    overlap_sentence,
    repetition_rate,
    rouge,
    token_f1,
)

SUMMARIZE = Task(name="summarize", kind="summarize", template="{text}\nTL;DR:", document="text")


class Parrot(Service):
    """Answers with the context's second word, or nothing where there is none."""

    def __init__(self) -> None:
        super().__init__(httpx.Client(), num_parallel=2)

    def ask(self, task: Task, fields: Mapping[str, str], seed: int = 0) -> str:
        words = fields["context" if task.kind == "qa" else "text"].split()
        return words[1] if len(words) > 1 else ""


class Handler(BaseHTTPRequestHandler):
    """Answers /tasks/qa as the service does; a question without a mark is refused."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_good = body.get("question", "").endswith("?")
        reply = {"answer": body.get("context", "").split()[0]} if is_good else {"error": {"code": "no"}}
        data = json.dumps(reply).encode()
        self.send_response(200 if is_good else 422)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def service_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def asked(url: str) -> Service:
    return Service(httpx.Client(base_url=url))


def item(context: str, *answers: str) -> Item:
    return Item({"context": context, "question": "Who?"}, answers or ("",))


# --- metrics


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the Cat!", "cat", 1.0),
        ("a big cat", "cat", 2 / 3),
        ("", "cat", 0.0),
        ("", "", 1.0),
        ("dog", "cat", 0.0),
    ],
)
def test_token_f1_is_that_of_squad(prediction: str, reference: str, expected: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(expected)


def test_the_best_of_several_references_counts() -> None:
    assert best_f1("1984", ["in 1985", "1984"]) == 1.0


def test_an_exact_match_ignores_articles_case_and_punctuation() -> None:
    assert exact_match("The U.S.", ["us"]) == 1.0


def test_rouge_of_a_text_with_itself_is_one() -> None:
    assert rouge("A cat sat.", "A cat sat.") == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}


def test_rouge_l_follows_the_order_of_words() -> None:
    scores = rouge("c b a", "a b c")
    assert (scores["rouge1"], round(scores["rougeL"], 3)) == (1.0, 0.333)


@pytest.mark.parametrize(("text", "rate"), [("a b c d e", 0.0), ("a b c d a b c d", 0.2), ("a", 0.0)])
def test_the_repetition_rate_is_the_share_of_repeated_4_grams(text: str, rate: float) -> None:
    assert repetition_rate(text) == pytest.approx(rate)


def test_the_lead_baseline_is_two_sentences() -> None:
    assert lead_sentences('One came. "Two went." Three stayed.') == 'One came. "Two went."'


def test_the_overlap_baseline_finds_the_sentence_of_the_question() -> None:
    context = "Tom sleeps. Ann sold the old drum. Bob eats."
    assert overlap_sentence("Who sold a drum?", context) == "Ann sold the old drum."


# --- scoring


def test_figures_tell_answered_and_unanswered_apart() -> None:
    items = [item("a Tom b", "Tom"), item("a Max b", "Ann"), item("x"), item("x y")]
    figures = evaluate(Parrot(), QA, items)
    assert (figures["f1"], figures["f1_answerable"], figures["no_answer_accuracy"]) == (50.0, 50.0, 50.0)


def test_summaries_stand_beside_the_lead_baseline() -> None:
    figures = evaluate(Parrot(), SUMMARIZE, [Item({"text": "One two. Three. Four."}, ("One two. Three.",))])
    assert figures["lead2_rougeL"] == 100.0 and figures["rougeL"] < 100.0


def test_a_test_set_may_name_several_right_answers(tmp_path: Path) -> None:
    record = {"context": "Tom.", "question": "Who?", "answer": ["Tom", "he"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record), encoding="utf-8")
    assert read_items(tmp_path / "a.jsonl", QA)[0].references == ("Tom", "he")


def test_a_test_set_without_an_example_is_refused(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InvalidData, match="gives no example for task 'bot'"):
        read_items(tmp_path / "a.jsonl", Task("bot", "generate", "{text}"))


def test_a_reference_that_is_no_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"context": "", "question": "", "answer": [3]}', encoding="utf-8")
    with pytest.raises(InvalidData, match="line 1: key 'answer' must be a string or a list of strings"):
        read_items(tmp_path / "a.jsonl", QA)


# --- asking


def test_a_service_is_asked_over_http(service_url: str) -> None:
    assert asked(service_url).ask(QA, {"context": "Tom sleeps.", "question": "Who?"}) == "Tom"


def test_a_refusal_of_the_service_is_shown(service_url: str) -> None:
    with pytest.raises(EvaluationFailed, match="POST /tasks/qa gave 422"):
        asked(service_url).ask(QA, {"context": "Tom sleeps.", "question": "Who"})


def test_a_service_that_is_not_there_is_an_error_of_one_line() -> None:
    with pytest.raises(EvaluationFailed, match="ConnectError"):
        asked("http://127.0.0.1:9").ask(QA, {"context": "Tom", "question": "Who?"})
