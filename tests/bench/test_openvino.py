"""The artifact on OpenVINO in a benchmark, as ours and as a peer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpdeploy.bench.candidates import OURS
from mlpdeploy.bench.plan import resolve_peers
from mlpdeploy.bench.report import BenchReport
from mlpdeploy.bench.run import bench_artifact
from mlpdeploy.env import installed_version
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import read_manifest

# Not `importorskip`: importing openvino as it is starts its telemetry.
if installed_version("openvino") is None:
    pytest.skip("openvino is not installed: pip install 'mlpdeploy[openvino]'", allow_module_level=True)
QUICK = {"seconds": 0.0, "min_runs": 2, "warmup": 0, "threads": 1, "batches": (2,)}


def statuses(report: BenchReport) -> dict[str, str]:
    return {result.name: result.status for result in report.results}


def test_ours_on_openvino_beside_onnx_runtime(exported_for_all: Path) -> None:
    report = bench_artifact(exported_for_all, backend="openvino", peers=("onnxruntime", "canonical"), **QUICK)
    assert statuses(report) == dict.fromkeys((OURS, "onnxruntime", "canonical"), "measured")
    assert report.artifact["file"] == "model.openvino.onnx"
    assert report.options["backend"] == "openvino"
    assert [use.name for use in report.memory if use.load_ms is not None] == [OURS, "onnxruntime", "canonical"]
    # Two runtimes, not the same one twice.
    assert 0 < next(result.output_error for result in report.results if result.name == "onnxruntime") < 1e-4


@pytest.mark.slow
def test_openvino_among_the_peers(exported_for_all: Path) -> None:
    peers = ("openvino", "naive-openvino", "naive-dynamo")
    report = bench_artifact(exported_for_all, peers=peers, memory=False, **QUICK)
    assert statuses(report) == dict.fromkeys((OURS, *peers), "measured")
    for result in report.results:
        assert result.output_error < 1e-4, result.name  # the plain export is computed in float32 too


def test_bfloat16_is_compared_with_its_own_tolerance(exported_for_all: Path) -> None:
    from mlpdeploy.runtime.openvino import native_precisions

    if "bf16" not in native_precisions():
        pytest.skip("no bfloat16 in this processor")
    report = bench_artifact(
        exported_for_all, backend="openvino", precision="bf16", peers=("openvino",), memory=True, **QUICK
    )
    assert statuses(report) == {OURS: "measured", "openvino": "measured"}
    assert report.results[1].output_error > 1e-4
    assert [use.name for use in report.memory] == ["openvino"]


def test_which_peers_take_part(exported: Path, exported_for_all: Path) -> None:
    without, both = read_manifest(exported), read_manifest(exported_for_all)
    assert not {"onnxruntime", "openvino", "naive-openvino"} & set(resolve_peers(without, None, "onnxruntime", None))
    on_ort = resolve_peers(both, None, "onnxruntime", None)
    assert "onnxruntime" not in on_ort
    assert {"openvino", "naive-openvino"} < set(on_ort)
    on_openvino = resolve_peers(both, None, "openvino", None)
    assert "openvino" not in on_openvino
    assert "onnxruntime" in on_openvino
    assert "openvino" in resolve_peers(both, None, "openvino", "bf16")


def test_an_artifact_without_the_file(exported: Path) -> None:
    report = bench_artifact(exported, peers=("openvino",), memory=False, **QUICK)
    assert statuses(report)["openvino"] == "unavailable"
    assert "mlpdeploy lower" in report.results[1].reason
    with pytest.raises(UsageError, match="has no file for openvino"):
        bench_artifact(exported, backend="openvino", peers=(), memory=False, **QUICK)
