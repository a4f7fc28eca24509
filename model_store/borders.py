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
from functools import lru_cache
from itertools import pairwise

from model_store.steps import Steps

_CJK_RANGES = (
    (0x2E80, 0x9FFF),  # radicals, CJK punctuation, kana, unified ideographs and extension A
    (0xAC00, 0xD7AF),  # hangul
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFE30, 0xFE4F),  # compatibility forms
    (0xFF00, 0xFFEF),  # full-width forms
    (0x20000, 0x3FFFF),  # extensions B and later
)
_CLOSING = "\"'”’»)\\]」』）】》"
# Marks are taken from the first of a run on, and never given back: a million of them cost a million steps.
_SENTENCE = re.compile(
    rf"(?<![.!?…।॥؟۔])[.!?…।॥؟۔]++[{_CLOSING}]*+\s+"  # needs white space after it: "3.14", "example.org"
    rf"|[。！？．｡]+…*[{_CLOSING}]*\s*"
    rf"|……[{_CLOSING}]*\s*"
    r"|\n[^\S\n]*+\n\s*"
    r"|(?P<none>[.!?।॥؟۔]++)"  # no end; nor does one begin within it
)
# What an end begins with; alternatives of literals, for which `re` skips what begins with none of them.
_SENTENCE_MARK = re.compile("|".join(map(re.escape, ".!?…।॥؟۔。！？．｡")) + r"|\n(?!\S)")
_CLAUSE = re.compile(rf"[,;:—–][{_CLOSING}]*\s+|[，；：、]\s*|\n\s*")
# Scripts written without spaces between words: every character is a word of its own here and in metrics.
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u2e80-\u2fdf\u3003-\u3007\u3021-\u3029\u3031-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{UNSPACED}]"  # or a digit, of a script with spaces
_WORDY = re.compile(_LETTER)
_WORD_END = re.compile(rf"\s+|[{UNSPACED}](?!\s)")
_UNIT = re.compile(rf"(?:{_LETTER}|(?<=\d)[.,](?=\d))+|\S")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Messrs|Mme|Mlle|vs|etc|No|Vol|pp|cf"
    r"|e\.g|i\.e)$"
)
_JOINERS = frozenset("\u200d")  # zero-width joiner: emoji made of several
# Format characters (soft hyphen, zero-width non-joiner, word joiner, …) part no word, as in UAX 29, WB4.
_WIDTHLESS = frozenset(
    map(chr, (0xAD, 0x61C, 0x180E, *range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065)))
) | frozenset(map(chr, (*range(0x2066, 0x2070), 0xFEFF, *range(0xE0020, 0xE0080))))
_NOTHING = dict.fromkeys(map(ord, _WIDTHLESS))
_MOST_MARKS = 30  # on one letter: no more than in Unicode's Stream-Safe Text Format
_LOOKED_AT = 32 * 1024  # characters in which an answer, or a sentence's end, is looked for at a time
_LONGEST_ABBREVIATION = 8


def sentence_ends(text: str) -> list[int]:
    """Positions after sentences, ascending; the end of the text itself is not one of them."""
    return list(each_sentence_end(text))


def each_sentence_end(text: str) -> Iterator[int]:
    """The positions of `sentence_ends`, one by one as they are found.

    No call to the regular expressions looks through more than `_LOOKED_AT` characters for a mark: while one
    runs, no other thread does.
    """
    at = 0
    while at < len(text):
        mark = _SENTENCE_MARK.search(text, at, at + _LOOKED_AT)
        if mark is None:
            at += _LOOKED_AT
            continue
        match = _SENTENCE.match(text, mark.start())
        at = (match or mark).end()
        if match and not match["none"] and _ends_sentence(text, match):
            yield match.end()


def split_sentences(text: str) -> list[str]:
    """The sentences of each line of a text, without white space around them."""
    parts = (
        line[start:end].strip()
        for line in text.splitlines()
        for start, end in pairwise([0, *sentence_ends(line), len(line)])
    )
    return [part for part in parts if part]


def clause_ends(text: str) -> list[int]:
    """Positions after commas, semicolons, colons, dashes and line breaks, ascending."""
    return [match.end() for match in _CLAUSE.finditer(text)]


def word_ends(text: str) -> list[int]:
    """Positions after the white space behind a word, and between characters of scripts without spaces."""
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
    """Whether a cut would separate what is read as one: letter and accent, parts of an emoji, CR LF."""
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    return before in _JOINERS or after in _JOINERS or before + after == "\r\n" or _extends(after)


