"""Where a text may be cut: sentence ends, clause ends, words. Any script, with or without spaces between
words.

Positions are code points; a cut at `p` separates `text[:p]` from `text[p:]`, white space stays with what
stands before it. Rules, not a model: good for English-like and Chinese-like punctuation. Read
`model_store/evidence.py` or `service/tasks/chunking.py` next.
"""

# ruff: noqa: RUF001 -- look-alike punctuation is what this module is about

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_CLOSING = "\"'”’»)\\]」』）】》"
# Marks are taken from the first of a run on, and never given back: a million of them cost a million steps.
_SENTENCE = re.compile(
    rf"(?<![.!?…।॥؟۔])[.!?…।॥؟۔]++[{_CLOSING}]*+\s+"  # needs white space after it: "3.14", "example.org"
    rf"|[。！？．｡]+…*[{_CLOSING}]*\s*"
    rf"|……[{_CLOSING}]*\s*"
    r"|\n\s*\n\s*"
)
_CLAUSE = re.compile(rf"[,;:—–][{_CLOSING}]*\s+|[，；：、]\s*|\n\s*")
# Scripts written without spaces between words: every character is a word of its own here.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u2e80-\u2fdf\u3003-\u3007\u3021-\u3029\u3031-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD_END = re.compile(rf"\s+|[{_UNSPACED}](?!\s)")
_UNIT = re.compile(rf"(?:[^\W{_UNSPACED}]|(?<=\d)[.,](?=\d))+|\S")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Messrs|Mme|Mlle|vs|etc|No|Vol|pp|cf"
    r"|e\.g|i\.e)$"
)
_JOINERS = frozenset("\u200d")  # zero-width joiner: emoji made of several
_LONGEST_ABBREVIATION = 8


def sentence_ends(text: str) -> list[int]:
    """Positions after sentences, ascending; the end of the text itself is not one of them."""
    return list(each_sentence_end(text))


def each_sentence_end(text: str) -> Iterator[int]:
    """The positions of `sentence_ends`, one by one as they are found."""
    return (match.end() for match in _SENTENCE.finditer(text) if _ends_sentence(text, match))


def clause_ends(text: str) -> list[int]:
    """Positions after commas, semicolons, colons, dashes and line breaks, ascending."""
    return [match.end() for match in _CLAUSE.finditer(text)]


def word_ends(text: str) -> list[int]:
    """Positions after the white space that follows a word, and between characters of scripts without
    spaces.
    """
    return [match.end() for match in _WORD_END.finditer(text) if not splits_character(text, match.end())]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match.start()
    if match.end() >= len(text):
        return False
    if text[mark] != "." or "\n" in match[0]:
        return True
    if text[match.end()].islower():
        return False
    return not _ABBREVIATION.search(text[max(mark - _LONGEST_ABBREVIATION, 0) : mark])


def splits_character(text: str, position: int) -> bool:
    """Whether a cut would separate what is read as one: a letter and its accent, the parts of an emoji, CR
    LF.
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    return before in _JOINERS or after in _JOINERS or before + after == "\r\n" or _extends(after)


def _extends(character: str) -> bool:
    """Whether a character only modifies the one before it."""
    if character.isascii():
        return False
    return unicodedata.category(character)[0] == "M" or "\U0001f3fb" <= character <= "\U0001f3ff"


def word_starts_and_ends(text: str) -> tuple[list[int], list[int]]:
    """Positions where a word starts, and where one ends; each ascending.

    A word is a run of letters and digits; "3.5" and "1,000" are words, "Tom's" is three pieces (Tom, ', s) so
    that a name can be cut out of it. Other marks, and characters of scripts without spaces, are words of
    their own.
    """
    matches = list(_UNIT.finditer(text))
    starts = [match.start() for match in matches]
    ends = [match.end() for match in matches]
    if text.isascii():
        return starts, ends
    return [p for p in starts if _is_border(text, p)], [p for p in ends if _is_border(text, p)]


def _is_border(text: str, position: int) -> bool:
    """Whether a border of units is one of words: accents and vowel signs of their own belong to their
    word.
    """
    if not 0 < position < len(text):
        return True
    before, after = text[position - 1], text[position]
    if splits_character(text, position):
        return False
    is_wordy = after.isalnum() and not _UNSPACED_CHARACTER.match(after)
    return not (
        is_wordy and unicodedata.category(before)[0] == "M" and _is_in_spaced_word(text, position - 1)
    )


def _is_in_spaced_word(text: str, position: int) -> bool:
    """Whether the mark at `position` modifies a letter of a script with spaces."""
    while position >= 0 and _extends(text[position]):
        position -= 1
    return position >= 0 and text[position].isalnum() and not _UNSPACED_CHARACTER.match(text[position])


def first_occurrence(context: str, answer: str) -> int | None:
    """Where an answer first stands in the context between word borders, else where it first stands, else
    None.
    """
    first = context.find(answer)
    if first < 0:
        return None
    position = first
    while position >= 0:
        if _is_bordered(context, position, position + len(answer)):
            return position
        position = context.find(answer, position + 1)
    return first


def _is_bordered(context: str, start: int, end: int) -> bool:
    """Whether words start and end exactly there; looks at the neighbourhood only."""
    low, high = max(start - 64, 0), min(end + 64, len(context))
    starts, ends = word_starts_and_ends(context[low:high])
    return start - low in starts and end - low in ends
