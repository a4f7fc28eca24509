"""Chooses the sentences of a document that are worth reading, so that a small model reads little and reads it
well.

For a question these are the sentences that share its rarer words (BM25 inside the document); for a summary,
those whose words the document keeps returning to, early ones first. A task with `evidence` renders only
these, in training as in serving. Made for scripts with spaces between words.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; Luhn 1958, "The
    Automatic Creation of Literature Abstracts"; Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain
    Questions" (retrieve, then read).
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

from model_store.borders import (
    clause_ends,
    each_sentence_end,
    whole_characters,
    without_widthless,
    word_ends,
)
from model_store.english import STOPWORDS
from model_store.steps import Steps, listed

SENTENCE_BREAK = "\n"  # between sentences; inside them every line break is a space
_LONGEST = 300  # bytes of a sentence, and so tokens; a longer one is cut at a comma or between words
_MOST_SENTENCES = 20_000  # in some two million characters of prose
_PER_STEP = 128  # sentences
_BYTES_PER_WORD = 6  # so many count as a word at least: in Chinese, a sentence has no spaces
_SATURATION, _LENGTH_NORM = 0.8, 0.2  # BM25's k1 and b; sentences are short and of similar length
_EARLY = 1.25  # what a sentence gains by standing first, half of it by standing second; chosen by measurement
_SHORT = 5  # stems that a sentence counts as more, lest the shortest win; chosen like _EARLY
_FROM_BEFORE = 0.2  # what a sentence takes of the score before it: "He was born there" follows the name
_RUNNING = 3  # copies of a line that make it a running head or foot
_TIE = 1e-9  # what a sentence counts that shares nothing with others: it still comes before a running line
_MOST_LINES = 100_000
_LONGEST_LINE = 200  # characters; longer ones are paragraphs
_LINE_END = re.compile(r"[\n\r\f]")
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"\w+")
_SUFFIXES = ("ing", "ed", "es", "s", "er", "ly")
_STEM = 6


@dataclass(frozen=True, slots=True)
class Evidence:
    """Chosen sentences, and where they stand in the document.

    Args:
        text: The sentences with `SENTENCE_BREAK` in between, each as long in characters as in the document.
        starts: Where each sentence starts in `text`, ascending.
        origins: Where each starts in the document, code points.
    """

    text: str
    starts: tuple[int, ...]
    origins: tuple[int, ...]

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]`, a piece of one sentence, stands in the document."""
        index = max(bisect_right(self.starts, start) - 1, 0)
        shift = self.origins[index] - self.starts[index]
        return start + shift, end + shift


def on_one_line(text: str) -> str:
    """A text as evidence shows it: every white space is a space, character for character."""
    return re.sub(r"\s", " ", text)


def whole(document: str) -> Evidence:
    """All of a document, as it is."""
    return Evidence(document, (0,), (0,))


def for_question(document: str, question: str, num_words: int) -> Steps[Evidence]:
    """The sentences that a question is likely to be answered by, best first.

    Args:
        document: Any text.
        question: Any text; without a word of the document's, the first sentences are taken.
        num_words: Sentences are taken until they have so many words.
    """
    spans = yield from _sentences(document)
    stems = yield from listed((_stems(document[slice(*span)]) for span in spans), _PER_STEP)
    scores = _bm25(stems, set(_stems(question)))
    scores = [score + _FROM_BEFORE * before for score, before in zip(scores, [0.0, *scores], strict=False)]
    return _join(document, _take(document, spans, scores, num_words))


def for_summary(document: str, num_words: int) -> Steps[Evidence]:
    """The sentences that a document is about, in its own order.

    What stands on every page (running heads and feet, "All rights reserved") is counted as if it stood there
    once, and taken when nothing else is left.

    Args:
        document: Any text.
        num_words: Sentences are taken, best first, until they have so many words.
    """
    spans = yield from _sentences(document)
    spans = yield from _parted_at(spans, document, (yield from _running_lines(document)))
    bags = yield from listed((Counter(_stems(document[slice(*span)])) for span in spans), _PER_STEP)
    forms = yield from listed((_form(document[slice(*span)]) for span in spans), _PER_STEP)
    copies = Counter(forms)
    first = dict(zip(reversed(forms), reversed(bags), strict=True))  # of each form
    counts = Counter(stem for bag in first.values() for stem in bag)
    scores = [
        (_salience(bag, counts) + _TIE)
        * (1 + _EARLY / (1 + index))
        * (_TIE**2 if copies[form] >= _RUNNING else 1.0)
        for index, (bag, form) in enumerate(zip(bags, forms, strict=True))
    ]
    return _join(document, sorted(_take(document, spans, scores, num_words)))


def _form(text: str) -> str:
    """What two copies of a running line have in common: not the page's number, nor the white space."""
    return _NUMBER.sub("0", " ".join(text.split())).casefold()


