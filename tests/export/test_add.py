"""Files for further targets: the bytes of an export for all at once, and an artifact that stays whole."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from click.testing import CliRunner
from tiny import tiny_asmlp

from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.errors import ArtifactError, UsageError, VerificationError
from mlpdeploy.export import add
from mlpdeploy.export.add import lower_artifact
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.verify import verify_artifact


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_added_one_by_one_or_exported_at_once_are_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    """Also where the added target comes first in the table, and without the export's own target."""
    at_once = export_model(tiny_asmlp(), tmp_path / "at_once", target=("openvino", "tensorrt", "cpu"))
    manifest = lower_artifact(artifact, ("tensorrt", "openvino"))
    assert manifest == at_once
    assert list(manifest.files) == list(at_once.files)
    assert contents(artifact) == contents(tmp_path / "at_once")
    export_model(tiny_asmlp(), tmp_path / "other", target="openvino")
    lower_artifact(tmp_path / "other", "cpu")
    lower_artifact(tmp_path / "other", "tensorrt")
    assert contents(tmp_path / "other") == contents(tmp_path / "at_once")
    assert manifest.verification["files"]["model.openvino.onnx"]["backend"] == "openvino"
    assert manifest.verification["files"]["model.cpu.onnx"]["backend"] == "onnxruntime"


def test_a_file_that_is_there_is_only_replaced_by_force(artifact: Path) -> None:
    before = contents(artifact)
    with pytest.raises(UsageError, match="already has a file for cpu; pass --force"):
        lower_artifact(artifact, ("openvino", "cpu"), verify=False)
    assert contents(artifact) == before
    manifest = lower_artifact(artifact, "cpu", shift="slice", force=True)
    assert manifest.files["model.cpu.onnx"].shift == "slice"
    shifts = [report["name"] for report in manifest.passes if report["name"].startswith("lower_axial_shift")]
    assert shifts == ["lower_axial_shift(slice)"]  # and no more what was done for the file that is gone
    assert manifest.verification["passed"]


def test_what_else_is_in_the_folder_stays(artifact: Path) -> None:
    (artifact / "engines").mkdir()
    (artifact / "engines" / "one.plan").write_bytes(b"plan")
    lower_artifact(artifact, "openvino", verify=False)
    assert (artifact / "engines" / "one.plan").read_bytes() == b"plan"


def test_what_another_command_did_meanwhile_is_not_lost(artifact: Path) -> None:
    def build(text: str) -> None:
        if text.startswith("lowering"):
            (artifact / "engines").mkdir()
            (artifact / "engines" / "one.plan").write_bytes(b"plan")

    before = contents(artifact)
    with pytest.raises(ArtifactError, match="changed by another command meanwhile; run this one again"):
        lower_artifact(artifact, "openvino", verify=False, progress=build)
    assert (artifact / "engines" / "one.plan").read_bytes() == b"plan"
    assert contents(artifact) == before


def test_verify_does_not_undo_what_another_command_did_meanwhile(artifact: Path) -> None:
    def add_target(text: str) -> None:
        if text == "checking model.cpu.onnx":
            lower_artifact(artifact, "openvino", verify=False)

    with pytest.raises(ArtifactError, match="changed by another command meanwhile"):
        verify_artifact(artifact, progress=add_target)
    assert "model.openvino.onnx" in read_manifest(artifact).files


def test_an_artifact_is_the_same_after_it_was_verified_or_lowered(artifact: Path, tmp_path: Path) -> None:
    export_model(tiny_asmlp(), tmp_path / "unverified", verify=False)
    before = read_manifest(tmp_path / "unverified")
    verify_artifact(tmp_path / "unverified")
    lower_artifact(tmp_path / "unverified", "openvino")
    after = read_manifest(tmp_path / "unverified")
    assert after != before
    assert after.identity == before.identity == read_manifest(artifact).identity
    changed = dataclasses.replace(after, labels=tuple(reversed(after.labels)))
    assert changed.identity != after.identity
    other = export_model(tiny_asmlp(embed_dim=24), tmp_path / "other", verify=False)
    assert other.identity != after.identity


@pytest.mark.parametrize("failing", ["lowered_files", "write_manifest"])
def test_a_killed_command_leaves_the_old_artifact(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = contents(artifact)
    inodes = {path.name: path.stat().st_ino for path in artifact.iterdir()}

    def kill(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(add, failing, kill)
    with pytest.raises(KeyboardInterrupt):
        lower_artifact(artifact, "cpu", shift="slice", force=True)
    assert contents(artifact) == before
    assert {path.name: path.stat().st_ino for path in artifact.iterdir()} == inodes
    assert [path.name for path in artifact.parent.iterdir()] == [artifact.name]


def test_a_file_that_computes_something_else_is_refused(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed a fault: the norm of the new file has another epsilon."""
    from mlpdeploy.export.passes import lower_group_norm as module

    before = contents(artifact)
    original = module._layer

    def wrong(model: object, node: object) -> object:
        new = original(model, node)
        new[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
        return new

    monkeypatch.setattr(module, "_layer", wrong)
    with pytest.raises(VerificationError, match=r"model\.openvino\.onnx is not equal to PyTorch"):
        lower_artifact(artifact, "openvino")
    assert contents(artifact) == before


@pytest.mark.parametrize(
    ("target", "options", "text"),
    [
        ("openvno", {}, "unknown target 'openvno'; did you mean openvino"),
        ("openvino", {"shift": "plugin"}, "plugin for the target openvino"),
        ("openvino", {"shift": "roll"}, "shift lowering 'roll'"),
    ],
)
def test_impossible_requests(artifact: Path, target: str, options: dict, text: str) -> None:
    before = contents(artifact)
    with pytest.raises(UsageError, match=text):
        lower_artifact(artifact, target, **options)
    assert contents(artifact) == before


def test_a_quantized_artifact_is_not_lowered_again(artifact: Path) -> None:
    write_manifest(artifact, dataclasses.replace(read_manifest(artifact), precision="int8"))
    with pytest.raises(UsageError, match=r"is quantized \(int8\)"):
        lower_artifact(artifact, "openvino")


def test_a_damaged_artifact_is_not_built_upon(artifact: Path, flip_byte: Callable[[Path], None]) -> None:
    flip_byte(artifact / "model.onnx")
    with pytest.raises(ArtifactError, match="was changed after the export"):
        lower_artifact(artifact, "openvino")


def test_the_command(artifact: Path) -> None:
    done = CliRunner().invoke(main, ["lower", str(artifact), "--target", "openvino", "--json"])
    assert done.exit_code == 0, done.output
    assert "model.openvino.onnx" in json.loads(done.stdout)["files"]
    again = CliRunner().invoke(main, ["lower", str(artifact), "--target", "openvino"])
    assert again.exit_code == 2
    assert "already has a file for openvino" in again.stderr
    nothing = CliRunner().invoke(main, ["lower", str(artifact)])
    assert nothing.exit_code == 2
