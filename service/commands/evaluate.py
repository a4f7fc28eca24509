"""`textgen model evaluate`: asks a service, or one that it loads into the process, and keeps the figures.

Both ways run the code that serves, so they give the same figures. See `judging.py`, which `compare.py` uses,
too, and `model_store/training/evaluate.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_store.checkpoint import read_checkpoint
from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.entry import ModelEntry, hash_file
from model_store.figures import record_figures
from model_store.manifest import parse_draft, read_json_manifest, write_manifest
from model_store.store import BUILTIN, resolve
from model_store.tokenizer import Tokenizer
from model_store.training.errors import InvalidOption
from service.commands.judging import (
    AsJson,
    Columns,
    Data,
    Encoding,
    Limit,
    Report,
    SkipEmpty,
    Targets,
    TaskFile,
    connected,
    judged,
    loaded,
    test_sets,
    with_tasks,
)

if TYPE_CHECKING:  # not spent on `--help`
    import httpx

    from model_store.training.judged import Judged


def evaluate(
    data: Data = None,
    columns: Columns = None,
    encoding: Encoding = "",
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Text for the perplexity; may be given again.")
    ] = None,
    model: Annotated[str, typer.Option(help="A folder (with a /) or a model of the store.")] = "",
    url: Annotated[str, typer.Option(help="Ask a running service instead.")] = "",
    key: Annotated[str, typer.Option(envvar="TEXTGEN_API_KEY", help="The service's API key.")] = "",
    tasks: TaskFile = None,
    target: Targets = None,
    skip_empty: SkipEmpty = False,
    limit: Limit = 0,
    as_json: AsJson = False,
    report: Report = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Keep the figures: beside a store's version, in a folder's manifest."),
    ] = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Measure a model: answers, summaries, labels, perplexity; beside trivial baselines."""
    with one_line_errors():
        if not data and not text:
            raise InvalidOption("--data", "is missing; give TASK=FILE, or --text FILE for the perplexity")
        if url and (text or tasks or record):
            option = "--text" if text else "--tasks" if tasks else "--record"
            raise InvalidOption(option, "needs the model itself, not the address of a service")
        sets = test_sets(data, columns, encoding, target, skip_empty)
        if url:
            with connected(url, key) as http:
                judgements, figures = judged(http, sets, limit), {}
            entry = None
        else:
            entry = resolve(model, store.expanduser())
            with with_tasks(entry, tasks) as folder, loaded(folder) as http:
                judgements = judged(http, sets, limit)
                figures = _perplexities(http, folder, text or [], limit)
        figures = {**{name: each.figures() for name, each in judgements.items()}, **figures}
        shown = json.dumps(figures, indent=2, ensure_ascii=False) if as_json else _table(figures, judgements)
        typer.echo(shown)  # before anything is written: what took minutes to find is not lost to a full disk
        if record and entry is not None:
            files = {*(source.path for source in sets.sources), *(text or [])}
            typer.echo(f"recorded in {_record(entry, store.expanduser(), figures, files)}", err=True)
        if report:
            _write_report(report, entry, url, judgements)


def _perplexities(
    http: httpx.Client, folder: Path, texts: list[Path], limit: int
) -> dict[str, dict[str, float]]:
    from model_store.training.evaluate import Service, perplexity

    architecture = read_checkpoint(folder).architecture
    tokenizer = Tokenizer.load(folder, architecture.vocab_size)
    return {
        f"perplexity: {path.name}": perplexity(
            Service(http), tokenizer, architecture.n_positions, path, limit
        )
        for path in texts
    }


def _record(
    entry: ModelEntry, store: Path, figures: Mapping[str, Mapping[str, Any]], files: set[Path]
) -> Path:
    """Keep figures: beside a version of a store, which never changes, or in the manifest of a folder."""
    today = datetime.now(UTC).date().isoformat()
    sums = {path.name: hash_file(path).sha256 for path in files if path.is_file()}
    dated = {
        name: {**values, "measured": today, "sha256": sums.get(name.partition(": ")[2], "")}
        for name, values in figures.items()
    }
    if not entry.version:
        draft = parse_draft(read_json_manifest(entry.path)).to_dict()
        draft["evaluation"] = {**draft["evaluation"], **dated}
        write_manifest(entry.path, draft)
        return entry.path
    if (entry.path.parent.name, entry.path.name) != (entry.name, entry.version):
        raise InvalidOption(
            "--record", f"{entry.path} is a copy of {entry.label}; give --model {entry.label}"
        )
    root = store if entry.path.is_relative_to(BUILTIN) else entry.path.parent.parent
    return record_figures(root, entry, dated)


def _write_report(path: Path, entry: ModelEntry | None, url: str, judgements: Mapping[str, Judged]) -> None:
    from model_store.training.curve import read_curve
    from model_store.training.report_html import report, write_report

    facts = [("asked at", url)]
    curve: list[dict[str, str]] = []
    if entry is not None:
        manifest = entry.manifest
        facts = [
            ("model", entry.label),
            ("parameters", f"{manifest.parameters:,}"),
            ("licence", manifest.license or "not given"),
            ("made by", manifest.command or "not given"),
            *(("data", line) for line in manifest.data),
        ]
        if (entry.path / "loss.csv").is_file():
            curve = read_curve(entry.path / "loss.csv")
    write_report(path, report(entry.label if entry else url, judgements, facts, curve))


def _table(figures: Mapping[str, Mapping[str, Any]], judgements: Mapping[str, Judged]) -> str:
    """Figures with their intervals, each label's, and one sentence for each test set."""
    from model_store.training.evaluate import in_order
    from model_store.training.judged_words import verdict

    rows = [("", "", "", "95 % interval"), *in_order({n: dict(v) for n, v in figures.items()})]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    last = ""
    for name, figure, value, interval in rows:
        shown = "" if name == last else name
        line = f"{shown:<{widths[0]}}  {figure:<{widths[1]}}  {value:>{widths[2]}}  {interval:>{widths[3]}}"
        lines.append(line.rstrip())
        last = name
    for name, values in figures.items():
        if "labels" in values:
            lines += ["", *_labels(name, values)]
    lines += ["", *(f"{name}: {verdict(each)}" for name, each in judgements.items())] if judgements else []
    return "\n".join(lines)


def _labels(name: str, values: Mapping[str, Any]) -> list[str]:
    """Each label's figures, and how often it was taken for which."""
    labels, confusion = values["labels"], values["confusion"]
    width = max(len(label) for label in (*labels, f"{name}: right"))
    columns = [max(len(label), 6) for label in confusion]
    said = "  ".join(f"{label:>{size}}" for label, size in zip(confusion, columns, strict=True))
    head = f"{f'{name}: right':<{width}}  precision  recall      f1   said: {said}"
    lines = [head]
    for label, score in labels.items():
        times = [confusion[label].get(other, 0) for other in confusion]
        counts = "  ".join(f"{count:>{size}}" for count, size in zip(times, columns, strict=True))
        shown = f"{score['precision']:>9.1f}  {score['recall']:>6.1f}  {score['f1']:>6.1f}"
        lines.append(f"{label:<{width}}  {shown}         {counts}")
    return lines
