from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.artifact import write_manifest
from mlpdeploy.errors import ArtifactError
from mlpdeploy.manifest import FILE_NAME, checked_file, largest_error, read_manifest, state_dict_sha256, usual_size


def test_round_trip(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert manifest.to_json() == (exported / FILE_NAME).read_text()


def test_an_edited_manifest_is_refused(artifact: Path) -> None:
    path = artifact / FILE_NAME
    path.write_text(path.read_text().replace('"opset": 21', '"opset": 20'))
    with pytest.raises(ArtifactError, match="was edited"):
        read_manifest(artifact)


def test_another_version_is_refused_by_number(artifact: Path) -> None:
    path = artifact / FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(ArtifactError, match="version 99; wanted version 1"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": "other"}', "\x00\x01", '{"format": "\\ud800"}', "[" * 100_000],
    ids=lambda text: text[:9],
)
def test_other_texts_are_refused(artifact: Path, text: str) -> None:
    (artifact / FILE_NAME).write_text(text)
    with pytest.raises(ArtifactError, match="manifest"):
        read_manifest(artifact)


def test_no_folder_no_manifest_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, text in (("none", "does not exist"), (".", "has no manifest"), ("file", "is a file")):
        with pytest.raises(ArtifactError, match=text):
            read_manifest(tmp_path / name)


def test_the_weights_are_checked_with_their_model(artifact: Path, flip_byte: Callable) -> None:
    flip_byte(artifact / "model.cpu.weights")
    with pytest.raises(ArtifactError, match=r"model\.cpu\.weights was changed"):
        checked_file(artifact, read_manifest(artifact), "model.cpu.onnx")


@pytest.mark.parametrize("name", ["model.onnx", "model.cpu.onnx", "model.cpu.weights"])
def test_a_changed_a_truncated_and_a_missing_file(artifact: Path, name: str, flip_byte: Callable) -> None:
    manifest = read_manifest(artifact)
    path = artifact / name
    whole = path.read_bytes()
    flip_byte(path)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        checked_file(artifact, manifest, name)
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        checked_file(artifact, manifest, name)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        checked_file(artifact, manifest, name)


def test_a_file_that_names_itself_as_its_weights_is_checked_once(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    entry = dataclasses.replace(manifest.files["model.cpu.onnx"], weights="model.cpu.onnx")
    circular = dataclasses.replace(manifest, files={**manifest.files, "model.cpu.onnx": entry})
    assert checked_file(artifact, circular, "model.cpu.onnx").name == "model.cpu.onnx"


@pytest.mark.parametrize("what", ["model.cpu.onnx", "model.cpu.weights"])
def test_a_file_outside_of_the_folder_is_refused(artifact: Path, what: str) -> None:
    manifest = read_manifest(artifact)
    outside = (artifact / what).rename(artifact.parent / "elsewhere")
    for name in ("../elsewhere", str(outside)):
        files = {**manifest.files, name: manifest.files[what]}
        files["model.cpu.onnx"] = dataclasses.replace(files["model.cpu.onnx"], weights=name)
        asked = name if what == "model.cpu.onnx" else "model.cpu.onnx"
        with pytest.raises(ArtifactError, match=r"has no file .*elsewhere in the artifact"):
            checked_file(artifact, dataclasses.replace(manifest, files=files), asked)


def test_a_manifest_without_a_canonical_model_is_incomplete(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    files = {name: entry for name, entry in manifest.files.items() if entry.role != "canonical"}
    write_manifest(artifact, dataclasses.replace(manifest, files=files))
    with pytest.raises(ArtifactError, match=r"is incomplete \(no canonical model\)"):
        read_manifest(artifact)


def test_values_that_could_not_be_compared_are_the_largest_error() -> None:
    right = {"check": "values of logits, batch 1, 32x32", "passed": True, "relative_error": 1e-6}
    other = {"check": "row alone equals row in a batch, logits, 32x32", "passed": True, "relative_error": 1e-3}
    nan = {"check": "values of logits, batch 2, 32x32", "passed": False, "reason": "NaN or infinite values"}

    def error(*checks: dict[str, object]) -> float | None:
        return largest_error({"files": {"model.onnx": {"checks": [*checks]}}})

    assert (error(), error(other), error(right, other), error(right, nan)) == (None, None, 1e-6, math.inf)


def test_the_checksum_of_weights_is_of_their_names_and_shapes_too() -> None:
    array = np.arange(6, dtype=np.float32)
    states = [{"a": array}, {"b": array}, {"a": array.reshape(2, 3)}, {"a": array[:4], "b": array[4:]}]
    assert len({state_dict_sha256(state) for state in states}) == len(states)
    assert state_dict_sha256({"a": array, "b": array + 1}) == state_dict_sha256({"b": array + 1, "a": array})


def test_open_sizes_take_a_usual_one_that_their_factor_allows() -> None:
    sizes = ("batch", "height", "32*height", "64*height", "256*width", 7)
    assert [usual_size(size) for size in sizes] == [224, 224, 224, 192, 256, 7]
