"""What a model's answers to a test set are worth: by kind of task, beside a trivial baseline, with the worst.

`judge` scores answers, wherever they come from; `evaluate.py` asks for them, `measures.py` does the
arithmetic, and the commands in `service/commands` show what came out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model_store.training.measures import (
    Measure,
    bleu,
    chrf,
    macro_f1,
    mean,
    ratio,
    sentence_chrf,
)
from model_store.training.metrics_text import (
    ROUGE,
    best_f1,
    exact_match,
    lead_sentences,
    overlap_sentence,
    repetition_rate,
    rouge,
)
from model_store.training.task_rows import AskedTask

WORST = 10
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One record of a test set: what is asked, what would be right, and where it stands."""

    fields: Mapping[str, str]
    references: tuple[str, ...]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """How well one label was told from the others; from 0 to 100, but for the count in the test set."""

    label: str
    count: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A test set, what was said, and the figures.

    Args:
        task: What was asked.
        items: The test set.
        said: An answer for each item.
        scores: How good each answer is, from 0 to 100: what the worst are found by.
        measures: The figures; those of the baseline have a prefix.
        main: The measure that a person asks for first.
        baseline: The measure to compare it with, or "".
        baseline_words: What the baseline does, for people.
        labels: For `choice`: each label's figures.
        confusion: For `choice`: right label -> said label -> how often.
        num_cut: Prompts that were too long and lost their document's start.
    """

    task: AskedTask
    items: Sequence[Item]
    said: Sequence[str]
    scores: Sequence[float]
    measures: tuple[Measure, ...]
    main: str
    baseline: str
    baseline_words: str
    labels: tuple[LabelScore, ...] = ()
    confusion: Mapping[str, Mapping[str, int]] | None = None
    num_cut: int = 0

    def measure(self, name: str) -> Measure:
        """The measure of a name."""
        return next(measure for measure in self.measures if measure.name == name)

    def worst(self, count: int = WORST) -> list[tuple[Item, str, float]]:
        """The items with the lowest scores, each with what was said; ones that are wholly right never."""
        order = sorted(range(len(self.items)), key=lambda index: self.scores[index])
        worst = [index for index in order if self.scores[index] < 100][:count]
        return [(self.items[index], self.said[index], self.scores[index]) for index in worst]

    def figures(self) -> Figures:
        """JSON values: `count`, the measures, `main`, `intervals`; of choices `labels` and `confusion`."""
        figures: Figures = {"count": len(self.items), **({"cut": self.num_cut} if self.num_cut else {})}
        figures |= {measure.name: round(measure.value, 2) for measure in self.measures}
        figures["main"] = self.main
        figures["intervals"] = {measure.name: list(measure.interval()) for measure in self.measures}
        if self.confusion is not None:
            figures["labels"] = {
                score.label: {
                    "count": score.count,
                    "precision": score.precision,
                    "recall": score.recall,
                    "f1": score.f1,
                }
                for score in self.labels
            }
            figures["confusion"] = {right: dict(row) for right, row in self.confusion.items()}
        return figures


def judge(task: AskedTask, items: Sequence[Item], said: Sequence[str]) -> Judged:
    """Score the answers to a test set.

    Args:
        task: Its kind decides what is measured.
        items: The test set; not empty.
        said: An answer for each item.

    Raises:
        MissingExtra: A metric's package is not installed.
    """
    match task.kind:
        case "choice":
            return _choices(task, items, said)
        case "qa":
            return _answers(task, items, said)
        case "summarize":
            leads = [lead_sentences(item.fields["text"]) for item in items]
            return _texts(task, items, said, "lead2", "the first two sentences", leads)
        case "generate":
            copies = [_copied(task, item) for item in items]
            return _texts(task, items, said, "copy", "repeating what was given", copies)


def _choices(task: AskedTask, items: Sequence[Item], said: Sequence[str]) -> Judged:
    answers = [text.strip() for text in said]
    wanted = [item.references for item in items]
    hits = [float(text in references) for text, references in zip(answers, wanted, strict=True)]
    counts = Counter(label for references in wanted for label in dict.fromkeys(references))
    majority = counts.most_common(1)[0][0]
    base = [float(majority in references) for references in wanted]
    confusion = {label: dict.fromkeys(task.labels, 0) for label in task.labels}
    for text, references in zip(answers, wanted, strict=True):
        row = confusion[text if text in references else references[0]]
        row[text] = row.get(text, 0) + 1
    measures = (
        mean("accuracy", hits),
        macro_f1(task.labels, wanted, answers),
        mean("majority_accuracy", base),
    )
    return Judged(
        task,
        items,
        answers,
        [100 * hit for hit in hits],
        measures,
        "accuracy",
        "majority_accuracy",
        f"always saying {majority!r}",
        tuple(_label_score(label, confusion) for label in task.labels),
        confusion,
    )


def _label_score(label: str, confusion: Mapping[str, Mapping[str, int]]) -> LabelScore:
    hits = confusion[label][label]
    count = sum(confusion[label].values())
    times_said = sum(row[label] for row in confusion.values())
    precision, recall = (100 * hits / total if total else 0.0 for total in (times_said, count))
    f1 = 200 * hits / (times_said + count) if times_said + count else 0.0
    return LabelScore(label, count, round(precision, 2), round(recall, 2), round(f1, 2))


def _answers(task: AskedTask, items: Sequence[Item], said: Sequence[str]) -> Judged:
    """SQuAD 2's figures: an item without an answer counts fully when none was given, else not at all."""
    known = [float(any(item.references)) for item in items]
    unknown = [1 - flag for flag in known]
    pairs = list(zip(items, said, strict=True))
    f1 = [best_f1(text, item.references) for item, text in pairs]
    base = [best_f1(overlap_sentence(**item.fields), item.references) for item in items]
    measures = [
        mean("em", [exact_match(text, item.references) for item, text in pairs]),
        mean("f1", f1),
        ratio("f1_answerable", _times(f1, known), known),
        ratio("answered", _times([float(bool(text)) for text in said], known), known),
        ratio("baseline_f1", _times(base, known), known),
    ]
    if any(unknown):
        silent = [float(not text) for text in said]
        measures.append(ratio("no_answer_accuracy", _times(silent, unknown), unknown))
    return Judged(
        task,
        items,
        said,
        [100 * value for value in f1],
        tuple(measures),
        "f1_answerable" if any(known) else "f1",
        "baseline_f1" if any(known) else "",
        "the sentence that shares most words with the question",
    )


