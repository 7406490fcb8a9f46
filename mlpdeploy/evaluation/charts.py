"""Charts as inline SVG, drawn by hand: they take the page's colours in light and dark, and need no package.

Every chart is `WIDTH` units wide, which is about a phone's width in pixels, and scales with its place in the page.
Colours are the page's variables: `--text`, `--muted`, `--line`, and `--c0` to `--c5` for the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from mlpdeploy.evaluation.metrics import ReliabilityBin
from mlpdeploy.evaluation.report import ErrorSpread
from mlpdeploy.evaluation.table import digits

WIDTH = 360
COLORS = 6
_ROW = 34


def color(index: int) -> str:
    """Return the colour of candidate `index`."""
    return f"var(--c{index % COLORS})"


def svg(height: float, title: str, parts: Sequence[str], width: float = WIDTH) -> str:
    """Return an SVG element of the parts; `title` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, value: str, *, anchor: str = "start", size: float = 11, fill: str = "var(--text)") -> str:
    """Return a text whose baseline is at (x, y); `value` is escaped."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size:g}" fill="{fill}">{escape(value)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "var(--line)", width: float = 1) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width:g}"/>'


def rect(x: float, y: float, width: float, height: float, fill: str, opacity: float = 1, title: str = "") -> str:
    """Return a filled rectangle, with a tooltip where `title` is given; it is escaped."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{fill}" fill-opacity="{opacity:.3f}">{inside}</rect>'


def marker(index: int, x: float, y: float, title: str = "") -> str:
    """Return the sign of candidate `index`: its own colour and form."""
    forms = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
        "M-3.6 -3.6h7.2v7.2h-7.2z",
        "M0 -5L5 0L0 5L-5 0z",
        "M0 -5L4.6 3.4H-4.6z",
    )
    form = forms[index % len(forms)]
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<path d="{form}" transform="translate({x:.1f} {y:.1f})" fill="{color(index)}">{inside}</path>'


def intervals(names: Sequence[str], values: Sequence[tuple[float, float, float]], title: str) -> str:
    """Return one dot with its interval per candidate, on an axis that shows the differences and need not begin at 0.

    Args:
        names: of the candidates.
        values: (low, value, high) of each, 0..1.
    """
    low, high = min(value[0] for value in values), max(value[2] for value in values)
    step = _step((high - low) * 100 or 1) / 100
    low, high = max(0.0, math.floor(low / step) * step), min(1.0, math.ceil(high / step) * step)
    left, right, bottom = 12.0, WIDTH - 12.0, 12 + _ROW * len(names)

    def at(value: float) -> float:
        return left + (right - left) * (value - low) / ((high - low) or 1)

    parts = []
    for tick in range(round((high - low) / step) + 1):
        x = at(low + tick * step)
        parts += [line(x, 8, x, bottom)]
        parts.append(
            text(x, bottom + 14, f"{100 * (low + tick * step):.4g}", anchor="middle", size=10, fill="var(--muted)")
        )
    for index, (name, (least, value, most)) in enumerate(zip(names, values, strict=True)):
        y = 30 + _ROW * index
        parts.append(text(left, y - 9, name))
        parts.append(line(at(least), y, at(most), y, color(index), 3))
        parts.append(marker(index, at(value), y, f"{100 * value:.2f} %, {100 * least:.2f} to {100 * most:.2f} %"))
    return svg(bottom + 20, title, parts)


def bars(names: Sequence[str], values: Sequence[float | None], unit: str, title: str) -> str:
    """Return one bar per candidate from 0, with its value; None means not known."""
    largest = max((value for value in values if value is not None), default=0.0) or 1.0
    parts = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 16 + _ROW * index
        shown = "not known" if value is None else f"{digits(value)} {unit}"
        parts.append(text(0, y, name))
        parts.append(rect(0, y + 4, (WIDTH - 90) * (value or 0.0) / largest, 10, color(index)))
        parts.append(text((WIDTH - 90) * (value or 0.0) / largest + 6, y + 13, shown, size=10))
    return svg(_ROW * len(names) + 6, title, parts)


