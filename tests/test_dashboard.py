"""The dashboard asks for numbers that the server has, by labels that they have, and its panels do not overlap."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlpdeploy
from mlpdeploy.serving.metrics import Metrics
from mlpdeploy.serving.stats import ModelStats

DASHBOARD = json.loads((Path(mlpdeploy.__file__).parent.parent / "examples" / "serving" / "grafana.json").read_text())
SERVERS_OWN = {"instance", "le"}  # labels that Prometheus and its histograms add


def samples() -> dict[str, set[str]]:
    """Return {metric: labels} of a server on which everything has happened once."""
    stats = ModelStats()
    stats.batches[4] += 1
    stats.failures["QueueFullError"] += 1
    model = SimpleNamespace(name="m", version="1", ready=True, stats=stats)
    metrics = Metrics(SimpleNamespace(models=lambda: [model]))  # type: ignore[arg-type]
    metrics.answered("http", "infer", 200, 0.01)
    metrics.inferred("m", 0.01)
    metrics.reloads.labels("changed").inc()
    found: dict[str, set[str]] = {}
    for line in metrics.text().decode().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.rpartition(" ")[0].partition("{")
            found[name] = set(re.findall(r"(\w+)=\"", rest))
    return found


def queries() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return panels + [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]


def test_every_metric_and_label_is_there() -> None:
    known = samples()
    for query in queries():
        names = re.findall(r"mlpdeploy_\w+", query)
        assert names, query
        assert set(names) <= set(known), query
        labels = set().union(*(known[name] for name in names)) | SERVERS_OWN
        selected = set(re.findall(r"(\w+)=~", query))
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
        assert selected | grouped <= labels, query


def test_panels_have_a_place_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_what_grafana_needs_to_import_it() -> None:
    """Every panel and query has the fields that Grafana reads, and every variable in use is one of the dashboard's."""
    assert DASHBOARD["title"] and DASHBOARD["uid"] and type(DASHBOARD["schemaVersion"]) is int
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {
        "__rate_interval",
        "__interval",
        "__all",
    }
    for panel in DASHBOARD["panels"]:
        assert panel["type"] and panel["title"] and panel["datasource"]["type"] == "prometheus"
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used <= variables, used - variables