def _texts(
    task: AskedTask,
    items: Sequence[Item],
    said: Sequence[str],
    prefix: str,
    words: str,
    base: Sequence[str],
) -> Judged:
    references = [item.references for item in items]
    measures = [
        *_text_measures("", said, references),
        mean("repetition", [repetition_rate(text) for text in said]),
        *_text_measures(f"{prefix}_", base, references),
    ]
    main = "chrf" if task.kind == "generate" else "rougeL"
    scores = [sentence_chrf(text, wanted) for text, wanted in zip(said, references, strict=True)]
    return Judged(task, items, said, scores, tuple(measures), main, f"{prefix}_{main}", words)


def _text_measures(prefix: str, said: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    scores = [rouge(text, wanted) for text, wanted in zip(said, references, strict=True)]
    measures = [mean(name, [score[name] for score in scores]) for name in ROUGE]
    measures += [bleu(said, references), chrf(said, references)]
    return [replace(measure, name=prefix + measure.name) for measure in measures]


def _copied(task: AskedTask, item: Item) -> str:
    """What was given: the longest field; of a conversation its last turn."""
    text = item.fields.get("history", "") or max(item.fields.values(), key=len)
    if "history" in item.fields:
        text = text.splitlines()[-1].partition(":")[2] or text.splitlines()[-1] if text.strip() else text
    return text.strip()


def _times(values: Sequence[float], flags: Sequence[float]) -> list[float]:
    return [value * flag for value, flag in zip(values, flags, strict=True)]