def without_widthless(text: str) -> str:
    """A text without soft hyphens, zero-width non-joiners and their like: words as they are searched for."""
    return text if text.isascii() else text.translate(_NOTHING)


def whole_characters(text: str, position: int, low: int) -> int:
    """The last cut from `position` down to `low` that parts no character; `position` if there is none."""
    cuts = range(position, max(low, position - 64) - 1, -1)
    return next((cut for cut in cuts if not splits_character(text, cut)), position)


def _extends(character: str) -> bool:
    """Whether a character only modifies the one before it."""
    if character.isascii():
        return False
    return unicodedata.category(character)[0] == "M" or "\U0001f3fb" <= character <= "\U0001f3ff"


def word_starts_and_ends(text: str) -> tuple[list[int], list[int]]:
    """Positions where a word starts, and where one ends; each ascending.

    A word is a run of letters and digits; "3.5" and "1,000" are words, "Tom's" is three pieces (Tom, ', s) so
    that a name can be cut out of it. Accents and marks without width belong to the word around them. Other
    marks, and characters of scripts without spaces, are words of their own.
    """
    matches = list(_UNIT.finditer(text))
    starts = [match.start() for match in matches]
    ends = [match.end() for match in matches]
    if text.isascii():
        return starts, ends
    return [p for p in starts if _parts_words(text, p)], [p for p in ends if _parts_words(text, p)]


def _parts_words(text: str, position: int) -> bool:
    """Whether a word may end or start there; looks at a few characters only."""
    if not 0 < position < len(text):
        return True
    if splits_character(text, position):
        return False
    before, after = position - 1, position
    while before >= max(position - _MOST_MARKS, 0) and (text[before] in _WIDTHLESS or _extends(text[before])):
        before -= 1
    while after < min(position + _MOST_MARKS, len(text)) and text[after] in _WIDTHLESS:
        after += 1
    is_within = before >= 0 and after < len(text)
    return not (is_within and _is_of_word(text, before) and _is_of_word(text, after))


def _is_of_word(text: str, position: int) -> bool:
    """Whether a character is a letter or digit of a script with spaces, or a mark within a number."""
    if text[position] in ".,":
        return text[position - 1 : position].isdecimal() and text[position + 1 : position + 2].isdecimal()
    return bool(_WORDY.match(text, position))


def first_occurrence(context: str, answer: str, known: int | None = None) -> Steps[int | None]:
    """Say where an answer first stands in the context.

    Args:
        context: any text.
        answer: not empty.
        known: a place where it stands, if there is one that will do; nothing behind it is looked at.

    Returns:
        The first place between word borders; without any, `known`, else the first place; else None.
    """
    last = len(context) if known is None else known + len(answer)
    pattern = _between_borders(answer)
    position = 0
    while position + len(answer) <= last:
        end = min(position + _LOOKED_AT + len(answer), last)
        match = pattern.search(context, position, end)
        if match is None:
            position = end - len(answer) + 1
        elif _parts_words(context, match.start()) and _parts_words(context, match.end()):
            return match.start()
        else:
            position = match.start() + 1
        yield
    if known is not None:
        return known
    first = context.find(answer)
    return first if first >= 0 else None


@lru_cache(maxsize=1)
def modifiers() -> str:
    """Characters that only modify the one before them, nearly all there are: a regular expression's set."""
    return (
        "".join(chr(code) for code in range(0x80, 0x10000) if _extends(chr(code))) + "\U0001f3fb-\U0001f3ff"
    )


def _between_borders(answer: str) -> re.Pattern[str]:
    """Finds an answer, and passes over most places inside of words without a look at their neighbourhood."""
    escaped = re.escape(answer)
    pattern = escaped
    if _is_of_word(answer, 0):
        pattern += f"(?<!{_LETTER}{escaped})"
    if _is_of_word(answer, len(answer) - 1):
        pattern += f"(?!{_LETTER})"
    return re.compile(rf"{pattern}(?<!\u200d{escaped})(?![\u200d{modifiers()}])")


def is_cjk(character: str) -> bool:
    """Say whether a character is written without spaces around it (Chinese, kana, hangul, full-width)."""
    code = ord(character)
    return any(low <= code <= high for low, high in _CJK_RANGES)
