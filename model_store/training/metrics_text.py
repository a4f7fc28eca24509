"""What a text is worth beside its references: answers (SQuAD's EM and F1), ROUGE, BLEU, chrF, repetition.

Words are those of Unicode; scripts without spaces between words (Chinese, Japanese, Thai, …) count by
characters, as in MLQA. Where there are several references, the best one counts. Pure functions over strings,
and the trivial baselines that a model has to beat. No model here and no files; see `measures.py`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from model_store.borders import UNSPACED, split_sentences
from model_store.english import STOPWORDS
from model_store.training.errors import MissingExtra

ROUGE = ("rouge1", "rouge2", "rougeL")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHARACTER = re.compile(rf"([{UNSPACED}])")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class _Kept(dict[int, str]):
    """For `str.translate`: drops or blanks what a metric does not look at; each character is judged once."""

    def __init__(self, other: str, is_word: bool) -> None:
        super().__init__()
        self._other, self._is_word = other, is_word

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character) == "Cf":  # joiners, marks of direction: they part no word
            self[code] = ""
            return ""
        if self._is_word:
            is_kept = character.isalnum() or unicodedata.category(character).startswith("M")
        else:
            is_kept = character not in string.punctuation and unicodedata.category(character)[0] != "P"
        self[code] = character if is_kept else self._other
        return self[code]


_NO_PUNCTUATION = _Kept("", is_word=False)
_WORDS_ONLY = _Kept(" ", is_word=True)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous spaces.

    Source: Rajpurkar et al. 2016, SQuAD's official evaluation script; punctuation of other scripts as in that
    of Lewis et al. 2019, MLQA.
    """
    bare = unicodedata.normalize("NFKC", text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def answer_words(text: str) -> list[str]:
    """The words of a normalised answer; characters where a script has no spaces."""
    return _apart(normalize_answer(text)).split()


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised references, else 0.0."""
    return float(any(normalize_answer(prediction) == normalize_answer(text) for text in references))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of word precision and recall after normalisation, from 0 to 1.

    Two empty texts agree (1.0): a model that rightly gives no answer gets the full mark.
    """
    said, wanted = answer_words(prediction), answer_words(reference)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def best_f1(prediction: str, references: Sequence[str]) -> float:
    """The highest `token_f1` against any of the references."""
    return max(token_f1(prediction, text) for text in references)


def rouge(prediction: str, references: str | Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures, from 0 to 1; English words are stemmed.

    Args:
        prediction: What was said.
        references: One or several right texts; the best of them counts, for each measure by itself.

    Raises:
        MissingExtra: `rouge-score` is not installed.
    """
    wanted = [references] if isinstance(references, str) else references
    scores = _scorer().score_multi(wanted, prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def rouge_words(text: str) -> list[str]:
    """What ROUGE counts: lower-case words and characters, punctuation left out, not yet stemmed."""
    return _apart(unicodedata.normalize("NFKC", text).lower().translate(_WORDS_ONLY)).split()


def bleu_tokenizer(texts: Sequence[str]) -> str:
    """Choose sacrebleu's tokenizer for references.

    `zh`, which parts Chinese characters and leaves other words whole, from a tenth of them on; `char` for
    other scripts without spaces; else `13a`.
    """
    text = "".join(texts)
    unspaced, kana, han = (len(p.findall(text)) for p in (_CHARACTER, _KANA, _HAN))
    letters = sum(character.isalnum() for character in text)
    if han > unspaced / 2 and kana * 10 < unspaced and han * 10 >= letters:
        return "zh"
    return "13a" if 2 * unspaced < letters else "char"


def repetition_rate(text: str, order: int = 4) -> float:
    """The share of a text's n-grams that stood in it before, from 0 to 1; 0 for a text too short."""
    words = _apart(text).split()
    grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def lead_sentences(text: str, count: int = 2) -> str:
    """The baseline summary: the first `count` sentences."""
    sentences = split_sentences(text)[:count]
    return ("" if _CHARACTER.search("".join(s[-2:] for s in sentences)) else " ").join(sentences)


def overlap_sentence(question: str, context: str) -> str:
    """The baseline answer: the sentence of the context that shares most words with the question."""
    wanted = _content_words(question)
    sentences = split_sentences(context) or [""]
    return max(sentences, key=lambda sentence: len(_content_words(sentence) & wanted))


def _content_words(text: str) -> set[str]:
    return set(answer_words(text)) - STOPWORDS


def _apart(text: str) -> str:
    """Put spaces around every character of a script that has none."""
    return _CHARACTER.sub(r" \1 ", text)


class _RougeTokenizer:
    """What `rouge_score` asks for words: its own look at nothing beyond ASCII."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._english = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Stem words in ASCII letters, as `rouge_score`'s own tokenizer does."""
        return [
            stem
            for word in rouge_words(text)
            for stem in (self._english.tokenize(word) if word.isascii() else [word])
        ]


@cache
def _scorer() -> Any:
    """The ROUGE scorer, made once: its stemmer is slow to build."""
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise MissingExtra("rouge-score") from error
    return rouge_scorer.RougeScorer(list(ROUGE), tokenizer=_RougeTokenizer())
