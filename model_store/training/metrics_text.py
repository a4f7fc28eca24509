"""What a text is worth beside a reference: answers (SQuAD's EM and F1), summaries (ROUGE), repetition.

Pure functions over strings, and the trivial baselines that a model has to beat. No model here and no files;
see `evaluate.py`.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from model_store.borders import split_sentences
from model_store.english import STOPWORDS
from model_store.training.errors import MissingExtra

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous spaces.

    Source: Rajpurkar et al. 2016, SQuAD's official evaluation script.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals one of the normalised references, else 0.0."""
    return float(any(normalize_answer(prediction) == normalize_answer(text) for text in references))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of word precision and recall after normalisation, from 0 to 1.

    Two empty texts agree (1.0): a model that rightly gives no answer gets the full mark.
    """
    said, wanted = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def best_f1(prediction: str, references: Sequence[str]) -> float:
    """The highest `token_f1` against any of the references."""
    return max(token_f1(prediction, text) for text in references)


def rouge(prediction: str, reference: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures with stemming, from 0 to 1.

    Raises:
        MissingExtra: `rouge-score` is not installed.
    """
    scores = _scorer().score(reference, prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def repetition_rate(text: str, order: int = 4) -> float:
    """The share of a text's word n-grams that stood in it before, from 0 to 1; 0 for a text too short."""
    words = text.split()
    grams = [tuple(words[i : i + order]) for i in range(len(words) - order + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def lead_sentences(text: str, count: int = 2) -> str:
    """The baseline summary: the first `count` sentences."""
    return " ".join(split_sentences(text)[:count])


def overlap_sentence(question: str, context: str) -> str:
    """The baseline answer: the sentence of the context that shares most words with the question."""
    wanted = _content_words(question)
    sentences = split_sentences(context) or [""]
    return max(sentences, key=lambda sentence: len(_content_words(sentence) & wanted))


def _content_words(text: str) -> set[str]:
    return set(normalize_answer(text).split()) - STOPWORDS


@cache
def _scorer() -> Any:
    """The ROUGE scorer, made once: its stemmer is slow to build."""
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise MissingExtra("rouge-score") from error
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
