"""`mlpdeploy debug`: the block that a fault was put into is the one that it names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from fakes.machine import Machine
from onnx import numpy_helper
from tiny import tiny_asmlp, tiny_vip

from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.debug import debug_artifact
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest, sha256_of
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe


def spoil(artifact: Path, block: str) -> None:
    """Change the weights of one block in the CPU's file, and make the manifest agree."""
    import dataclasses

    manifest = read_manifest(artifact)
    name = manifest.file_for("cpu")
    model = onnx.load(artifact / name)
    for tensor in model.graph.initializer:
        if tensor.name.startswith(f"{block}.mlp.fc2") and tensor.name.endswith("weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, artifact / name)
    entry = dataclasses.replace(
        manifest.files[name], sha256=sha256_of(artifact / name), bytes=(artifact / name).stat().st_size, weights=""
    )
    write_manifest(artifact, dataclasses.replace(manifest, files={**manifest.files, name: entry}))


def test_a_sound_model_has_rounding_only(exported: Path) -> None:
    report = debug_artifact(exported)
    names = [block.block for block in report.blocks]
    assert names == ["patch_embed", "layers.0.blocks.0", "layers.0.downsample", "layers.1.blocks.0", "norm",
                     "ReduceMean", "head"]  # fmt: skip
    assert report.blocks[-1].value == "logits" and report.file == "model.cpu.onnx"
    assert 0 < max(block.worst for block in report.blocks) < 1e-4


@pytest.mark.parametrize("block", ["layers.0.blocks.0", "layers.1.blocks.0"])
def test_the_spoilt_block_is_named(artifact: Path, block: str) -> None:
    spoil(artifact, block)
    report = debug_artifact(artifact)
    assert report.ranked()[0].block == block and report.ranked()[0].added > 0.01
    sound = report.blocks[: [found.block for found in report.blocks].index(block)]
    assert all(found.error < 1e-5 for found in sound)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("family", ["asmlp", "vip"])
def test_blocks_that_compute_on_rows(tmp_path: Path, family: str, precision: str) -> None:
    """Their values are compared with the planes of the canonical model, pixel by pixel."""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32))
    model = tiny_asmlp(embed_dim=32) if family == "asmlp" else tiny_vip()
    export_model(model, tmp_path / "float32", verify=False)
    given = images if precision == "int8" else None
    quantize_artifact(tmp_path / "float32", tmp_path / "out", Recipe(precision), images=given, targets=("cpu",))
    report = debug_artifact(tmp_path / "out", data=images)
    assert 1e-4 < max(block.error for block in report.blocks) < 0.3
    assert (report.images, report.data) == (8, str(images))


def test_another_file_as_the_reference(tmp_path: Path) -> None:
    """The file for the CPU has its blocks' values as rows, the other one as planes."""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32))
    export_model(tiny_asmlp(embed_dim=32), tmp_path / "float32", verify=False)
    targets = ("cpu", "openvino")
    quantize_artifact(
        tmp_path / "float32", tmp_path / "out", Recipe("int8"), images=images, targets=targets, verify=False
    )
    report = debug_artifact(tmp_path / "out", "openvino", against="cpu", data=images)
    assert 1e-4 < max(block.error for block in report.blocks) < 0.3


def test_noise_stays_in_the_range_of_the_calibration(tmp_path: Path) -> None:
    """Beyond it an int8 model is wrong by design, and the first block would have the blame."""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).random((16, 3, 32, 32), np.float32))  # 0 to 1
    export_model(tiny_asmlp(embed_dim=32), tmp_path / "float32", verify=False)
    quantize_artifact(
        tmp_path / "float32", tmp_path / "out", Recipe("int8"), images=images, targets=("openvino",), verify=False
    )
    assert debug_artifact(tmp_path / "out").blocks[0].error < 0.1


def test_an_overflow_is_named_and_is_json(tmp_path: Path) -> None:
    model = tiny_asmlp()
    with torch.no_grad():
        model.get_parameter("layers.0.blocks.0.mlp.fc2.weight").mul_(3e4)
        model.get_parameter("layers.0.blocks.0.mlp.fc1.weight").mul_(100)
    export_model(model, tmp_path / "float32", verify=False)
    quantize_artifact(tmp_path / "float32", tmp_path / "out", Recipe("fp16"), verify=False)
    report = debug_artifact(tmp_path / "out")
    assert report.ranked()[0].block == "layers.0.blocks.0" and report.ranked()[0].added == math.inf
    assert not any(math.isnan(value) for block in report.blocks for value in (block.error, block.worst, block.added))
    body: Any = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert body["blocks"][1]["error"] is None


def test_noise_has_the_models_size_where_any_is_taken(tmp_path: Path) -> None:
    model = tiny_asmlp(patch_size=32, image_size=(64, 64))  # multiples of 64, which 224 is not
    export_model(model, tmp_path / "open", image_size="dynamic", verify=False)
    assert debug_artifact(tmp_path / "open").blocks[-1].worst < 1e-4


def test_an_engine(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    report = debug_artifact(exported, backend="tensorrt")
    assert (report.file, report.backend, len(report.blocks)) == ("engine", "tensorrt", 7)
    assert max(block.worst for block in report.blocks) < 1e-4
    assert machine.nothing_is_left() and not (exported / "engines").exists()


def test_the_command(exported: Path) -> None:
    done = CliRunner().invoke(main, ["debug", str(exported), "--top", "2"], catch_exceptions=False)
    assert done.exit_code == 0 and "model.cpu.onnx on onnxruntime against canonical" in done.output
    done = CliRunner().invoke(main, ["debug", str(exported), "--json"], catch_exceptions=False)
    body: Any = json.loads(done.output)
    assert body["blocks"][-1]["block"] == "head"


def test_wrong_requests(exported: Path) -> None:
    for options, text in (
        ({"role": "openvino"}, "no model for 'openvino'"),
        ({"backend": "tensorr"}, "did you mean tensorrt"),
        ({"against": "cpuu"}, "did you mean cpu"),
    ):
        with pytest.raises(UsageError, match=text):
            debug_artifact(exported, **options)  # type: ignore[arg-type]
