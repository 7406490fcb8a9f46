"""What `inspect_artifact` found, as a page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from mlpdeploy.webpage import html_table, page


def inspection_page(directory: Path, data: dict[str, Any]) -> str:
    """Return the page; every text that comes from a file is escaped."""
    model = data["model"]
    body = [
        f"<h1>{escape(directory.name)}</h1>",
        f"<p>{escape(str(model['name']))}, {escape(str(model['source']))}, {data['precision']}, opset {data['opset']}: "
        f"{model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e9:.2f} G multiply-adds.</p>",
        "<h2>Files</h2>",
        html_table(
            ("file", "role", "shift", "bytes", "nodes"),
            [
                (name, entry["role"], entry["shift"], f"{entry['bytes']:,}", str(entry.get("nodes", "")))
                for name, entry in data["files"].items()
            ],
            texts=3,
        ),
        _operators(data["files"]),
        "<h2>Passes</h2>" if data["passes"] else "",
        _passes(data["passes"]),
        *(_engine(engine) for engine in data["engines"]),
        "<h2>With NVIDIA's tools</h2>" if data["commands"] else "",
        *(f"<h3>{escape(what)}</h3><pre class='wide'>{escape(line)}</pre>" for what, line in data["commands"].items()),
        "<h2>Verification</h2>",
        _verification(data["verification"]),
    ]
    return page(f"{directory.name}: what it holds", body)


def _verification(data: dict[str, Any]) -> str:
    return f"<pre class='wide'>{escape(json.dumps(data, indent=1))}</pre>" if data else "<p>never run</p>"


def _operators(files: dict[str, Any]) -> str:
    """Return how often each operator stands in each model, the most frequent first."""
    models = {name: entry["operators"] for name, entry in files.items() if "operators" in entry}
    totals: dict[str, int] = {}
    for operators in models.values():
        for name, count in operators.items():
            totals[name] = totals.get(name, 0) + count
    rows = [
        (name, *(str(operators.get(name, "")) for operators in models.values()))
        for name in sorted(totals, key=lambda name: -totals[name])
    ]
    return "<h2>Operators</h2>" + html_table(("operator", *models), rows, texts=1) if rows else ""


def _passes(reports: list[dict[str, Any]]) -> str:
    rows = [
        (
            report["name"],
            report["target"],
            str(report["changed"]),
            "; ".join(f"{len(nodes)}: {reason}" for reason, nodes in report["refused"].items()),
        )
        for report in reports
    ]
    return html_table(("pass", "target", "changed", "left"), rows, texts=2) if rows else ""


def _engine(engine: dict[str, Any]) -> str:
    mark, inside = engine["fingerprint"], engine["engine_layers"]
    where = mark["gpu"] or ", ".join(mark["compute_capabilities"])
    parts = [
        f"<h2>Engine {escape(engine['file'])}</h2>",
        f"<p>{escape(mark['target'])} {escape(mark['version'])} for {escape(where)}, {mark['precision']}, "
        f"{engine['bytes']:,} bytes, built in {engine['build_seconds']:.1f} s.</p>",
        html_table(("layer as parsed", "count"), [(k, str(v)) for k, v in engine["network_layers"].items()], texts=1),
    ]
    if inside is None:
        why = "says nothing about itself without a GPU" if mark["target"] == "tensorrt-rtx" else "was not read back"
        return "".join([*parts, f'<p class="note">It {why}.</p>'])
    scratch = f"{engine['scratch_bytes'] or 0:,} bytes of scratch memory for each stream"
    parts.append(f"<p>{inside['plugins']} plugin layers, {inside['reformats']} reformats; {scratch}.</p>")
    rows = [(layer["name"], layer["kind"], ", ".join(layer["types"]), layer["tactic"]) for layer in inside["each"]]
    return "".join([*parts, html_table(("layer", "kind", "types", "tactic"), rows, texts=4)])