def reliability(table: Sequence[ReliabilityBin], index: int, title: str) -> str:
    """Return accuracy over confidence, per bin, and the diagonal where both are equal. Grey: the images' share."""
    side, left, top = 250.0, 40.0, 10.0
    total = sum(bin_.images for bin_ in table) or 1
    parts = []
    for tick in range(0, 11, 2):
        offset = side * tick / 10
        parts.append(line(left, top + side - offset, left + side, top + side - offset))
        parts.append(
            text(left - 5, top + side - offset + 4, f"{10 * tick}", anchor="end", size=10, fill="var(--muted)")
        )
        parts.append(
            text(left + offset, top + side + 14, f"{10 * tick}", anchor="middle", size=10, fill="var(--muted)")
        )
    for bin_ in table:
        if bin_.accuracy is None or bin_.confidence is None:
            continue
        x, width = left + side * bin_.low, side * (bin_.high - bin_.low)
        told = f"{bin_.images} images: confidence {100 * bin_.confidence:.1f} %, right {100 * bin_.accuracy:.1f} %"
        parts.append(
            rect(x, top + side * (1 - bin_.images / total), width, side * bin_.images / total, "var(--muted)", 0.25)
        )
        height = side * bin_.accuracy
        parts.append(rect(x + 1, top + side - height, width - 2, height, color(index), 0.75, told))
        middle = left + side * bin_.confidence
        parts.append(line(middle, top + side - height - 5, middle, top + side - height + 5, "var(--text)", 2))
    parts.append(line(left, top + side, left + side, top, "var(--text)"))
    parts.append(text(left + side / 2, top + side + 28, "confidence, %", anchor="middle", size=10, fill="var(--muted)"))
    parts.append(
        text(left, top + side + 42, "colour: right, %; grey: share of the images", size=10, fill="var(--muted)")
    )
    return svg(top + side + 48, title, parts, left + side + 20)


def per_class(names: Sequence[str], shares: Sequence[Sequence[float]], title: str) -> str:
    """Return one row per class, with one sign per candidate at its accuracy.

    Args:
        names: of the classes.
        shares: for each class those of the candidates, 0..1.
    """
    low = min(min(values) for values in shares)
    low = min(math.floor(low * 10) / 10, 0.9)
    left, right, row = 108.0, WIDTH - 14.0, 22
    bottom = 8 + row * len(names)
    parts = []
    for tick in range(round((1 - low) * 10) + 1):
        x = left + (right - left) * tick / ((1 - low) * 10)
        parts.append(line(x, 4, x, bottom))
        parts.append(
            text(x, bottom + 14, f"{100 * low + 10 * tick:.0f}", anchor="middle", size=10, fill="var(--muted)")
        )
    for number, (name, values) in enumerate(zip(names, shares, strict=True)):
        y = 18 + row * number
        parts.append(text(left - 8, y + 4, _shortened(name, 15), anchor="end"))
        for index, value in enumerate(values):
            shift = (index - (len(values) - 1) / 2) * min(3.0, 12 / len(values))
            parts.append(
                marker(index, left + (right - left) * (value - low) / (1 - low), y + shift, f"{100 * value:.2f} %")
            )
    return svg(bottom + 20, title, parts)


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]], index: int, title: str) -> str:
    """Return the confusion matrix of few classes: a row is a true class, a column a predicted one, shaded per row."""
    left, top = 66.0, 8.0
    cell = (WIDTH - left - 4) / len(names)
    parts = []
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        y, total = top + cell * row, sum(values) or 1
        parts.append(text(left - 5, y + cell / 2 + 3.5, _shortened(name, 9), anchor="end", size=min(10, cell)))
        for column, count in enumerate(values):
            told = f"{count} of {total} of {name} taken for {names[column]}"
            strength = 0.6 * math.sqrt(count / total) if count else 0.04
            parts.append(rect(left + cell * column, y, cell - 1, cell - 1, color(index), strength, told))
            if count and cell >= 16:
                size = min(9.0, cell / 2.6)
                parts.append(
                    text(left + cell * (column + 0.5), y + cell / 2 + 3, str(count), anchor="middle", size=size)
                )
    bottom = top + cell * len(names)
    for column, name in enumerate(names):
        x = left + cell * (column + 0.5)
        where = f'transform="rotate(-60 {x:.1f} {bottom + 10:.1f})"'
        label = escape(_shortened(name, 9))
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 10:.1f}" {where} text-anchor="end" font-size="{min(10, cell):g}" '
            f'fill="var(--text)">{label}</text>'
        )
    return svg(bottom + 58, title, parts)


def error_histogram(spread: ErrorSpread, index: int, title: str) -> str:
    """Return how many images have which largest logit error, over the reference's spread, on a logarithmic axis."""
    left, right, top, bottom = 10.0, WIDTH - 10.0, 8.0, 120.0
    first, last = spread.exponents[0], spread.exponents[-1]
    most = max(spread.images, default=0) or 1
    parts = [line(left, bottom, right, bottom)]

    def at(exponent: float) -> float:
        return left + (right - left) * (exponent - first) / (last - first)

    for low, high, count in zip(spread.exponents[:-1], spread.exponents[1:], spread.images, strict=True):
        height = (bottom - top) * count / most
        told = f"{count} images: error 1e{low:.2f} to 1e{high:.2f}"
        parts.append(rect(at(low) + 0.5, bottom - height, at(high) - at(low) - 1, height, color(index), 0.8, told))
    for exponent in range(round(first), round(last) + 1):
        parts.append(text(at(exponent), bottom + 14, f"1e{exponent}", anchor="middle", size=10, fill="var(--muted)"))
    return svg(bottom + 20, title, parts)


def _step(extent: float) -> float:
    """Return 1, 2 or 5 times a power of ten that divides `extent` into three to eight parts."""
    power = 10 ** math.floor(math.log10(extent / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if extent / (power * factor) <= 6)


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"
