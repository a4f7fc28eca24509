"""Turns reference answers and summaries into words of the document, which is what a small model can give.

Many reference answers are no exact span: another case, a word left out, a paraphrase. Training on the
context's own words keeps grounded answering honest; what has no near span is left out and counted. No tokens
here: see `examples.py`.
"""

import re
from collections import Counter
from dataclasses import dataclass

from model_store.borders import UNSPACED, split_sentences
from model_store.training.metrics_text import answer_words, normalize_answer

_WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w\u2019'-])+")
_EXTRA_WORDS = 6  # how much longer than the answer a span may be


@dataclass(frozen=True, slots=True)
class Grounded:
    """A span of a context.

    Args:
        text: The context's own words; "" where nothing overlaps.
        overlap: Token F1 of the span and the answer it stands for, from 0 to 1.
    """

    text: str
    overlap: float


def ground(context: str, answer: str) -> Grounded:
    """Find the span of `context` that is nearest to `answer`: exact, else blind to case, else of highest F1.

    Cost:
        Linear in the context for exact spans; else (words shared) x (answer's words + 6).
    """
    wanted = answer.strip()
    if wanted in context:
        return Grounded(wanted, 1.0)
    match = re.search(re.escape(wanted.strip(" .")), context, re.IGNORECASE)
    if match and match.group():
        return Grounded(match.group(), 1.0)
    return _best_overlap(context, answer_words(answer))


def lead_target(document: str, low: int, high: int) -> str:
    """Give a document's leading sentences, as a summary that a small model can learn to copy.

    Args:
        document: The text to summarize.
        low: Stop once there are so many words.
        high: Take no further sentence that would exceed so many words; cut a first sentence longer than that.
    """
    taken: list[str] = []
    for sentence in split_sentences(document):
        words = sentence.split()
        if len(taken) >= low or (taken and len(taken) + len(words) > high):
            break
        taken += words
    return " ".join(taken[:high])


def _best_overlap(context: str, wanted: list[str]) -> Grounded:
    """Try every span that begins and ends with a word of the answer."""
    words = [(m.start(), m.end(), normalize_answer(m.group())) for m in _WORD.finditer(context)]
    target = Counter(wanted)
    best = Grounded("", 0.0)
    for first, (start, _, word) in enumerate(words):
        if word not in target:
            continue
        seen: Counter[str] = Counter()
        for _, end, other in words[first : first + len(wanted) + _EXTRA_WORDS]:
            seen[other] += other != ""
            if other not in target:
                continue
            overlap = 2 * (seen & target).total() / (seen.total() + len(wanted))
            if overlap > best.overlap:
                best = Grounded(context[start:end], overlap)
    return best
