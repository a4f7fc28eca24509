"""The commands that make models: `textgen model train-tokenizer | pretrain | finetune`.

Reads options, calls `pipeline.py`, shows results. Errors become one line and exit code 2. The store's
commands are in `model_store/cli.py`, the one that measures in `service/commands/evaluate.py`.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.manifest import Draft
from model_store.task import Task
from model_store.task_files import load_tasks
from model_store.training.cli_data import DataOptions, sources
from model_store.training.cli_draft import asked_license, trained_tasks
from model_store.training.cli_options import with_options
from model_store.training.errors import InvalidOption
from model_store.training.material import Material
from model_store.training.recipe import Source
from model_store.training.text_files import file_lines
from model_store.training.train import RunResult
from model_store.training.train_options import TrainOptions

app = typer.Typer(no_args_is_help=True, help="Make and measure models.")

Out = Annotated[Path, typer.Option("--out", help="The run's folder; the model goes into `model/` in it.")]
Recipe = Annotated[Path | None, typer.Option(help="A TOML file with a table [[source]] for each source.")]
Corpus = Annotated[Path, typer.Option(help="The folder that a recipe's paths are relative to.")]
Valid = Annotated[list[Path] | None, typer.Option("--valid", help="Text to validate on; may be given again.")]
ValidShare = Annotated[float, typer.Option(help="Share of the data kept for validation without --valid.")]
Tasks = Annotated[Path | None, typer.Option(help="Task definitions, .toml or .json.")]
Block = Annotated[int, typer.Option(help="Tokens in a row; 0 chooses from the lengths.")]
Dtype = Annotated[str, typer.Option(help="Of the exported weights: bf16, fp16 or fp32.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Name = Annotated[str, typer.Option(help="Add the model to the store under this name.")]
License = Annotated[str, typer.Option(help="Of the new weights, for manifest and card; asked for.")]
About = Annotated[
    list[str] | None, typer.Option("--about-data", help="A source and its licence; may be given again.")
]


@app.command("train-tokenizer")
def train_tokenizer(
    paths: Annotated[list[Path], typer.Argument(help="Text, JSON lines, .zst, folders.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens wanted.")] = 8192,
    tasks: Tasks = None,
    max_chars_per_file: Annotated[int, typer.Option(help="Read at most so many of each; 0 reads all.")] = 0,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from model_store.training.bpe import train_tokenizer as train

    with one_line_errors():
        words = [text for task in _tasks(tasks).values() for text in (task.template, task.no_answer)]
        size = train(paths, out, vocab_size, words * 1000, max_chars_per_file)
    typer.echo(
        f"{out}: {size:,} tokens" + ("" if size == vocab_size else f"; the text gave no {vocab_size:,}")
    )


@app.command()
@with_options
def pretrain(
    tokenizer: Annotated[Path, typer.Option(help="What train-tokenizer wrote.")],
    out: Out,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Text, .zst, JSON lines, folders.")
    ] = None,
    recipe: Recipe = None,
    corpus: Corpus = Path(),
    valid: Valid = None,
    valid_share: ValidShare = 0.01,
    tasks: Tasks = None,
    block: Block = 512,
    n_embd: Annotated[int, typer.Option(help="Width.")] = 256,
    n_layer: Annotated[int, typer.Option(help="Layers.")] = 6,
    n_head: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    n_positions: Annotated[int, typer.Option(help="The longest sequence.")] = 1024,
    dtype: Dtype = "bf16",
    resume: Resume = False,
    name: Name = "",
    store: StoreFolder = DEFAULT_STORE,
    license: License = "",
    about_data: About = None,
    *,
    options: TrainOptions,
) -> None:
    """Train a new GPT-2 on text, and on tasks where a recipe mixes them in."""
    from model_store.training.pipeline import Shape, TrainingJob
    from model_store.training.pipeline import pretrain as train

    with one_line_errors():
        known = _tasks(tasks)
        material = Material(
            sources=sources([Source(path) for path in text or []], recipe, corpus, known, "--text"),
            tasks=known,
            valid=tuple(Source(path) for path in valid or []),
            valid_share=valid_share,
            block=block,
            is_loss_everywhere=True,
        )
        draft = _draft(known, license, [*file_lines(material.sources), *(about_data or [])])
        job = TrainingJob(out, material, options, dtype, resume, draft)
        shape = Shape(n_embd, n_layer, n_head, n_positions)
        _finish(train(job, tokenizer, shape, _report), out, name, store)


@app.command()
@with_options
def finetune(
    out: Out,
    dtype: Dtype = "bf16",
    resume: Resume = False,
    name: Name = "",
    license: License = "",
    about_data: About = None,
    keep_tasks: Annotated[
        bool, typer.Option("--keep-tasks", help="Offer the base's tasks, too; check that they still work.")
    ] = False,
    activate: Annotated[bool, typer.Option("--activate", help="With --name: activate it at once.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, as preview does; train nothing.")
    ] = False,
    *,
    data: DataOptions,
    options: TrainOptions,
) -> None:
    """Train a model on tasks; the tasks go into its manifest."""
    from model_store.training.pipeline import TrainingJob
    from model_store.training.pipeline import finetune as train

    with one_line_errors():
        if activate and not name:
            raise InvalidOption("--activate", "needs --name: only a model of the store is active or not")
        entry, material = data.read()
        if dry_run:
            _show(material, options, entry.path)
            return
        read = [*material.sources, *material.valid, *material.old]
        about = [
            f"base model: {entry.label}, licence {entry.manifest.license or 'not given'}",
            *(f"of the base: {line}" for line in entry.manifest.data),
            *file_lines(read),
            *(about_data or []),
        ]
        offered = (
            material.tasks
            if keep_tasks
            else trained_tasks(material.tasks, [*material.sources, *material.valid])
        )
        draft = _draft(offered, license or asked_license(entry), about)
        job = TrainingJob(out, material, options, dtype, resume, draft)
        _finish(train(job, entry.path, _report), out, name, data.store, activate)


@app.command()
@with_options
def preview(
    shown: Annotated[int, typer.Option(help="Examples of each task to show.")] = 2,
    *,
    data: DataOptions,
    options: TrainOptions,
) -> None:
    """Show what finetune would learn: prompts in colour, lengths, labels, steps, memory, time."""
    with one_line_errors():
        entry, material = data.read()
        _show(material, options, entry.path, shown)


def _show(material: Material, options: TrainOptions, model: Path, shown: int = 2) -> None:
    """Print what a run would do."""
    from rich.console import Console

    from model_store.training.cli_preview import show
    from model_store.training.preview import preview as look

    show(look(material, options, model, _report, shown), Console())


def _tasks(path: Path | None) -> dict[str, Task]:
    return load_tasks(path) if path else {}


def _draft(tasks: Mapping[str, Task], license: str, about: list[str]) -> Draft:
    command = shlex.join(["textgen", *sys.argv[1:]])
    return Draft(tasks=tasks, license=license, data=tuple(about), command=command)


def _report(line: str) -> None:
    typer.echo(line, err=True)


def _finish(result: RunResult, out: Path, name: str, store: Path, is_activated: bool = False) -> None:
    """Say what came out, add it to the store, and activate it where that is wanted."""
    from model_store.golden import check_golden
    from model_store.importer import Provenance, import_model
    from model_store.store import Store
    from model_store.training.processes import processes

    if not processes().is_main_process:
        return
    losses = {"loss": result.loss, "validation loss": result.valid_loss}
    said = "".join(f", {name} {loss:.3f}" for name, loss in losses.items() if loss is not None)
    typer.echo(f"{result.steps:,} steps, {result.tokens:,} tokens{said}: {out / 'model'}")
    if name:
        entry = import_model(Store(store.expanduser()), str(out / "model"), name, "", Provenance())
        if is_activated:
            Store(store.expanduser()).activate(entry.label, check_golden)
            typer.echo(f"added {entry.label}; it is active")
        else:
            typer.echo(f"added {entry.label}; next: textgen model activate {entry.label}")
