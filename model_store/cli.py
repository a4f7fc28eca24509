"""`textgen model …`: what is in the store, and how it changes. No work is done here: arguments in, lines out.

The training commands are in `model_store/training/cli.py`; `service/cli.py` puts them beside these.
Read next: `model_store/store.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from model_store.card import model_card
from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.entry import ModelEntry, read_entry
from model_store.errors import CorruptEntry, StoreError
from model_store.figures import in_words, main_figure, read_figures
from model_store.layout import Listing
from model_store.store import Store, resolve

app = typer.Typer(help="Models: list, import, check, activate; train and evaluate.", no_args_is_help=True)


@app.command("list")
def list_models(
    store: StoreFolder = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """List every version of every model."""
    with one_line_errors():
        listings = Store(store.expanduser()).listings()
        measured = {each: read_figures(store.expanduser(), each.name, each.version) for each in listings}
    if as_json:
        shown = [{**asdict(each), "path": str(each.path), "figures": measured[each]} for each in listings]
        typer.echo(json.dumps(shown, indent=2))
        return
    for listing in listings:
        marks = [
            word
            for word, is_set in (
                ("active", listing.is_active),
                ("default", listing.is_default and listing.is_active),
                ("built-in", listing.is_builtin),
            )
            if is_set
        ]
        known = ((name, main_figure(values)) for name, values in measured[listing].items())
        marks += [f"{name} {figure}" for name, figure in known if figure]
        typer.echo(f"{listing.name + '@' + listing.version:<32} {', '.join(marks)}".rstrip())
    if not listings:
        typer.echo(f"no models in {store}")


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="name, name@version, or a folder; empty: the default.")] = "",
    store: StoreFolder = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False,
) -> None:
    """Show what a model is, what it can do and where it comes from."""
    with one_line_errors():
        entry = resolve(model, store.expanduser())
        figures = read_figures(store.expanduser(), entry.name, entry.version) if entry.version else {}
    _warn(entry)
    if as_json:
        values = {**entry.manifest.to_dict(), **({"figures": figures} if figures else {})}
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    for key, value in _facts(entry):
        typer.echo(f"{key:<13} {value}")
    for name, measured in figures.items():
        typer.echo(f"{'figures':<13} {name}: {in_words(measured)}")


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="name, name@version, or a folder; empty: the default.")] = "",
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Show a model's card in Markdown: data, licence, command, curve, and all figures measured so far."""
    with one_line_errors():
        entry = resolve(model, store.expanduser())
        figures = read_figures(store.expanduser(), entry.name, entry.version) if entry.version else {}
        shown = model_card(entry.label, entry.manifest, entry.path, figures)
    _warn(entry)
    typer.echo(shown, nl=False)


@app.command("import")
def import_command(
    source: Annotated[
        str, typer.Argument(help="A Hugging Face folder, or a hub id such as openai-community/gpt2.")
    ],
    name: Annotated[str, typer.Option(help="Name in the store; default: that of the source.")] = "",
    version: Annotated[str, typer.Option(help="As 1 or 1.2; default: the next number.")] = "",
    tasks: Annotated[Path | None, typer.Option(help="Task definitions, .json or .toml.")] = None,
    license: Annotated[str, typer.Option(help="Licence of the weights.")] = "",
    data: Annotated[
        list[str] | None, typer.Option(help="What it was trained on; may be given again.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Activate it at once.")] = False,
    base: Annotated[
        str, typer.Option(help="Of a PEFT adapter, which is merged; default: the one it names.")
    ] = "",
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Add a checkpoint to the store, converted to safetensors and checked; an adapter is merged before."""
    from model_store.importer import Provenance, import_model
    from model_store.task_files import load_tasks

    with one_line_errors():
        definitions = load_tasks(tasks) if tasks else None
        provenance = Provenance(definitions, license, tuple(data or ()), f"textgen model import {source}")
        entry = import_model(Store(store.expanduser()), source, name, version, provenance, base=base)
    typer.echo(f"added {entry.label}: {entry.manifest.parameters:,} parameters, {entry.path}")
    if activate:
        _activate(store, entry.label, is_default=False)
    else:
        typer.echo(f"not active yet: textgen model activate {entry.label}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="name@version, a name or a folder; empty: everything.")] = "",
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Compare files with their checksums. Exit code 1 when something is wrong."""
    if model:
        with one_line_errors():
            try:
                entry = resolve(model, store.expanduser())
            except CorruptEntry as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(1) from None
        _warn(entry)
        typer.echo(f"{entry.label}: {len(entry.manifest.files)} files are as they were")
        raise typer.Exit(1 if entry.warnings and "corrupt" in entry.warnings[0] else 0)
    with one_line_errors():
        listings = Store(store.expanduser()).listings()
    problems = [_verify_one(listing) for listing in listings]
    raise typer.Exit(1 if any(problems) else 0)


@app.command()
def activate(
    model: Annotated[str, typer.Argument(help="name@version, or a name for its newest version.")],
    default: Annotated[bool, typer.Option("--default", help="Serve it when no model is named.")] = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Run a version's golden prompts and make it the one that its name stands for."""
    _activate(store, model, default)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A model of the store.")],
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Make the version active again that was so before; once more, the one before that."""
    from model_store.golden import check_golden

    with one_line_errors():
        entry, left = Store(store.expanduser()).rollback(name, check_golden)
    typer.echo(f"{entry.label} is active again, in the place of {left}")


@app.command()
def remove(
    model: Annotated[str, typer.Argument(help="name@version.")],
    force: Annotated[bool, typer.Option("--force", help="The active version too.")] = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Delete one version."""
    with one_line_errors():
        Store(store.expanduser()).remove(model, is_forced=force)
    typer.echo(f"removed {model}")


def _activate(store: Path, label: str, is_default: bool) -> None:
    from model_store.golden import check_golden

    with one_line_errors():
        entry = Store(store.expanduser()).activate(label, check_golden, is_default)
    typer.echo(f"{entry.label} is active{' and the default' if is_default else ''}")


def _verify_one(listing: Listing) -> bool:
    """Say how a version is; True when it is corrupt."""
    try:
        read_entry(listing.path, listing.name, listing.version)
    except StoreError as error:
        typer.echo(str(error), err=True)
        return True
    typer.echo(f"{listing.name}@{listing.version}: whole")
    return False


def _facts(entry: ModelEntry) -> Iterator[tuple[str, str]]:
    manifest = entry.manifest
    yield "model", entry.label
    yield "folder", str(entry.path)
    yield "architecture", ", ".join(f"{key} {value}" for key, value in manifest.architecture.items())
    yield "parameters", f"{manifest.parameters:,}"
    yield "size", f"{sum(record.size for record in manifest.files.values()):,} bytes"
    for task in manifest.tasks.values():
        yield "task", f"{task.name} ({task.kind}): {', '.join(task.fields)}"
    for key, value in manifest.evaluation.items():
        yield "evaluation", f"{key}: {json.dumps(value)}"
    for line in manifest.data:
        yield "data", line
    yield "licence", manifest.license or "not given"
    yield "made by", manifest.command or "not given"


def _warn(entry: ModelEntry) -> None:
    for warning in entry.warnings:
        typer.echo(f"warning: {warning}", err=True)
