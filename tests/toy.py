"""A toy task for tests: what does Tom have? Tokenizer, pretraining and fine-tuning in one tiny model, in
seconds.

`finetuned_model(folder)` gives a folder that the service can load; `RECORDS` are questions it has not seen
and their answers.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from model_store.manifest import Draft
from model_store.task import Task
from model_store.training.bpe import train_tokenizer
from model_store.training.material import Material
from model_store.training.pipeline import Shape, TrainingJob, finetune, pretrain
from model_store.training.recipe import Source
from model_store.training.train_options import TrainOptions

NAMES = ("Tom", "Ann", "Bob", "Eve", "Max", "Ida", "Leo", "Mia")
THINGS = ("apple", "stone", "book", "lamp", "ring", "coin", "shoe", "drum")
QA = Task(
    name="qa",
    kind="qa",
    template="Answer.\nText: {context}\nQuestion: {question}\nAnswer:",
    document="context",
    no_answer="unanswerable",
)


@dataclass(frozen=True, slots=True)
class ToyRecord:
    """One question; an empty answer means that the context has none."""

    context: str
    question: str
    answer: str


def toy_records(count: int, seed: int) -> list[ToyRecord]:
    """Draw records: two people are named, one of them owns a thing, or in a fifth of the records nobody
    does."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        (first, second), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
        is_known = rng.random() < 0.8
        parts = [f"{first} has a {thing}." if is_known else f"{first} sleeps.", f"{second} is here."]
        rng.shuffle(parts)
        made.append(ToyRecord(" ".join(parts), f"What does {first} have?", thing if is_known else ""))
    return made


RECORDS = toy_records(40, seed=99)


def write_records(path: Path, records: list[ToyRecord]) -> Path:
    """Write records as JSON lines."""
    lines = [json.dumps({"context": r.context, "question": r.question, "answer": r.answer}) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_text(path: Path, sentences: int = 600) -> Path:
    """Write plain text in the toy's language, in documents of six sentences."""
    rng = random.Random(3)
    lines = []
    for number in range(sentences):
        lines.append(f"{rng.choice(NAMES)} gave a {rng.choice(THINGS)} to {rng.choice(NAMES)}.")
        if number % 6 == 5:
            lines.append("<|endoftext|>")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def toy_job(
    out: Path,
    sources: tuple[Source, ...],
    options: TrainOptions,
    is_resumed: bool = False,
    block: int = 64,
    valid_share: float = 0.05,
    is_loss_everywhere: bool = True,
) -> TrainingJob:
    """A job with small blocks and the toy's task."""
    material = Material(
        sources=sources,
        tasks={"qa": QA},
        valid_share=valid_share,
        block=block,
        is_loss_everywhere=is_loss_everywhere,
    )
    return TrainingJob(out, material, options, "fp32", is_resumed, Draft(tasks={"qa": QA}))


def toy_tokenizer(folder: Path) -> Path:
    """Train the toy's tokenizer; gives the folder it lies in."""
    text = write_text(folder / "text.txt")
    words = [QA.template, QA.no_answer] * 50 + [f" {word}" for word in (*NAMES, *THINGS)] * 50
    train_tokenizer([text], folder / "tokenizer", 400, words)
    return folder / "tokenizer"


def finetuned_model(folder: Path, steps: int = 250) -> Path:
    """Make a model that answers the toy's questions nearly without mistakes.

    Args:
        folder: Must exist; everything goes into it.
        steps: Of fine-tuning.

    Returns:
        The model's folder, with its manifest draft.
    """
    tokenizer = toy_tokenizer(folder)
    text = Source(folder / "text.txt")
    short = TrainOptions(max_steps=20, batch_rows=8, precision="fp32", learning_rate=3e-3, seed=1)
    shape = Shape(n_embd=32, n_layer=2, n_head=2, n_positions=128)
    pretrain(toy_job(folder / "pretrain", (text,), short), tokenizer, shape, _silent)
    questions = write_records(folder / "qa.jsonl", toy_records(3000, seed=5))
    options = TrainOptions(
        max_steps=steps,
        batch_rows=16,
        precision="fp32",
        learning_rate=4e-3,
        optimizer="muon",
        eval_every=10_000,
    )
    source = Source(questions, kind="examples", task="qa")
    job = toy_job(folder / "finetune", (source,), options, is_loss_everywhere=False)
    finetune(job, folder / "pretrain" / "model", report=_silent)
    return folder / "finetune" / "model"


def _silent(line: str) -> None:
    """Reports are for people."""
