"""Makes questions out of plain passages, so that a model learns to match and to copy before it sees real
ones.

A sentence of the passage loses a span (a name, a date, a number, a noun phrase, a reason); what is left,
thinned out and put after a question word, is the question, and the span, which still stands in the passage,
is the answer. English only: the patterns are of English. Rendering is in `model_store/training/examples.py`.

Source: Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation"; Ram et al. 2021, "Few-Shot
    Question Answering by Pretraining Span Selection".
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from model_store.borders import split_sentences
from model_store.english import STOPWORDS

_TOKEN = re.compile(r"\w+(?:[-'\u2019.,]\w+)*|[^\w\s]")
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_UNIT = (
    r"(?: (?:%|percent|per cent|million|billion|thousand|hundred|years|miles|km|square|metres|feet|people"
    r"|days)\b)?"
)
_PATTERNS: dict[str, re.Pattern[str]] = {
    "reason": re.compile(r"\b(?:because|so that|in order to|due to|since) ([^.,;!?]{8,90})"),
    "date": re.compile(rf"((?:\d{{1,2}} )?(?:{_MONTH})(?: \d{{1,2}})?(?:,? \d{{4}})?|\b(?:1\d|20)\d\d\b)"),
    "number": re.compile(
        rf"((?:[$£€]\s?)?\b\d[\d,.]*\d\b{_UNIT}|\b\d+\b{_UNIT}"
        r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|hundred|thousand)\b)"
    ),
    "name": re.compile(
        r"(?<=[a-z,;:)] )((?:[A-Z][\w\u2019'-]+)(?: (?:of |the |de |von |van )?[A-Z][\w\u2019'-]+)*)"
    ),
    "place": re.compile(
        r"\b(?:in|at|on|to|into|from|under) "
        r"((?:the|a|an|his|her|their|its) (?:[\w\u2019'-]+ ){0,2}[\w\u2019'-]+)\b"
    ),
    "thing": re.compile(
        r"\b((?:the|a|an|his|her|its|their|some|many|several|my) "
        r"(?:[a-z][\w\u2019'-]+ ){0,2}[a-z][\w\u2019'-]+)\b"
    ),
}
_QUESTION_WORDS: dict[str, tuple[str, ...]] = {
    "reason": ("Why",),
    "date": ("When", "When", "In what year"),
    "number": ("How many", "How many", "How much", "What"),
    "name": ("Who", "Who", "What", "Which", "Where"),
    "place": ("Where", "Where", "What", "Which"),
    "thing": ("What", "What", "What", "Who"),
}
_SHARE = {"reason": 1.0, "date": 0.9, "number": 0.8, "name": 1.0, "place": 0.6, "thing": 0.55}
_AUXILIARIES = ("did", "was", "is", "were", "does", "are", "had")
_MAX_ANSWER_CHARS = 90


@dataclass(frozen=True, slots=True)
class Cloze:
    """One made question; `answer` stands in the passage that it was made from."""

    question: str
    answer: str


def split_passages(document: str, rng: random.Random, low: int, high: int) -> Iterator[str]:
    """Cut a document into passages of whole sentences.

    Args:
        document: Paragraphs separated by newlines.
        rng: Draws each passage's length.
        low: The fewest words of a passage (but for a document's last one: half of it).
        high: The most words aimed at.
    """
    passage: list[str] = []
    size, wanted = 0, rng.randint(low, high)
    for sentence in split_sentences(document):
        passage.append(sentence)
        size += len(sentence.split())
        if size >= wanted:
            yield " ".join(passage)
            passage, size, wanted = [], 0, rng.randint(low, high)
    if size >= low // 2:
        yield " ".join(passage)


def make_questions(passage: str, rng: random.Random, count: int) -> list[Cloze]:
    """Make up to `count` questions about a passage, each with another answer."""
    candidates = [(s, kind, span) for s in split_sentences(passage) for kind, span in _spans(s, rng)]
    rng.shuffle(candidates)
    made: dict[str, Cloze] = {}
    for sentence, kind, (start, end) in candidates:
        if len(made) >= count:
            break
        answer = sentence[start:end].strip(" ,;:")
        if rng.random() > _SHARE[kind] or answer in made or not _is_good_answer(answer):
            continue
        question = _question(sentence[:start], sentence[end:], kind, rng)
        if question and answer.lower() not in question.lower():
            made[answer] = Cloze(question, answer)
    return list(made.values())


def _spans(sentence: str, rng: random.Random) -> list[tuple[str, tuple[int, int]]]:
    """One span of each kind that the sentence has."""
    chosen = []
    for kind, pattern in _PATTERNS.items():
        if spans := [match.span(1) for match in pattern.finditer(sentence)]:
            chosen.append((kind, rng.choice(spans)))
    return chosen


def _is_good_answer(answer: str) -> bool:
    """No stop word alone, not cut inside an abbreviation, not too long."""
    if not answer or len(answer) > _MAX_ANSWER_CHARS or re.search(r"\b[A-Z]$", answer):
        return False
    words = answer.lower().split()
    return words[-1] not in STOPWORDS or words[-1] in ("one", "two")


def _question(before: str, after: str, kind: str, rng: random.Random) -> str:
    """Word a question from what stands around the span; "" when too little is left."""
    left = _TOKEN.findall(before)[-rng.choice((3, 5, 8, 12, 20)) :]
    right = _TOKEN.findall(after)[: rng.choice((3, 5, 8, 12, 20))]
    if kind != "reason":
        left = _clause(left[::-1], rng)[::-1]
    right = _clause(right, rng)
    share = rng.choice((0.0, 0.1, 0.25, 0.4))
    left, right = _thin(left, share, rng), _thin(right, share, rng)
    if sum(word.lower() not in STOPWORDS for word in left + right) < 2:
        return ""
    words = _order(rng.choice(_QUESTION_WORDS[kind]), left, right, rng)
    text = " ".join(words)
    return text[0].upper() + text[1:] + "?"


def _clause(words: list[str], rng: random.Random) -> list[str]:
    """Keep the words up to the end of the clause."""
    for index, word in enumerate(words):
        if word in ";:()." or (word == "," and rng.random() < 0.4):
            return words[:index]
    return words


def _thin(words: list[str], share: float, rng: random.Random) -> list[str]:
    """Drop most punctuation, a share of the stop words and half that share of the others."""
    drop = {True: share, False: share / 2}
    kept = [w for w in words if w[0].isalnum() or rng.random() < 0.2]
    return [w for w in kept if rng.random() >= drop[w.lower() in STOPWORDS]]


def _order(asked: str, left: list[str], right: list[str], rng: random.Random) -> list[str]:
    """Put the question word first, where the span was, or before an auxiliary; rarely shuffle the rest."""
    draw = rng.random()
    if draw < 0.45:
        return [asked, *left, *right] if rng.random() < 0.7 else [asked, *right, *left]
    if draw < 0.65:
        return [*left, asked.lower(), *right]
    if draw < 0.9:
        return [asked, rng.choice(_AUXILIARIES), *left, *right]
    rest = left + right
    rng.shuffle(rest)
    return [asked, *rest]
