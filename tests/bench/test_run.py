"""Benchmarks of a small artifact from end to end: what is measured, what is refused, and why."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import tiny_asmlp

from mlpdeploy.artifact import write_manifest
from mlpdeploy.bench.candidates import OURS, PEERS, output_error
from mlpdeploy.bench.report import BenchReport, Result, read_report
from mlpdeploy.bench.run import bench_artifact, write_report
from mlpdeploy.cli import main
from mlpdeploy.errors import ArtifactError, UsageError, VerificationError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.plugins.cpu import SWITCH_VARIABLE, ensure_cpu_library
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe

QUICK = {"seconds": 0.0, "min_runs": 2, "warmup": 0}
FAST_PEERS = ("canonical", "torch-eager")


def by_name(report: BenchReport, batch: int) -> dict[str, Result]:
    return {result.name: result for result in report.at_batch(batch)}


def without_packages(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "mlpdeploy.env.importlib.util.find_spec", lambda name: None if name in missing else find_spec(name)
    )


def test_end_to_end(exported: Path, tmp_path: Path) -> None:
    told: list[str] = []
    threads = torch.get_num_threads()
    report = bench_artifact(
        exported, batches=(2, 3), threads=1, peers=("torch-eager", "canonical"), progress=told.append, **QUICK
    )
    assert [(result.batch, result.name) for result in report.results] == [
        (batch, name) for batch in (2, 3) for name in (OURS, "canonical", "torch-eager")
    ]
    for result in report.results:
        assert result.timing is not None
        assert (result.timing.batch, result.timing.runs) == (result.batch, 2)
        assert result.output_error is not None
        assert result.output_error < 1e-4
    assert by_name(report, 2)[OURS].timing.time_over_baseline == 1.0
    assert by_name(report, 2)["torch-eager"].output_error > 0  # another implementation, not the same one twice
    assert [(use.name, use.batch) for use in report.memory] == [(n, b) for b in (2, 3) for n in (OURS, "canonical")]
    assert all(use.load_ms is not None for use in report.memory)
    assert report.options["height_width"] == (32, 32)
    assert report.model["source"] == "random weights, seed 0"
    assert report.artifact["file"] == "model.cpu.onnx"
    assert report.tools["torch"] == torch.__version__.partition("+")[0] or report.tools["torch"] == torch.__version__
    assert report.date_utc.endswith("+00:00")
    assert torch.get_num_threads() == threads
    assert "checking PyTorch eager at batch 3" in told
    write_report(report, tmp_path / "bench.json", tmp_path / "bench.png")
    assert read_report(tmp_path / "bench.json").to_dict() == report.to_dict()
    json.loads((tmp_path / "bench.json").read_text(), parse_constant=pytest.fail)


def test_a_peer_that_computes_something_else_is_reported_and_not_timed(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpdeploy.runtime import torch as backend

    right = backend.reference_model

    def wrong(directory: Path, manifest: object) -> torch.nn.Module:
        module = right(directory, manifest)
        with torch.no_grad():
            module.get_submodule("head").weight[3] *= 1.01
        return module

    monkeypatch.setattr(backend, "reference_model", wrong)
    report = bench_artifact(exported, batches=(2,), peers=FAST_PEERS, memory=False, **QUICK)
    results = by_name(report, 2)
    assert results["canonical"].status == "measured"
    assert results["torch-eager"].status == "mismatch"
    assert results["torch-eager"].timing is None
    assert 1e-3 < results["torch-eager"].output_error < 0.1
    assert "differ from ours by" in results["torch-eager"].reason
    assert report.mismatches == [results["torch-eager"]]


def test_outputs_that_are_not_finite_are_a_mismatch_and_still_json(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpdeploy.runtime import torch as backend

    right = backend.reference_model

    def broken(directory: Path, manifest: object) -> torch.nn.Module:
        module = right(directory, manifest)
        with torch.no_grad():
            module.get_submodule("head").bias[0] = float("nan")
        return module

    monkeypatch.setattr(backend, "reference_model", broken)
    report = bench_artifact(exported, batches=(1,), peers=("torch-eager",), memory=False, **QUICK)
    result = by_name(report, 1)["torch-eager"]
    assert (result.status, result.output_error) == ("mismatch", None)
    json.loads(report.to_json(), parse_constant=pytest.fail)


def test_without_pytorch_ours_is_measured_and_the_rest_is_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_packages(monkeypatch, "torch", "onnx", "onnxscript")
    report = bench_artifact(exported, batches=(1,), memory=False, **QUICK)
    results = by_name(report, 1)
    here = [name for name in PEERS if name != "onnxruntime" and "openvino" not in name]
    assert list(results) == [OURS, *here]
    measured = [name for name, result in results.items() if result.status == "measured"]
    assert [name for name in measured if name != "no-kernels"] == [OURS, "canonical"]
    for name in ("torch-eager", "torch-compile", "naive-dynamo", "naive-legacy"):
        assert results[name].status == "unavailable"
        assert "torch is not installed" in results[name].reason
        assert "pip install 'mlpdeploy[export]'" in results[name].reason


def test_a_package_that_cannot_be_loaded_is_unavailable(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(package: str) -> None:
        raise ImportError(f"{package}: libx.so.1: no such file")

    monkeypatch.setattr("mlpdeploy.bench.peers.require", damaged)
    report = bench_artifact(exported, batches=(1,), peers=("canonical",), memory=False, **QUICK)
    assert report.results[1].reason == "onnxruntime: libx.so.1: no such file"


def test_an_artifact_that_takes_float16(exported: Path, tmp_path: Path) -> None:
    """What takes float32 only is compared all the same, and the canonical file, which does not fit, ends nothing."""
    quantize_artifact(exported, tmp_path / "half", Recipe("fp16", io="fp16"))
    names = ("canonical", "torch-eager", "naive-legacy")
    report = bench_artifact(tmp_path / "half", batches=(2,), threads=1, peers=names, **QUICK)
    assert [(result.name, result.status) for result in report.results] == [
        (OURS, "measured"),
        ("canonical", "unavailable"),
        ("torch-eager", "measured"),
        ("naive-legacy", "measured"),
    ]
    assert "takes float32" in report.results[1].reason
    assert {use.name: use.reason for use in report.memory} == {OURS: "", "naive-legacy": ""}


def test_without_a_compiler_torch_compile_is_unavailable(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("mlpdeploy.bench.peers.shutil.which", lambda name: None)
    report = bench_artifact(exported, batches=(1,), peers=("torch-compile",), memory=False, **QUICK)
    result = by_name(report, 1)["torch-compile"]
    assert result.status == "unavailable"
    assert result.reason == "no C++ compiler, which torch.compile needs on a CPU; install g++"


def test_an_exporter_that_fails_is_unavailable(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such operator\nand a long tale")

    monkeypatch.setattr(torch.onnx, "export", fail)
    report = bench_artifact(exported, batches=(1,), peers=("naive-legacy",), memory=False, **QUICK)
    result = by_name(report, 1)["naive-legacy"]
    assert result.status == "unavailable"
    assert result.reason == "legacy torch.onnx.export + ONNX Runtime failed (RuntimeError: no such operator)"


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of one block, as torch.compile takes seconds for each; do not change it."""
    folder = tmp_path_factory.mktemp("bench") / "block"
    export_model(tiny_asmlp(depths=(1,)), folder, verify=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["naive-dynamo", "naive-legacy", "torch-compile"])
