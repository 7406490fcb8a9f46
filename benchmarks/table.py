"""Print the speed tables of the README and of docs/how-to/precision.md from the results files.

Run with: python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODELS = {"asmlp_t": "AS-MLP-T", "asmlp_s": "AS-MLP-S", "vip_s7": "ViP-S/7"}
NAIVE = ("naive-dynamo", "naive-legacy")
HEAD = (
    "| model, batch | images/s | over eager | over torch.compile | over the faster plain export "
    "| peak memory, the leaner plain export's |"
)


def table() -> str:
    """Return the table: the plain export that is faster counts for speed, the one that is leaner for memory."""
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for model, name in MODELS.items():
        report = json.loads((RESULTS / f"cpu_{model}.json").read_text())
        for batch in report["options"]["batches"]:
            timings = {r["name"]: r["timing"] for r in report["results"] if r["batch"] == batch}
            peaks = {use["name"]: use["peak_rss_bytes"] / 1e6 for use in report["memory"] if use["batch"] == batch}
            ours = report["baseline"]
            ratios = {peer: timing["time_over_baseline"] for peer, timing in timings.items()}
            lines.append(
                f"| {name}, {batch} | {timings[ours]['images_per_s']:.1f} | {ratios['torch-eager']:.2f}x "
                f"| {ratios['torch-compile']:.2f}x | {min(ratios[peer] for peer in NAIVE):.2f}x "
                f"| {peaks[ours]:.0f} MB, {min(peaks[peer] for peer in NAIVE):.0f} MB |"
            )
    return "\n".join(lines)


def precision_table() -> str:
    """Return the table of precisions: images per second, and how many times PyTorch's that is."""
    models = json.loads((RESULTS / "precision.json").read_text())["models"]
    columns = {
        (model, batch): {row["name"]: row for row in figures["backends"] if row["batch"] == batch}
        for model, figures in models.items()
        for batch in dict.fromkeys(row["batch"] for row in figures["backends"])
    }
    titles = [f"{MODELS[model]}, batch {batch}" for model, batch in columns]
    lines = ["| images/s (times PyTorch eager) | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        cells = [
            f"{rows[name]['images_per_s']:.1f} ({1 / rows[name]['time_over_baseline']:.2f}x)" if name in rows else ""
            for rows in columns.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), precision_table(), sep="\n\n")
