"""A report that can be sent: one HTML file with plots, tables and the worst answers, and nothing to load.

`report` is for one model, `comparison` for two on the same test sets. The arithmetic is in `judged.py` and
`measures.py`, the plots in `report_svg.py`.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from model_store.atomic import write_atomically
from model_store.training.judged import Item, Judged
from model_store.training.judged_words import BASELINES, compared, verdict, words
from model_store.training.measures import LEVEL, Difference, Measure
from model_store.training.report_svg import Bar, bars, lines, shades

_MAX_TEXT = 400
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2733;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin-bottom:0}h2{margin-top:2.5rem;border-top:1px solid #d5dbe1;padding-top:1.2rem}
.big{font-size:1.25rem}.note{color:#5b6875;font-size:.9rem}svg{max-width:100%;height:auto}
table{border-collapse:collapse;margin:1rem 0;width:100%}
td,th{padding:.35rem .6rem;border-bottom:1px solid #e6eaee;text-align:left;vertical-align:top}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{white-space:pre-wrap;margin:0;font:inherit;overflow-wrap:break-word}
"""


def report(
    model: str,
    sets: Mapping[str, Judged],
    facts: Sequence[tuple[str, str]],
    curve: Sequence[Mapping[str, str]],
) -> str:
    """Write the page of one model.

    Args:
        model: Its label.
        sets: What was judged, by the test set's name.
        facts: (name, value) about the model, for the page's end.
        curve: The rows of the run's `loss.csv`, or none.
    """
    parts = [f"<h1>{escape(model)}</h1><p class=note>What it is worth, measured through the service.</p>"]
    for name, judged in sets.items():
        parts.append(f"<h2>{escape(name)}</h2><p class=big>{escape(verdict(judged))}</p>")
        shown = [measure for measure in judged.measures if measure.name != "repetition"]
        parts.append(bars([_bar(measure, judged) for measure in shown], f"figures of {name}"))
        parts.append(_note(len(judged.items)))
        parts.append(_choices(judged))
        parts.append(_worst(judged))
    if curve:
        parts.append(f"<h2>How it learned</h2>{_curve(curve)}")
        parts.append("<p class=note>Loss in nats per token over the tokens seen; lower is better.</p>")
    parts.append("<h2>About the model</h2>" + _table(("", ""), facts))
    return _page(model, parts)


def comparison(
    first: str,
    second: str,
    sets: Mapping[str, tuple[Judged, Judged, Sequence[Difference]]],
) -> str:
    """Write the page that compares two models.

    Args:
        first: One model's label.
        second: The other's.
        sets: By the test set's name, what was judged of both, and the differences of second less first.
    """
    title = f"{second} beside {first}"
    parts = [f"<h1>{escape(title)}</h1><p class=note>The same test sets, measured through the service.</p>"]
    for name, (one, other, differences) in sets.items():
        main = next(each for each in differences if each.name == one.main)
        parts.append(f"<h2>{escape(name)}</h2><p class=big>{escape(compared(main, first, second))}</p>")
        rows = [
            _bar(one.measure(one.main), one, f"{first}: "),
            _bar(other.measure(one.main), other, f"{second}: "),
        ]
        if one.baseline:
            rows.append(_bar(one.measure(one.baseline), one))
        parts.append(bars(rows, f"figures of {name}"))
        parts.append(_note(len(one.items)))
        table = [
            (
                words(d.name),
                f"{d.first:.1f}",
                f"{d.second:.1f}",
                f"{d.second - d.first:+.1f}",
                f"{d.low:+.1f} to {d.high:+.1f}",
            )
            for d in differences
        ]
        parts.append(_table(("", first, second, "difference", f"{LEVEL} % of drawn test sets"), table))
        parts.append(f"<h3>Where they differ most</h3>{_apart(one, other, first, second)}")
    return _page(title, parts)


def _bar(measure: Measure, judged: Judged, prefix: str = "") -> Bar:
    is_baseline = measure.name.startswith(BASELINES)
    return Bar(prefix + words(measure.name), measure.value, *measure.interval(), is_baseline)


def _note(count: int) -> str:
    return (
        "<p class=note>From 0 to 100; grey: what takes no model. "
        f"Whiskers: where the figure of {count:,} other examples of this kind would lie, {LEVEL} % sure.</p>"
    )


def _choices(judged: Judged) -> str:
    if judged.confusion is None:
        return ""
    rows = [
        (each.label, f"{each.count:,}", f"{each.precision:.1f}", f"{each.recall:.1f}", f"{each.f1:.1f}")
        for each in judged.labels
    ]
    head = ("label", "examples", "precision", "recall", "F1")
    plot = shades(judged.task.labels, judged.confusion, "what was right (rows) and what was said (columns)")
    note = "<p class=note>Rows: what is right. Columns: what was said. Blue is right, red is wrong.</p>"
    return f"<h3>Label by label</h3>{_table(head, rows)}{plot}{note}"


def _worst(judged: Judged) -> str:
    worst = judged.worst()
    if not worst:
        return "<h3>The worst answers</h3><p>None: every answer is wholly right.</p>"
    rows = [
        (item.origin, _given(item), " / ".join(item.references), said, f"{score:.0f}")
        for item, said, score in worst
    ]
    head = ("where", "given", "right", "said", "score")
    return f"<h3>The {len(worst)} worst answers</h3>{_table(head, rows)}"


def _apart(one: Judged, other: Judged, first: str, second: str) -> str:
    order = sorted(range(len(one.items)), key=lambda n: -abs(other.scores[n] - one.scores[n]))
    chosen = [n for n in order if other.scores[n] != one.scores[n]][:10]
    rows = [
        (
            _given(one.items[n]),
            " / ".join(one.items[n].references),
            f"{one.said[n]} ({one.scores[n]:.0f})",
            f"{other.said[n]} ({other.scores[n]:.0f})",
        )
        for n in chosen
    ]
    return _table(("given", "right", first, second), rows) if rows else "<p>Nowhere.</p>"


def _given(item: Item) -> str:
    return "\n".join(item.fields.values())


def _curve(rows: Sequence[Mapping[str, str]]) -> str:
    named = (("loss", "training"), ("valid_loss", "validation"))
    series = {
        label: [(float(row["tokens"]), float(row[column])) for row in rows if row.get(column)]
        for column, label in named
    }
    drawn = {label: points for label, points in series.items() if points}
    return lines(drawn, "the learning curve") if drawn else "<p>The run was too short for a curve.</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(head))]
    cells = ["".join(_cell("th", name, flag) for name, flag in zip(head, numeric, strict=True))]
    cells += [
        "".join(_cell("td", text, flag) for text, flag in zip(row, numeric, strict=True)) for row in rows
    ]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _cell(tag: str, text: str, is_number: bool) -> str:
    shown = text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT // 2]} […] {text[-_MAX_TEXT // 2 :]}"
    return f"<{tag}{' class=n' if is_number else ''}><pre>{escape(shown)}</pre></{tag}>"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+\d.,]+( to [-+\d.,]+)?", text) is not None


def _page(title: str, parts: Sequence[str]) -> str:
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{head}{view}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"


def write_report(path: Path, page: str) -> None:
    """Write a page whole or not at all, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
