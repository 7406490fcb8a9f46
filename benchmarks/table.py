"""Print the speed tables of the README and of docs/how-to/precision.md from the results files.

Run with: python benchmarks/table.py
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODELS = {"asmlp_t": "AS-MLP-T", "asmlp_s": "AS-MLP-S", "vip_s7": "ViP-S/7", "cyclemlp_b2": "CycleMLP-B2"}
# Processor -> what the names of its files in results/earlier end with.
PROCESSORS = {
    "AMD EPYC, Zen 5": "_zen5",
    "Intel Xeon with AMX, a slower one": "_amx",
    "Intel Xeon without AMX": "_avx512",
    "AMD EPYC with AVX-512, before ViP had kernels": "_amd",
    "AMD EPYC with AVX2 alone": "_avx2",
}
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


def processors_table() -> str:
    """Return the table of other processors: how many times the faster plain export's speed, at each batch."""
    lines = ["| over the faster plain export, batch 1 and 8 | " + " | ".join(MODELS.values()) + " |", "|---" * 5 + "|"]
    for processor, ending in PROCESSORS.items():
        cells = []
        for model in MODELS:
            path = RESULTS / "earlier" / f"cpu_{model}{ending}.json"
            cells.append(", ".join(f"{ratio:.2f}x" for ratio in _over_naive(path)) if path.is_file() else "")
        lines.append(f"| {processor} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _over_naive(path: Path) -> list[float]:
    rows = json.loads(path.read_text())["results"]
    return [
        min(row["timing"]["time_over_baseline"] for row in rows if row["batch"] == batch and row["name"] in NAIVE)
        for batch in dict.fromkeys(row["batch"] for row in rows)
    ]


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
    print(table(), processors_table(), precision_table(), sep="\n\n")
