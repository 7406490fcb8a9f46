"""The report as a picture: latency by percentile, and over the rate where there is a ramp."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.loadgen.step import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mlpdeploy.loadgen.report import LoadReport

_COLORS = {"p50": "#1f6fb4", "p95": "#e08a1e", "p99": "#b3302a"}
_TEXT_COLOR, _GRID_COLOR = "#333a42", "#e4e7ea"
_MOST_CURVES = 6
_TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)


def chart_png(report: LoadReport) -> bytes:
    """Return a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: nothing was answered.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    steps = [step for step in report.steps if step.latency_ms]
    if not steps:
        raise UsageError("a plot of a load in which nothing was answered", "at least one answer")
    panels = 2 if report.ramp else 1
    figure = Figure(figsize=(6.5 * panels, 4.6), layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    if report.ramp:
        _draw_rates(axes[0], steps, report.ramp.knee, report.ramp.p99_limit_ms)
    _draw_percentiles(axes[-1], steps)
    target = report.target["model"] or report.target["platform"]
    figure.suptitle(
        f"{target} over {report.address.protocol}, {report.options['rows']} row(s) a request",
        color=_TEXT_COLOR,
        parse_math=False,  # a dollar sign in a name is one
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    return out.getvalue()


def _draw_rates(axes: Axes, steps: list[Step], knee: float | None, limit_ms: float) -> None:
    """Latency over the answers a second; the knee is a vertical line."""
    steps = sorted(steps, key=lambda step: step.rate or 0.0)
    for name, color in _COLORS.items():
        x = [step.throughput for step in steps]
        axes.plot(x, [step.latency_ms[name] for step in steps], marker="o", markersize=4, color=color, label=name)
    axes.axhline(limit_ms, color=_TEXT_COLOR, linewidth=0.8, linestyle=":")
    axes.annotate("limit of p99", (0.01, limit_ms), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    at_knee = [step.throughput for step in steps if step.rate == knee]
    if at_knee:
        axes.axvline(at_knee[0], color=_TEXT_COLOR, linewidth=1)
        axes.annotate(f" knee: {knee:.0f}/s", (at_knee[0], 0.97), xycoords=("data", "axes fraction"), fontsize=9)
    axes.set_yscale("log")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.93))
    _plain(axes, "answers a second", "ms (open loop, from the time due)")


def _draw_percentiles(axes: Axes, steps: list[Step]) -> None:
    """Latency by percentile, with as much room for each further nine."""
    if len(steps) > _MOST_CURVES:
        steps = [steps[index] for index in np.linspace(0, len(steps) - 1, _MOST_CURVES).astype(int)]
    far = 0.0
    for index, step in enumerate(steps):
        x = [_nines(percentile) for percentile, _ in step.curve_ms]
        far = max([far, *x])
        label = f"{step.clients} clients" if step.rate is None else f"{step.rate:.0f}/s"
        color: Any = _COLORS["p50"] if len(steps) == 1 else str(0.75 - 0.75 * index / (len(steps) - 1))
        axes.plot(x, [value for _, value in step.curve_ms], color=color, label=label)
    ticks = [tick for tick in _TICKS if _nines(tick) <= far + 0.3]
    axes.set_xticks([_nines(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_yscale("log")
    axes.legend(frameon=False, loc="lower right")
    _plain(axes, "percentile", "ms")


def _nines(percentile: float) -> float:
    return float(-np.log10(1 - percentile / 100))


def _plain(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_TEXT_COLOR)
    axes.set_ylabel(y, color=_TEXT_COLOR)
    axes.grid(color=_GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
