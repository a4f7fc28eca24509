"""Figures of a test set with their uncertainty: means, ratios and corpus scores from statistics of each item.

A `Measure` holds, for each item, numbers whose sums over any selection of items give the figure of that
selection. So the same bootstrap draws give intervals for every figure, and for the difference between two
models on the same items. What is measured by kind of task is in `judged.py`.

Source: Efron and Tibshirani 1993 (percentile bootstrap); Koehn 2004 (paired bootstrap); Wilson 1927.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.training.errors import MissingExtra
from model_store.training.metrics_text import bleu_tokenizer

Array = npt.NDArray[np.float64]
DRAWS = 1000
_AT_ONCE = 50
LEVEL = 95  # per cent
_NORMAL = 1.959964  # so many deviations hold `LEVEL` per cent of the normal distribution


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure from 0 to 100.

    Args:
        name: What tables call it.
        stats: One row of numbers for each item. (items, k)
        score: Makes sums of such rows the figures of their selections. (draws, k) -> (draws,)
        is_share: Each item counts fully or not at all, so that the figure is a share of the items.
    """

    name: str
    stats: Array
    score: Callable[[Array], Array]
    is_share: bool = False

    @property
    def value(self) -> float:
        """The figure of all items."""
        return float(self.score(self.stats.sum(axis=0, keepdims=True))[0])

    def drawn(self) -> Array:
        """The figures of `DRAWS` test sets drawn from the items with replacement; always the same draws.

        Cost: `DRAWS` times the items; memory for `_AT_ONCE` draws.
        """
        rng, count = np.random.default_rng(0), len(self.stats)
        even = np.full(count, 1 / count)
        times = (rng.multinomial(count, even, size=_AT_ONCE) for _ in range(DRAWS // _AT_ONCE))
        return self.score(np.concatenate([weights @ self.stats for weights in times]))

    def interval(self) -> tuple[float, float]:
        """Where `LEVEL` per cent of the drawn figures lie; for a share Wilson's interval, which is no point
        where all is right."""
        return _wilson(*self.stats.sum(axis=0)) if self.is_share else _interval(self.drawn())


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more one model has than another, on the same items.

    Args:
        name: Of the measure.
        first: The first model's figure.
        second: The second's.
        low: The interval of second less first.
        high: The same.
    """

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(first: Measure, second: Measure) -> Difference:
    """Compare two models by the same draws of items."""
    low, high = _interval(second.drawn() - first.drawn())
    return Difference(first.name, first.value, second.value, low, high)


def mean(name: str, values: Sequence[float]) -> Measure:
    """The mean of one number, from 0 to 1, for each item."""
    return ratio(name, values, [1.0] * len(values))


def ratio(name: str, values: Sequence[float], counts: Sequence[float]) -> Measure:
    """The mean over some of the items: those with count 1."""
    is_share = set(values) <= {0.0, 1.0}
    return Measure(name, np.array([values, counts], dtype=float).T, _ratio, is_share)


def macro_f1(labels: Sequence[str], wanted: Sequence[Sequence[str]], said: Sequence[str]) -> Measure:
    """The mean of the labels' F1; a label that neither stands in the test set nor was said does not count."""
    stats = np.zeros((len(said), 3 * len(labels)))  # true positives, said, wanted of each label
    for row, references, label in zip(stats, wanted, said, strict=True):
        right = label if label in references else references[0]
        for column, name in enumerate(labels):
            row[3 * column : 3 * column + 3] = (name == right == label, name == label, name == right)
    return Measure("macro_f1", stats, _macro_f1)


def bleu(said: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Corpus BLEU by sacrebleu, with its tokenizer for the references' script.

    Raises:
        MissingExtra: sacrebleu is not installed.
    """
    metrics = _sacrebleu()
    tokenizer = bleu_tokenizer([text for texts in references for text in texts])
    return _corpus("bleu", metrics.BLEU(tokenize=tokenizer, force=True), said, references)


def chrf(said: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Corpus chrF by sacrebleu. Raises as `bleu`."""
    return _corpus("chrf", _sacrebleu().CHRF(), said, references)


def sentence_chrf(said: str, references: Sequence[str]) -> float:
    """chrF of one text, from 0 to 100: what the worst answers are found by. Raises as `bleu`."""
    return float(_sacrebleu().CHRF().sentence_score(said, list(references)).score)


def _corpus(name: str, metric: Any, said: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    num_references = max((len(texts) for texts in references), default=1)
    streams = [[texts[n] if n < len(texts) else None for texts in references] for n in range(num_references)]
    # sacrebleu's own significance tests work on these, too
    stats = np.array(metric._extract_corpus_statistics(said, streams), dtype=float)

    def score(sums: Array) -> Array:
        scores = [metric._compute_score_from_stats(row.astype(int).tolist()).score for row in sums]
        return np.array(scores, dtype=float)

    return Measure(name, stats, score)


def _ratio(sums: Array) -> Array:
    shares: Array = 100 * sums[:, 0] / np.maximum(sums[:, 1], 1)
    return shares


def _macro_f1(sums: Array) -> Array:
    hits, said, wanted = (sums[:, offset::3] for offset in range(3))
    total = said + wanted
    f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    means: Array = 100 * f1.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)
    return means


def _wilson(right: float, count: float) -> tuple[float, float]:
    share, spread = right / max(count, 1), _NORMAL**2 / max(count, 1)
    middle = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return round(float(100 * (middle - half)), 2), round(float(100 * (middle + half)), 2)


def _interval(drawn: Array) -> tuple[float, float]:
    low, high = np.percentile(drawn, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return round(float(low), 2), round(float(high), 2)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ModuleNotFoundError as error:
        raise MissingExtra("sacrebleu") from error
    return metrics
