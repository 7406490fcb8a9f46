"""The report as a picture: throughput and latency of every candidate, one row of panels per batch size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from mlpdeploy.bench.candidates import LABELS, OURS
from mlpdeploy.bench.report import BenchReport, Result, digits, not_measured, times
from mlpdeploy.env import require
from mlpdeploy.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS_COLOR, _OTHER_COLOR, _TEXT_COLOR = "#1f6fb4", "#b9c0c8", "#333a42"
_WIDTH_INCHES, _BAR_INCHES, _EDGE_INCHES, _DPI = 12.0, 0.36, 1.5, 130


def plot_png(report: BenchReport) -> bytes:
    """Return a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: nothing was measured.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = {batch: _measured(report, batch) for batch in report.options["batches"]}
    rows = {batch: results for batch, results in rows.items() if results}
    if not rows:
        raise UsageError("a plot of a report in which nothing was measured", "at least one result")
    bars = [len(results) for results in rows.values()]
    height = _EDGE_INCHES + sum(_BAR_INCHES * count + 0.75 for count in bars)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout=ConstrainedLayoutEngine(h_pad=0.12))
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(rows), 2, squeeze=False, gridspec_kw={"height_ratios": [count + 1.5 for count in bars], "wspace": 0.04}
    )
    for (batch, results), (left, right) in zip(rows.items(), panels, strict=True):
        _draw_throughput(left, batch, results)
        _draw_latency(right, batch, results)
    figure.suptitle(_title(report), fontsize=11, color=_TEXT_COLOR)
    if missing := not_measured(report):
        text = _plain("\n".join(missing))
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=_TEXT_COLOR, wrap=True)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=_DPI, metadata={"Software": None})
    return target.getvalue()


def _measured(report: BenchReport, batch: int) -> list[Result]:
    return [result for result in report.at_batch(batch) if result.timing is not None]


def _title(report: BenchReport) -> str:
    height, width = report.options["height_width"]
    return _plain(
        f"{report.model['name']} at {height}x{width}, {report.artifact['precision']}, {report.model['source']}\n"
        f"{report.machine['cpu']}, {report.options['threads']} threads"
    )


def _plain(text: str) -> str:
    """Return a text as matplotlib takes it: names of files and error messages are no formulas."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def _draw_throughput(axes: Axes, batch: int, results: list[Result]) -> None:
    """Bars of images/s, with the value and how many times as fast ours is."""
    _rows(axes, results)
    values = [result.timing.images_per_s for result in results if result.timing]
    axes.barh(range(len(results)), values, height=0.72, color=[_color(result) for result in results])
    for index, result in enumerate(results):
        assert result.timing is not None
        text = digits(result.timing.images_per_s)
        if result.name != OURS:
            text += f"   mlpdeploy is {times(result.timing.time_over_baseline)} as fast"
        _write(axes, values[index], index, text, bold=result.name == OURS)
    axes.set_xlim(0, max(values) * 1.6)
    axes.set_title(f"batch {batch}: images/s, higher is better", loc="left", fontsize=10, color=_TEXT_COLOR)


def _draw_latency(axes: Axes, batch: int, results: list[Result]) -> None:
    """The median as a dot, with a thick whisker to p95 and a thin one to p99."""
    _rows(axes, results)
    axes.set_yticklabels([])
    far = 0.0
    for index, result in enumerate(results):
        timing = result.timing
        assert timing is not None
        color = _color(result) if result.name == OURS else "#7d8792"
        axes.plot([timing.p50_ms, timing.p99_ms], [index, index], color=color, linewidth=1.2, marker="|", markevery=[1])
        axes.plot([timing.p50_ms, timing.p95_ms], [index, index], color=color, linewidth=4, solid_capstyle="butt")
        axes.plot([timing.p50_ms], [index], marker="o", markersize=7, color=color, clip_on=False)
        text = f"{digits(timing.p50_ms)}  ({digits(timing.p95_ms)} / {digits(timing.p99_ms)})"
        _write(axes, timing.p99_ms, index, text, bold=result.name == OURS)
        far = max(far, timing.p99_ms)
    axes.set_xlim(0, far * 1.5)
    axes.set_title(
        f"batch {batch}: ms per run, p50 (p95 / p99), lower is better", loc="left", fontsize=10, color=_TEXT_COLOR
    )


def _rows(axes: Axes, results: list[Result]) -> None:
    """One line per candidate from top to bottom, and no more ink than that needs."""
    axes.set_yticks(range(len(results)), [LABELS.get(result.name, result.name) for result in results], fontsize=9)
    for label, result in zip(axes.get_yticklabels(), results, strict=True):
        label.set_fontweight("bold" if result.name == OURS else "normal")
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.grid(axis="x", color="#e4e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelcolor=_TEXT_COLOR)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color("#9aa3ad")


def _write(axes: Axes, x: float, y: int, text: str, *, bold: bool) -> None:
    style: dict[str, Any] = {"fontsize": 8.5, "color": _TEXT_COLOR, "fontweight": "bold" if bold else "normal"}
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", **style)


def _color(result: Result) -> str:
    return _OURS_COLOR if result.name == OURS else _OTHER_COLOR
