"""Plots of a report as SVG text: bars with whiskers, a table of shades, lines. No script, no library.

Used by `report_html.py`, which writes them into the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 720
_LEFT = 190
_LETTER = 8  # its width, about
_ROW = 34
_INK, _PALE, _STRONG, _WEAK = "#1c2733", "#e6eaee", "#2563a8", "#9aa7b4"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar from 0 to 100, with an interval; a baseline's is grey."""

    label: str
    value: float
    low: float
    high: float
    is_baseline: bool = False


def bars(rows: Sequence[Bar], title: str) -> str:
    """Bars under one another on a scale from 0 to 100."""
    left = max(_LEFT, *(_LETTER * len(row.label) + 10 for row in rows))
    scale = (_WIDTH - left - 90) / 100
    parts = []
    for tick in range(0, 101, 20):
        x = left + tick * scale
        parts.append(_line(x, 4, x, len(rows) * _ROW, _PALE))
        parts.append(_text(x, len(rows) * _ROW + 16, str(tick), "middle", 12, _WEAK))
    for index, row in enumerate(rows):
        top, middle = index * _ROW + 8, index * _ROW + 8 + (_ROW - 14) / 2
        colour = _WEAK if row.is_baseline else _STRONG
        parts.append(_text(left - 10, middle + 5, row.label, "end"))
        width = max(row.value * scale, 1)
        parts.append(f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{_ROW - 14}" fill="{colour}"/>')
        low, high = left + row.low * scale, left + row.high * scale
        parts.append(_line(low, middle, high, middle, _INK, 2))
        parts += [_line(x, middle - 5, x, middle + 5, _INK, 2) for x in (low, high)]
        parts.append(_text(max(high, left + width) + 8, middle + 5, f"{row.value:.1f}"))
    return _svg(_WIDTH, len(rows) * _ROW + 24, parts, title)


def shades(labels: Sequence[str], counts: Mapping[str, Mapping[str, int]], title: str) -> str:
    """A confusion matrix: rows are right, columns were said; the darker, the more of the row."""
    size = max(44, min(90, (_WIDTH - _LEFT) // max(len(labels), 1)))
    parts = []
    for column, label in enumerate(labels):
        parts.append(_text(_LEFT + (column + 0.5) * size, 20, _short(label, size // 8), "middle"))
    for row, right in enumerate(labels):
        total = sum(counts[right].values())
        top = 30 + row * size
        parts.append(_text(_LEFT - 10, top + size / 2 + 5, _short(right, 24), "end"))
        for column, said in enumerate(labels):
            count = counts[right].get(said, 0)
            share = count / total if total else 0.0
            x = _LEFT + column * size
            colour = _STRONG if row == column else "#b3402e"
            parts.append(
                f'<rect x="{x}" y="{top}" width="{size - 2}" height="{size - 2}" fill="{colour}" '
                f'fill-opacity="{0.06 + 0.9 * share:.2f}"/>'
            )
            ink = "#ffffff" if share > 0.55 else _INK
            parts.append(_text(x + size / 2 - 1, top + size / 2 + 5, str(count), "middle", 14, ink))
    return _svg(_LEFT + size * len(labels), 34 + size * len(labels), parts, title)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Curves in one picture, their names beside it; x from its first to its last value."""
    points = [point for values in series.values() for point in values]
    height, left, right = 240, 56, 110
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low_x, span_x = min(xs), (max(xs) - min(xs)) or 1
    low_y, span_y = min(ys), (max(ys) - min(ys)) or 1

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (point[0] - low_x) / span_x * (_WIDTH - left - right)
        return x, 12 + (1 - (point[1] - low_y) / span_y) * (height - 40)

    parts = []
    for step in range(5):
        value = low_y + span_y * step / 4
        y = place((low_x, value))[1]
        parts += [_line(left, y, _WIDTH - right, y, _PALE), _text(left - 8, y + 4, f"{value:.2f}", "end", 12)]
    for index, (name, values) in enumerate(series.items()):
        colour = (_STRONG, "#c2571a", _WEAK)[index % 3]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, values))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(_WIDTH - right + 10, 24 + 20 * index, name, "start", 13, colour))
    for value in (low_x, low_x + span_x):
        parts.append(_text(place((value, low_y))[0], height - 6, f"{value:,.0f}", "middle", 12))
    return _svg(_WIDTH, height, parts, title)


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    size = f'width="{width:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg {size} role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 14, colour: str = _INK) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length - 1, 1)] + "…"