def _running_lines(document: str) -> Steps[list[tuple[int, int]]]:
    """Lines, as (start, end), that stand in a document several times but for their numbers; none where there
    are too many lines to compare.
    """
    if sum(map(document.count, "\n\r\f")) > _MOST_LINES:
        return []
    ends = (match.start() for match in _LINE_END.finditer(document))
    lines = (
        (before + 1, end)
        for before, end in pairwise(chain([-1], ends, [len(document)]))
        if 1 <= end - before - 1 <= _LONGEST_LINE
    )
    forms = yield from listed(((*span, _form(document[slice(*span)])) for span in lines), _PER_STEP)
    copies = Counter(form for _, _, form in forms)
    return [(start, end) for start, end, form in forms if copies[form] >= _RUNNING]


def _parted_at(
    spans: list[tuple[int, int]], document: str, lines: list[tuple[int, int]]
) -> Steps[list[tuple[int, int]]]:
    """Cut sentences where a running line begins or ends in them."""
    cuts = sorted({cut for line in lines for cut in line})

    def parts(span: tuple[int, int]) -> Iterator[tuple[int, int]]:
        within = cuts[bisect_right(cuts, span[0]) : bisect_left(cuts, span[1])]
        return (_stripped(document, *part) for part in pairwise((span[0], *within, span[1])))

    pieces = yield from listed((part for span in spans for part in parts(span)), _PER_STEP)
    return [(start, end) for start, end in pieces if start < end]


def _salience(bag: Counter[str], counts: Counter[str]) -> float:
    """How much of a sentence is shared with others; `counts` says how many sentences have a stem."""
    shared = sum(math.log1p(counts[stem]) for stem in bag if counts[stem] > 1)
    return shared / (_SHORT + len(bag))


def _bm25(sentences: list[list[str]], wanted: set[str]) -> list[float]:
    bags = [Counter(stems) for stems in sentences]
    counts = Counter(stem for bag in bags for stem in bag)
    mean = max(sum(map(len, sentences)) / max(len(sentences), 1), 1)

    def term(stem: str, bag: Counter[str], length: int) -> float:
        rarity = math.log1p((len(bags) - counts[stem] + 0.5) / (counts[stem] + 0.5))
        norm = 1 - _LENGTH_NORM + _LENGTH_NORM * length / mean
        return rarity * bag[stem] * (_SATURATION + 1) / (bag[stem] + _SATURATION * norm)

    return [
        sum(term(stem, bag, len(stems)) for stem in sorted(wanted & bag.keys()))
        for bag, stems in zip(bags, sentences, strict=True)
    ]


def _take(
    document: str, spans: list[tuple[int, int]], scores: list[float], num_words: int
) -> list[tuple[int, int]]:
    """The best sentences, best first, each text once, until they have `num_words`; of equals the earlier."""
    taken: list[tuple[int, int]] = []
    texts: set[str] = set()
    left = float(num_words)
    for index in sorted(range(len(spans)), key=lambda index: (-scores[index], index)):
        if left <= 0:
            break
        start, end = spans[index]
        sentence = document[start:end]
        text = " ".join(sentence.split()).casefold()
        if text in texts:
            continue
        texts.add(text)
        taken.append((start, end))
        left -= max(len(sentence.split()), len(_encoded(sentence)) / _BYTES_PER_WORD)
    return taken


def _join(document: str, spans: list[tuple[int, int]]) -> Evidence:
    texts = [on_one_line(document[start:end]) for start, end in spans]
    starts, at = [], 0
    for text in texts:
        starts.append(at)
        at += len(text) + len(SENTENCE_BREAK)
    text, origins = SENTENCE_BREAK.join(texts), tuple(start for start, _ in spans)
    return Evidence(text, tuple(starts) or (0,), origins or (0,))


def _sentences(document: str) -> Steps[list[tuple[int, int]]]:
    """Sentences as (start, end), white space at their ends left out; long ones in pieces, and several as one
    where there are too many to weigh each.
    """
    all_ends = yield from listed(each_sentence_end(document), _PER_STEP)
    ends = [*all_ends[:: len(all_ends) // _MOST_SENTENCES + 1], len(document)]
    spans = (piece for span in zip([0, *ends], ends, strict=False) for piece in _pieces(document, *span))
    stripped = yield from listed((_stripped(document, *span) for span in spans), _PER_STEP)
    return [(start, end) for start, end in stripped if start < end]


def _pieces(document: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a sentence into pieces of at most `_LONGEST`: at a clause's end, else a word's, else anywhere."""
    while start < end:
        part = document[start : min(start + _LONGEST, end)]
        part = part[: len(_encoded(part)[:_LONGEST].decode("utf-8", "ignore"))]
        cut = end
        if start + len(part) < end:
            cuts = [p for p in clause_ends(part) if p >= len(part) // 3] or word_ends(part)
            cut = start + (cuts[-1] if cuts else len(part))
            cut = whole_characters(document, cut, low=start + len(part) // 2)
        yield start, cut
        start = cut


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _stripped(document: str, start: int, end: int) -> tuple[int, int]:
    part = document[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def _stems(text: str) -> list[str]:
    words = _WORD.findall(without_widthless(text).lower())
    return [_stem(word) for word in words if word not in STOPWORDS]


def _stem(word: str) -> str:
    """Cut an English ending and what is beyond six letters, so that "invented" meets "inventor"."""
    ending = next((s for s in _SUFFIXES if word.endswith(s) and len(word) - len(s) >= 3), "")
    return word[: len(word) - len(ending)][:_STEM]
