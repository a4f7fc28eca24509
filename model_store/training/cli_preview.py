"""`textgen model preview` and `finetune --dry-run`: examples in colour, lengths, steps, memory, time.

What is shown is found out in `preview.py`. Read next: `cli.py`, where the commands are.
"""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_store.training.preview import QUANTILES, Preview, TaskView
from model_store.training.watching import duration

_MAX_SHOWN = 1200  # characters of a piece of an example
_SAID_APART = ("longer than a block", "cut to a block")  # in the table


def show(preview: Preview, console: Console) -> None:
    """Print a preview; what the loss falls on is green, or in ⟦ ⟧ where there are no colours."""
    for name, view in preview.tasks.items():
        console.rule(f"task {name}, the first {len(view.shown)} of {len(view.lengths):,} examples")
        for spans in view.shown:
            console.print(_coloured(spans, console.is_terminal), soft_wrap=True)
            console.print()
    if preview.tasks:
        console.print("learned: ", _coloured([("the answer and its end", True)], console.is_terminal))
        console.print(_lengths(preview))
    for name, view in preview.tasks.items():
        if view.labels:
            console.print(_labels(name, view))
    notes = {k: v for k, v in sorted(preview.counts.items()) if k not in _SAID_APART}
    console.print(", ".join(f"{name}: {count:,}" for name, count in notes.items()), soft_wrap=True)
    for line in _ahead(preview):
        console.print(line, soft_wrap=True, highlight=False)


def _coloured(spans: list[tuple[str, bool]], has_colours: bool) -> Text:
    text = Text()
    for piece, is_target in spans:
        half = _MAX_SHOWN // 2
        shown = piece if len(piece) <= _MAX_SHOWN else f"{piece[:half]} […] {piece[-half:]}"
        if is_target:
            text.append(shown if has_colours else f"⟦{shown}⟧", "bold green")
        else:
            text.append(shown, "dim")
    return text


def _lengths(preview: Preview) -> Table:
    title = f"tokens of prompt and answer; a row has {preview.block}"
    table = Table("task", "examples", title=title, box=SIMPLE)
    names = {0: "min", 50: "median", 100: "max"}
    for quantile in QUANTILES:
        table.add_column(names.get(quantile, f"p{quantile}"), justify="right")
    for name in ("answer", "cut", "left out"):
        table.add_column(name, justify="right")
    for name, view in preview.tasks.items():
        answer = sorted(view.answers)[len(view.answers) // 2]
        numbers = (*view.quantiles(), answer, view.num_cut, view.num_left_out)
        table.add_row(name, f"{len(view.lengths):,}", *(f"{number:,}" for number in numbers))
    return table


def _labels(name: str, view: TaskView) -> Table:
    table = Table("label", title=f"labels of {name}", box=SIMPLE)
    table.add_column("examples", justify="right")
    table.add_column("share", justify="right")
    total = view.labels.total()
    for label, count in view.labels.most_common():
        table.add_row(label, f"{count:,}", f"{100 * count / total:.1f} %")
    return table


def _ahead(preview: Preview) -> list[str]:
    ahead = preview.ahead
    size = ahead.num_rows * preview.block
    full = f"{100 * ahead.num_tokens / size:.0f} % full" if size else "none"
    parts = [ahead.steps * ahead.step_s, ahead.num_validations * ahead.valid_s]
    parts += [ahead.num_samples * ahead.sample_s, ahead.written_s, ahead.measured_s]
    lines = [
        f"ahead: {ahead.num_rows:,} rows of {preview.block} tokens ({full}; {ahead.num_targets:,} count "
        f"in the loss), {ahead.num_valid_rows:,} rows to validate on",
        f"ahead: {ahead.steps:,} steps of {ahead.step_s:.2f} s, {ahead.num_validations:,} validations of "
        f"{ahead.valid_s:.2f} s and {ahead.num_samples:,} samples of {ahead.sample_s:.2f} s, as timed here",
    ]
    if ahead.num_written:
        lines.append(
            f"ahead: before them the base writes {ahead.num_written:,} tokens of old work: about "
            f"{duration(ahead.written_s)}"
        )
    if ahead.measured_s:
        lines.append(f"ahead: measuring old work, before and after: about {duration(ahead.measured_s)}")
    return [
        *lines,
        f"ahead: in all about {duration(sum(parts))}; less with an early stop",
        f"ahead: {ahead.peak_bytes / 1e9:.2f} GB of memory at its highest in one step",
    ]
