"""The sensitivity report as a picture, and as a file."""

from __future__ import annotations

import io
import json
from pathlib import Path

from mlpdeploy.artifact import write_file
from mlpdeploy.env import require
from mlpdeploy.quant.mixed import SensitivityReport


def write_report(report: SensitivityReport, output: Path | None, plot: Path | None) -> None:
    """Write the report as JSON and as PNG, where a path is given.

    Raises:
        MissingDependencyError: a plot without matplotlib.
        ArtifactError: a file cannot be written.
    """
    if output is not None:
        write_file(output, (json.dumps(report.to_dict(), indent=1) + "\n").encode())
    if plot is not None:
        write_file(plot, plot_png(report))


def plot_png(report: SensitivityReport) -> bytes:
    """Return a bar chart: per block the decibels that the logits keep with this block alone in INT8."""
    require("matplotlib")
    from matplotlib.figure import Figure

    blocks = report.blocks[::-1]
    figure = Figure(figsize=(9, 1.4 + 0.28 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    kept = set(report.found.keep if report.found else ())
    colors = ["#c44e52" if cost.block in kept else "#4c72b0" for cost in blocks]
    axes.barh([cost.block for cost in blocks], [cost.alone.sqnr_db for cost in blocks], color=colors)
    axes.axvline(report.int8.sqnr_db, color="#555555", linestyle="--", linewidth=1)
    axes.text(report.int8.sqnr_db, len(blocks) - 0.4, " all in INT8", color="#555555", va="bottom", fontsize=8)
    axes.set_xlabel("SQNR of the logits with this block alone in INT8, dB (lower: more harm)")
    title = f"{report.model}, {report.weights}, {report.images} images"
    axes.set_title(title + (", red: kept in float32" if kept else ""), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
