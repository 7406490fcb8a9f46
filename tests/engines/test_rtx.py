"""The real TensorRT-RTX, which parses and builds without a GPU: tiny models through `mlpdeploy build`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from tiny import tiny_asmlp, tiny_cyclemlp, tiny_vip

import mlpdeploy
from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.engines import process
from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.network import lowered_network
from mlpdeploy.engines.options import BuildOptions, Shapes
from mlpdeploy.engines.process import run_build
from mlpdeploy.engines.sidecar import engines_of, read_sidecar
from mlpdeploy.engines.worker import BuildRequest
from mlpdeploy.errors import ArtifactError, MlpDeployError, UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import file_entry, read_manifest, sha256_of
from mlpdeploy.models.build import Model
from mlpdeploy.runtime.tensorrt_api import EngineError, load_tensorrt

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'mlpdeploy[rtx]'")

RTX = BuildOptions("tensorrt-rtx", compute_capabilities=("8.9", "12.0"))
PROFILE: Shapes = ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32))


def test_a_tiny_asmlp_builds(artifact: Path) -> None:
    seen: list[tuple[float, str]] = []
    built = build_artifact(artifact, RTX, progress=lambda done, text: seen.append((done, text)))
    mark = built.sidecar.fingerprint
    assert (mark.shift, mark.precision, mark.compute_capabilities) == ("conv", "fp32", ("8.9", "12.0"))
    assert mark.source_sha256 == sha256_of(artifact / "model.onnx")
    assert built.path.suffix == ".engine" and built.path.stem == mark.name()
    assert built.sidecar.sha256 == sha256_of(built.path) and built.sidecar.bytes == built.path.stat().st_size
    assert set(built.sidecar.network_types) == {"FLOAT"}
    # Every norm is one layer; the shift is one convolution per direction: 18 = 14 of the model, 2 x 2 of the shift.
    assert built.sidecar.network_layers["NORMALIZATION"] == 11
    assert built.sidecar.network_layers["CONVOLUTION"] == 18
    assert engines_of(artifact) == [built.sidecar] == [read_sidecar(built.path.with_suffix(".json"))]
    shares = [done for done, _ in seen]
    assert shares == sorted(shares) and 0.8 < shares[-1] <= 1
    assert any("layers, " in text for _, text in seen)
    assert not [path for path in (artifact / "engines").iterdir() if path.name.startswith(".")]


def test_the_same_request_finds_the_engine(artifact: Path, flip_byte: Callable[[Path], None]) -> None:
    first = build_artifact(artifact, RTX)
    again = build_artifact(artifact, RTX)
    assert again.reused and again.sidecar == first.sidecar
    other = build_artifact(artifact, dataclasses.replace(RTX, batches=((1, 1, 1),)))
    assert not other.reused and other.path != first.path
    flip_byte(first.path)
    repaired = build_artifact(artifact, RTX)
    assert not repaired.reused and sha256_of(first.path) == repaired.sidecar.sha256


@pytest.mark.parametrize("tiny", [tiny_vip, tiny_cyclemlp])
def test_a_tiny_model_without_an_axial_shift_builds(tmp_path: Path, tiny: Callable[[], Model]) -> None:
    export_model(tiny(), tmp_path / "tiny", batch=2)
    built = build_artifact(tmp_path / "tiny", RTX)
    assert built.sidecar.fingerprint.profiles == () and built.sidecar.fingerprint.shift == ""


def test_an_open_image_size_builds(tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "dynamic", image_size="dynamic", verify=False)
    built = build_artifact(
        tmp_path / "dynamic",
        dataclasses.replace(RTX, image_sizes=((32, 32), (64, 64), (96, 128)), batches=((1, 1, 2),)),
    )
    assert built.sidecar.fingerprint.profiles[0]["input"][2] == [2, 3, 96, 128]


@pytest.mark.parametrize("shift", ["conv", "slice"])
def test_what_it_is_given_computes_the_same(exported: Path, tmp_path: Path, shift: str) -> None:
    """The engine cannot run here; the file that TensorRT gets can, in ONNX Runtime."""
    network = lowered_network(exported, read_manifest(exported), "tensorrt-rtx", shift, tmp_path)
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(str(network.path)).run(None, {"input": images})
    with mlpdeploy.load(exported, "torch") as session:
        np.testing.assert_allclose(logits, session.run({"input": images})["logits"], atol=1e-5)


def test_the_artifacts_own_lowered_file_is_taken(tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "tiny", target="tensorrt-rtx", verify=False)
    manifest = read_manifest(tmp_path / "tiny")
    network = lowered_network(tmp_path / "tiny", manifest, "tensorrt-rtx", "conv", tmp_path)
    assert network.path == tmp_path / "tiny" / "model.tensorrt-rtx.onnx"
    other = lowered_network(tmp_path / "tiny", manifest, "tensorrt-rtx", "slice", tmp_path)
    assert other.path == tmp_path / "network.onnx" and other.sha256 != network.sha256


def request(tmp_path: Path, network: Path, **changes: object) -> BuildRequest:
    values = {"profiles": ({"input": PROFILE},), "compute_capabilities": ("8.9",), **changes}
    return BuildRequest("tensorrt-rtx", str(network), str(tmp_path / "engine"), "fp32", **values)  # type: ignore[arg-type]


def onnx_file(path: Path, operator: str, domain: str = "") -> Path:
    node = helper.make_node(operator, ["input"], ["y"], name="the_node", domain=domain)
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3, 32, 32]) for name in ("input", "y")]
    graph = helper.make_graph([node], "g", sides[:1], sides[1:])
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


def test_a_parse_error_names_the_node(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"TensorRT-RTX 1\S+ cannot parse bad.onnx: node 'the_node' \(Nope\): .*"):
        run_build(request(tmp_path, onnx_file(tmp_path / "bad.onnx", "Nope")), tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"cannot parse junk\.onnx"):
        run_build(request(tmp_path, tmp_path / "junk.onnx"), tmp_path)
    assert not (tmp_path / "engine").exists()


def test_a_node_that_nobody_lowered_never_reaches_it(artifact: Path, tmp_path: Path) -> None:
    manifest = read_manifest(artifact)
    onnx_file(artifact / "model.tensorrt.onnx", "AxialShift", "mlpdeploy")
    entry = file_entry(artifact / "model.tensorrt.onnx", "tensorrt", "conv")
    write_manifest(artifact, dataclasses.replace(manifest, files={**manifest.files, "model.tensorrt.onnx": entry}))
    with pytest.raises(ArtifactError, match=r"'the_node' \(mlpdeploy::AxialShift\)"):
        build_artifact(artifact, RTX)
    assert not (artifact / "engines").exists()


def test_a_builder_error_is_one_sentence(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "relu.onnx", "Relu")
    with pytest.raises(EngineError, match="cannot build the engine"):
        run_build(request(tmp_path, file, profiles=()), tmp_path)
    with pytest.raises(UsageError, match=r"compute capability 9\.0 .*one of .*8\.9"):
        run_build(request(tmp_path, file, compute_capabilities=("9.0",)), tmp_path)


def test_a_promised_precision_is_checked(artifact: Path, tmp_path: Path) -> None:
    write_manifest(artifact, dataclasses.replace(read_manifest(artifact), precision="fp16"))
    with pytest.raises(UsageError, match=r"no fp16 model for tensorrt-rtx .*--precision fp16 --target tensorrt-rtx"):
        build_artifact(artifact, RTX)
    export_model(tiny_asmlp(), tmp_path / "typed", target="tensorrt", shift="slice", verify=False)
    write_manifest(tmp_path / "typed", dataclasses.replace(read_manifest(tmp_path / "typed"), precision="fp16"))
    with pytest.raises(EngineError, match="artifact is fp16, but no layer of the parsed network is HALF"):
        build_artifact(tmp_path / "typed", RTX)


def test_a_worker_that_dies_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    for code, text in (
        ("import os, sys; print('last words'); sys.stdout.flush(); os.abort()", "ended by SIGABRT, .*: last words"),
        ("raise SystemExit(3)", "ended with status 3"),
    ):
        script = tmp_path / "dies"
        script.write_text(f"#!{python}\n{code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(process.sys, "executable", str(script))
        with pytest.raises(EngineError, match=text):
            run_build(request(tmp_path, tmp_path / "x.onnx"), tmp_path)


def test_a_killed_build_leaves_no_process_and_no_engine(artifact: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(mlpdeploy.__file__).parent.parent)}
    command = [sys.executable, "-m", "mlpdeploy", "build", str(artifact), "--target", "tensorrt-rtx"]
    build = subprocess.Popen([*command, "--compute-capability", "8.9"], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(artifact.glob("engines/.build.*/request.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    while _workers(artifact) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _workers(artifact)
    assert engines_of(artifact) == []
    assert not build_artifact(artifact, RTX).reused
    assert not list(artifact.glob("engines/.build.*"))


def _workers(artifact: Path) -> list[str]:
    """Return the command lines of processes that still work for this artifact."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "engines.worker" in text and str(artifact) in text:
            lines.append(text)
    return lines


