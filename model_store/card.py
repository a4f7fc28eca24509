"""A model's card: what it is, what it was made from, with which command, and what it is worth, in Markdown.

`finetune` writes it as README.md beside the weights; `textgen model card` shows it with the figures that were
measured since. Its head is what the Hugging Face hub reads.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting"; the hub's documentation of model cards.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_store.figures import in_words
from model_store.manifest import Draft

CARD = "README.md"
_CURVE = "loss.csv"
_POINTS = 8


def model_card(
    title: str,
    draft: Draft,
    folder: Path | None = None,
    figures: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Write the card of a model.

    Args:
        title: The model's label.
        draft: What its maker says.
        folder: Where `loss.csv` may lie.
        figures: Measured since, by test set.
    """
    measured = {**{k: v for k, v in draft.evaluation.items() if k != "training"}, **(figures or {})}
    parts = [
        "\n".join(_head(draft)),
        f"# {title}",
        "\n".join(_about(draft)),
        "## What it does",
        "\n".join(_tasks(draft)),
        "## What it was made from",
        "\n".join(f"- {line}" for line in draft.data) or "Not told.",
        "## How",
        f"```\n{draft.command or 'not told'}\n```",
        *_curve(draft, folder),
        "## What it is worth",
        "\n".join(_figures(measured)) or "Not measured yet: `textgen model evaluate --record`.",
        "## Limits",
        "It says what its data make likely, which may be wrong or hurtful; figures hold for texts like those "
        "of the test sets only.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(draft: Draft) -> Iterator[str]:
    """The YAML block that the hub reads; JSON's strings are YAML's."""
    yield "---"
    if draft.license:
        yield f"license: {json.dumps(draft.license)}"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield "tags: [gpt2, textgen-service]"
    yield "---"


def _about(draft: Draft) -> Iterator[str]:
    shape = ", ".join(f"{key} {value}" for key, value in draft.architecture.items())
    yield f"- Architecture: GPT-2 ({shape}), {draft.parameters:,} parameters"
    yield f"- Licence: {draft.license or 'not given; ask whoever made it before you use it'}"


def _tasks(draft: Draft) -> Iterator[str]:
    for task in draft.tasks.values():
        labels = f"; one of {', '.join(task.labels)}" if task.labels else ""
        about = f": {task.description}" if task.description else ""
        yield f"- `{task.name}` ({task.kind}; {', '.join(task.fields)}{labels}){about}"
        yield "  ```\n" + "\n".join(f"  {line}" for line in task.template.split("\n")) + "\n  ```"


def _curve(draft: Draft, folder: Path | None) -> Iterator[str]:
    training = draft.evaluation.get("training")
    if isinstance(training, Mapping):
        yield ", ".join(f"{name} {value}" for name, value in training.items() if value is not None)
    path = folder / _CURVE if folder else None
    if path is None or not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows:
        step = max(1, -(-len(rows) // _POINTS))
        chosen = rows[::step] if rows[-1] in rows[::step] else [*rows[::step], rows[-1]]
        names = list(rows[0])
        lines = [f"| {' | '.join(names)} |", f"|{' --: |' * len(names)}"]
        lines += [f"| {' | '.join(row[name] or '' for name in names)} |" for row in chosen]
        yield "\n".join(lines)


def _figures(measured: Mapping[str, Any]) -> Iterator[str]:
    for name, values in measured.items():
        if isinstance(values, Mapping):
            yield f"- {name}: {in_words(values)}"