def test_every_peer_computes_what_we_compute(one_block: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    report = bench_artifact(one_block, batches=(1, 3), peers=(name,), memory=False, **QUICK)
    for batch in (1, 3):
        result = by_name(report, batch)[name]
        assert (result.status, result.reason) == ("measured", "")
        assert result.output_error < 1e-4
    assert capfd.readouterr().out == ""


def test_an_artifact_with_a_fixed_batch_is_measured_at_that_batch_only(tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "fixed", batch=2, verify=False)
    report = bench_artifact(tmp_path / "fixed", peers=("canonical",), memory=False, **QUICK)
    assert report.options["batches"] == (2,)
    assert by_name(report, 2)["canonical"].status == "measured"
    with pytest.raises(UsageError, match="1, 8 for an artifact whose batch is fixed; wanted 2"):
        bench_artifact(tmp_path / "fixed", batches=(1, 8), **QUICK)


def test_open_sizes_take_the_models_own_or_the_one_asked_for(tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "open", image_size="dynamic", verify=False)
    options = {"batches": (1,), "peers": FAST_PEERS, "memory": False, **QUICK}
    assert bench_artifact(tmp_path / "open", **options).options["height_width"] == (32, 32)
    report = bench_artifact(tmp_path / "open", image_size=(40, 24), **options)
    assert report.options["height_width"] == (40, 24)
    assert not report.mismatches
    with pytest.raises(UsageError, match="multiple of"):
        bench_artifact(tmp_path / "open", image_size=33, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": ()}, "the batch sizes"),
        ({"batches": (0,)}, "the batch sizes 0; wanted different numbers of at least 1"),
        ({"batches": (1, 1)}, "the batch sizes 1, 1"),
        ({"peers": ("torch-eagr",)}, "unknown peer 'torch-eagr'; did you mean torch-eager"),
        ({"image_size": 64}, "image size 64x64; wanted 32x32, which the artifact is fixed to"),
        ({"threads": 0}, "threads is 0"),
        ({"seconds": -1.0}, "seconds is -1.0"),
        ({"min_runs": 0}, "0 timed runs"),
    ],
)
def test_impossible_requests_are_refused(exported: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_artifact(exported, **options)


def test_the_help_names_every_peer() -> None:
    text = " ".join(CliRunner().invoke(main, ["bench", "--help"]).stdout.split())
    named = text.partition("Peers: ")[2].split(", ")
    assert sorted(named) == sorted(PEERS)


def test_a_damaged_artifact_is_an_error_and_no_unavailable_peer(
    artifact: Path, flip_byte: Callable[[Path], None]
) -> None:
    flip_byte(artifact / "model.onnx")
    with pytest.raises(ArtifactError, match="was changed after the export"):
        bench_artifact(artifact, batches=(1,), peers=("canonical",), memory=False, **QUICK)


def test_the_same_file_without_our_kernels(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ensure_cpu_library() is None:
        pytest.skip("no CPU kernels on this machine")
    report = bench_artifact(exported, batches=(1,), peers=("no-kernels",), memory=False, **QUICK)
    assert report.artifact["kernels"]
    peer = by_name(report, 1)["no-kernels"]
    assert peer.status == "measured"
    assert peer.output_error > 0  # other kernels, other roundings
    monkeypatch.setenv(SWITCH_VARIABLE, "0")
    report = bench_artifact(exported, batches=(1,), peers=("no-kernels",), memory=False, **QUICK)
    assert by_name(report, 1)["no-kernels"].status == "unavailable"
    assert "no kernels of ours run this artifact here" in by_name(report, 1)["no-kernels"].reason


def test_an_artifact_without_a_lowered_file_has_no_canonical_peer(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    files = {name: entry for name, entry in manifest.files.items() if entry.role == "canonical"}
    write_manifest(artifact, dataclasses.replace(manifest, files=files))
    report = bench_artifact(artifact, batches=(1,), peers=("canonical",), memory=False, **QUICK)
    assert by_name(report, 1)["canonical"].status == "unavailable"
    assert "no file lowered for the CPU" in by_name(report, 1)["canonical"].reason


def test_an_unknown_precision_is_refused(artifact: Path) -> None:
    write_manifest(artifact, dataclasses.replace(read_manifest(artifact), precision="fp3"))
    with pytest.raises(ArtifactError, match="precision is 'fp3'; wanted one of: fp32"):
        bench_artifact(artifact)


def test_our_own_nan_is_no_benchmark(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpdeploy.bench.run.session_run", lambda session: lambda batch: [np.array([np.nan])])
    with pytest.raises(VerificationError, match="NaN"):
        bench_artifact(exported, batches=(1,), **QUICK)


def test_the_largest_error_of_all_outputs_counts() -> None:
    reference = [np.array([0.0, 2.0], np.float32), np.array([0.0, 20.0], np.float32)]
    assert output_error([reference[0] + 0.5, reference[1] + 1], reference) == pytest.approx(0.5)
    assert output_error(reference, reference) == 0.0
    assert output_error([np.zeros(2, np.float32)], [np.zeros(2, np.float32)]) == 0.0
    assert output_error(reference[:1], reference) == float("inf")
    assert output_error([reference[0][:1]], reference[:1]) == float("inf")
    for value in (np.nan, np.inf):
        assert output_error([np.array([value, 1])], [np.array([0.0, 1.0])]) == float("inf")
        assert output_error([np.array([1.0, value]), reference[1] + 1], [np.array([0.0, 1.0]), reference[1]]) == float(
            "inf"
        )