def test_the_command(artifact: Path) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["build", str(artifact), "--target", "tensorrt-rtx", *arguments])
        return result.exit_code, result.stdout, result.stderr

    code, out, _ = run("--compute-capability", "8.9", "--max-batch", "4", "--json")
    body = json.loads(out)
    assert (code, body["reused"]) == (0, False)
    assert [shape[0] for shape in body["fingerprint"]["profiles"][0]["input"]] == [1, 4, 4]
    code, out, _ = run("--compute-capability", "8.9", "--profile", "1:4:4")
    assert code == 0 and "already there" in out and "for 8.9; fp32, shift as conv" in out
    assert run("--compute-capability", "8.9", "--profile", "1:4:4", "--min-batch", "2")[0] == 2
    code, _, error = run("--compute-capability", "8.8")
    assert code == 2 and error.splitlines()[-1].startswith("mlpdeploy: compute capability 8.8 for TensorRT-RTX")


def test_an_absent_package_names_the_extra(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MlpDeployError, match=r"pip install 'mlpdeploy\[rtx\]'"):
        load_tensorrt("tensorrt-rtx")


def test_sidecars_are_checked(artifact: Path) -> None:
    path = build_artifact(artifact, RTX).path.with_suffix(".json")
    text = path.read_text()
    for damaged, message in (
        (text[: len(text) // 2], "cannot be read"),
        (text.replace('"conv"', '"slice"'), "edited after"),
        ("{}", "does not describe an engine"),
    ):
        path.write_text(damaged)
        with pytest.raises(ArtifactError, match=message):
            engines_of(artifact)
