"""What `inspect` tells of an artifact with engines, as JSON, as text and as a page."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.engines.sidecar import FOLDER, Fingerprint, Sidecar
from mlpdeploy.export.add import lower_artifact
from mlpdeploy.inspection import inspect_artifact
from mlpdeploy.manifest import read_manifest

EACH = [
    {"name": "conv <1>", "kind": "CaskConvolution", "types": ["HALF"], "tactic": "sm89_xmma"},
    {"name": "shift_0", "kind": "PluginV3", "types": ["HALF", "HALF"], "tactic": ""},
]
SIDECAR = Sidecar(
    fingerprint=Fingerprint(
        target="tensorrt",
        version="10.16.1.11",
        gpu="NVIDIA L4",
        compute_capabilities=("8.9",),
        precision="fp16",
        shift="plugin",
        profiles=({"input": ((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))},),
        flags={},
        plugin_sha256="a" * 64,
        source_sha256="b" * 64,
        network_sha256="c" * 64,
    ),
    file="1234.plan",
    sha256="d" * 64,
    bytes=12_000_000,
    driver="580.65.06",
    parse_seconds=0.5,
    build_seconds=20.0,
    scratch_bytes=34_000_000,
    network_layers={"CONVOLUTION": 1, "PLUGIN_V3": 1},
    network_types={"HALF": 2},
    engine_layers={
        "layers": {"CaskConvolution": 1, "PluginV3": 1},
        "types": {"HALF": 3},
        "plugins": 1,
        "reformats": 0,
        "each": EACH,
    },
)


@pytest.fixture
def with_engine(artifact: Path) -> Path:
    (artifact / FOLDER).mkdir()
    (artifact / FOLDER / "1234.json").write_text(SIDECAR.to_json())
    return artifact


def test_an_engine_in_json_text_and_page(with_engine: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["inspect", str(with_engine), "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "tensorrt 10.16.1.11 for NVIDIA L4; fp16, shift as plugin" in done.stdout
    assert "1 different kernels, 1 plugin layers, 0 reformats" in done.stdout
    assert "engines/1234.plan: 12.0 MB, and 34.0 MB of scratch memory for each stream" in done.stdout
    assert "conv &lt;1&gt;" in page.read_text() and "34,000,000 bytes of scratch memory" in page.read_text()
    assert "sm89_xmma" in page.read_text()
    data = json.loads(CliRunner().invoke(main, ["inspect", str(with_engine), "--json"]).stdout)
    assert data["engines"][0]["engine_layers"]["each"] == EACH


def test_a_page_says_that_nothing_was_verified(artifact: Path, tmp_path: Path) -> None:
    write_manifest(artifact, dataclasses.replace(read_manifest(artifact), verification={}))
    page = tmp_path / "page.html"
    assert CliRunner().invoke(main, ["inspect", str(artifact), "--html", str(page)]).exit_code == 0
    assert "never run" in page.read_text()


def test_commands_for_an_engine(with_engine: Path) -> None:
    commands = inspect_artifact(with_engine)["commands"]
    assert shlex.split(commands["time 1234.plan"]) == [
        "trtexec",
        f"--loadEngine={with_engine / FOLDER / '1234.plan'}",
        "--shapes=input:8x3x32x32",
        "--useCudaGraph",
        "--dynamicPlugins=PLUGIN_LIBRARY",
    ]


def test_an_engine_for_fixed_shapes_and_rtx(artifact: Path) -> None:
    (artifact / FOLDER).mkdir()
    mark = dataclasses.replace(SIDECAR.fingerprint, target="tensorrt-rtx", profiles=(), plugin_sha256="")
    fixed = dataclasses.replace(SIDECAR, fingerprint=mark, engine_layers=None)
    (artifact / FOLDER / "1234.json").write_text(fixed.to_json())
    line = inspect_artifact(artifact)["commands"]["time 1234.plan"]
    assert shlex.split(line) == ["tensorrt_rtx", f"--loadEngine={artifact / FOLDER / '1234.plan'}", "--useCudaGraph"]
    done = CliRunner().invoke(main, ["inspect", str(artifact), "--html", str(artifact.parent / "page.html")])
    assert done.exit_code == 0, done.output
    assert "says nothing about itself" in (artifact.parent / "page.html").read_text()


@pytest.mark.parametrize("shift", ["slice", "plugin"])
def test_commands_for_a_lowered_model(artifact: Path, shift: str) -> None:
    lower_artifact(artifact, "tensorrt", shift=shift, verify=False)  # type: ignore[arg-type]
    commands = inspect_artifact(artifact)["commands"]
    build = shlex.split(commands["build model.tensorrt.onnx"])
    assert build[:2] == ["trtexec", f"--onnx={artifact / 'model.tensorrt.onnx'}"]
    assert "--optShapes=input:8x3x32x32" in build
    assert ("--dynamicPlugins=PLUGIN_LIBRARY" in build) == (shift == "plugin")
    if shift == "plugin":  # which polygraphy cannot load
        assert not any(command.startswith("polygraphy") for command in commands.values())
        (native,) = (command for name, command in commands.items() if "for polygraphy" in name)
        assert CliRunner().invoke(main, [*shlex.split(native)[1:], "--no-verify"]).exit_code == 0
        commands = inspect_artifact(artifact)["commands"]
    compare = shlex.split(commands["compare model.tensorrt.onnx"])
    assert compare[:3] == ["polygraphy", "run", str(artifact / "model.tensorrt.onnx")]
    assert "input:[8,3,32,32]" in compare and "--onnxrt" in compare
