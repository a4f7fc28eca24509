"""Figures in words: names that people know, and one sentence for whoever reads no more than that.

Reports and the terminal say the same. What the figures are is in `judged.py`.
"""

from collections.abc import Mapping

from model_store.training.judged import Judged
from model_store.training.measures import LEVEL, Difference

WORDS: Mapping[str, str] = {
    "accuracy": "right answers",
    "macro_f1": "F1, mean of the labels",
    "majority_accuracy": "always the commonest",
    "em": "exactly right",
    "f1": "F1 of all",
    "f1_answerable": "F1 of the answerable",
    "answered": "answered, of the answerable",
    "no_answer_accuracy": "rightly no answer",
    "baseline_f1": "sentence of the question",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "repetition": "repetition",
}
_COPIES = {"copy_": "copying", "lead2_": "first sentences"}
BASELINES = (*_COPIES, "majority_", "baseline_")  # how the names of baselines' measures begin
_SURE = 0.975  # of drawn test sets, on one side


def words(name: str) -> str:
    """A measure's name for people."""
    for prefix, text in _COPIES.items():
        if name.startswith(prefix):
            return f"{text}: {WORDS[name.removeprefix(prefix)]}"
    return WORDS.get(name, name)


def verdict(judged: Judged) -> str:
    """One sentence on one model: its main figure beside the baseline."""
    main = judged.measure(judged.main)
    low, high = main.interval()
    count = f"over {len(judged.items):,} examples"
    text = f"{_begun(main.name)}: {main.value:.1f} of 100 ({LEVEL} %: {low:.0f} to {high:.0f}) {count}"
    if not judged.baseline:
        return f"{text}."
    base = judged.measure(judged.baseline)
    above = float((main.drawn() > base.drawn()).mean())
    below = float((main.drawn() < base.drawn()).mean())
    how = "not clearly different"
    if max(above, below) > _SURE:
        how = "the model is clearly better" if above > below else "the model is clearly worse"
    return f"{text}; {judged.baseline_words} gets {base.value:.1f}: {how}."


def compared(main: Difference, first: str, second: str) -> str:
    """One sentence on two models."""
    both = f"{_begun(main.name)}: {first} {main.first:.1f}, {second} {main.second:.1f}"
    if not main.is_clear:
        return f"{both}; the difference may be chance."
    better = second if main.second > main.first else first
    return f"{both}: {better} is clearly better, by {abs(main.second - main.first):.1f}."


def _begun(name: str) -> str:
    """A measure's name at the beginning of a sentence."""
    text = words(name)
    return text if text == WORDS["chrf"] else text[0].upper() + text[1:]
