"""Print the README's speed table from the results files. Run with: python benchmarks/table.py"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODELS = {"asmlp_t": "AS-MLP-T", "asmlp_s": "AS-MLP-S", "vip_s7": "ViP-S/7"}
NAIVE = ("naive-dynamo", "naive-legacy")
HEAD = (
    "| model, batch | images/s | over eager | over torch.compile | over the better plain export | peak memory, theirs |"
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


if __name__ == "__main__":
    print(table())
