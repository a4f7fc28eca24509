"""Finds conversations in stories: quoted speech in paragraphs that follow each other.

What stands between the quotes of one paragraph is one turn; the narrator's words fall away. Whoever speaks
first is A, and the speakers take turns, as they mostly do on paper. Rendering is in `examples.py`,
through a task with one field for the history.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SPEAKERS = ("A", "B")
_QUOTE = re.compile('"([^"]*)"|\u201c([^\u201d]*)\u201d')
_QUOTE_LENGTHS = range(2, 401)  # code points; others are no speech
_MAX_TURNS = 5  # of history
_MAX_WORDS = 60  # of a turn; longer speeches are no conversation


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply and what was said before it.

    Args:
        history: Lines "A: …" and "B: …", the last of them what is replied to.
        speaker: Whose turn it is: "A" or "B".
        text: The reply.
    """

    history: str
    speaker: str
    text: str


def replies(document: str) -> Iterator[Reply]:
    """Yield every reply of a document's conversations.

    Args:
        document: Paragraphs separated by newlines.
    """
    turns: list[str] = []
    for paragraph in [*document.split("\n"), ""]:
        said = _said(paragraph)
        if said:
            turns.append(said)
        else:
            yield from _replies(turns)
            turns = []


def _said(paragraph: str) -> str:
    """The quoted words of a paragraph, "" when there are none or too many."""
    quotes = [first or second for first, second in _QUOTE.findall(paragraph)]
    quotes = [quote for quote in quotes if len(quote) in _QUOTE_LENGTHS]
    text = " ".join(" ".join(quotes).split())
    if text.endswith(","):  # "Come in," said the fox.
        text = text[:-1] + "."
    return text if 0 < len(text.split()) <= _MAX_WORDS else ""


def _replies(turns: list[str]) -> Iterator[Reply]:
    for index in range(1, len(turns)):
        first = max(0, index - _MAX_TURNS)
        lines = [f"{SPEAKERS[(at - first) % 2]}: {turns[at]}" for at in range(first, index)]
        yield Reply("\n".join(lines), SPEAKERS[(index - first) % 2], turns[index])
