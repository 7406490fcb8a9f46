"""`backend="auto"`: measured once, remembered, measured again when what it depends on changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.env import installed_version
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import CANONICAL, read_manifest
from mlpdeploy.runtime import auto
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import LoadOptions

# Not `importorskip`: importing openvino as it is starts its telemetry.
if installed_version("openvino") is None:
    pytest.skip("openvino is not installed: pip install 'mlpdeploy[openvino]'", allow_module_level=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLPDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto, "SECONDS", 0.05)
    return tmp_path / "cache" / "backends"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The backends of each measurement."""
    calls: list[list[str]] = []
    measure = auto._measure

    def counted(directory: object, manifest: object, options: object, backends: list[str]) -> object:
        calls.append(backends)
        return measure(directory, manifest, options, backends)

    monkeypatch.setattr(auto, "_measure", counted)
    return calls


def choice(directory: Path, **options: object) -> str:
    with load(directory, "auto", "cpu", **{"threads": 1, **options}) as session:
        assert np.isfinite(session.run(session.random_feeds(2))["logits"]).all()
        return session.backend


def test_measured_once_and_remembered(
    exported_for_all: Path, cache: Path, measured: list, capsys: pytest.CaptureFixture[str]
) -> None:
    first = choice(exported_for_all)
    told = capsys.readouterr()
    assert first in ("onnxruntime", "openvino")
    assert told.out == ""
    for part in ("measured onnxruntime", "openvino", "ms at batch 1", "ms at batch 8", f"takes {first}"):
        assert part in told.err
    assert choice(exported_for_all) == first
    assert measured == [["onnxruntime", "openvino"]]
    assert capsys.readouterr().err == ""
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": {}, "backend": "openvino"}'])
def test_a_damaged_memory_is_measured_again(exported_for_all: Path, cache: Path, measured: list, damage: bytes) -> None:
    choice(exported_for_all)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage)
    choice(exported_for_all)
    assert len(measured) == 2
    assert len(file.read_bytes()) > len(whole) // 2


def test_the_faster_one_wins(exported_for_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for slow, fast in (("onnxruntime", "openvino"), ("openvino", "onnxruntime")):
        figures = {slow: {"1": 3.0, "8": 10.0}, fast: {"1": 2.0, "8": 12.0}}
        monkeypatch.setattr(auto, "_measure", lambda *arguments, figures=figures: figures)
        monkeypatch.setattr(auto, "_remembered", lambda *arguments: None)
        assert choice(exported_for_all) == fast


@pytest.mark.parametrize("change", ["threads", "cpu", "version"])
def test_another_machine_or_version_is_measured_again(
    exported_for_all: Path, measured: list, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    choice(exported_for_all)
    if change == "cpu":
        monkeypatch.setattr(auto, "cpu_name", lambda: "another processor")
    if change == "version":
        monkeypatch.setattr(auto, "installed_version", lambda name: "99")
    choice(exported_for_all, threads=2 if change == "threads" else 1)
    assert len(measured) == 2


def test_another_file_of_the_same_weights_is_measured_again(exported_for_all: Path) -> None:
    manifest, options, backends = read_manifest(exported_for_all), LoadOptions(threads=1), ["onnxruntime", "openvino"]

    def key(role: str) -> object:
        files = {
            name: dataclasses.replace(entry, sha256="0" * 64) if entry.role == role else entry
            for name, entry in manifest.files.items()
        }
        return auto._key(dataclasses.replace(manifest, files=files), options, backends)

    assert key("cpu") != key("openvino") != key("") == key(CANONICAL)


def test_onnxruntime_is_measured_with_the_canonical_model_in_float32_only(exported_for_all: Path) -> None:
    manifest, options = read_manifest(exported_for_all), LoadOptions(device="cpu", threads=1)
    files = {name: entry for name, entry in manifest.files.items() if entry.role in (CANONICAL, "openvino")}
    manifest = dataclasses.replace(manifest, files=files)
    assert auto._able(manifest, options) == ["onnxruntime", "openvino"]
    assert auto._able(dataclasses.replace(manifest, precision="bf16"), options) == ["openvino"]


def test_nothing_to_choose_is_not_measured(exported: Path, exported_for_all: Path, measured: list) -> None:
    assert choice(exported) == "onnxruntime"
    assert choice(exported_for_all, role="cpu") == "onnxruntime"
    assert measured == []


def test_the_precision_is_never_changed(exported_for_all: Path, exported: Path, measured: list) -> None:
    from mlpdeploy.runtime.openvino import native_precisions

    with load(exported_for_all, "auto", "cpu", threads=1) as session:
        assert session.precision == "fp32"
    if "bf16" in native_precisions():
        with load(exported_for_all, "auto", "cpu", precision="bf16") as session:
            assert (session.backend, session.precision) == ("openvino", "bf16")
    with pytest.raises(UsageError, match="no installed backend"):
        load(exported, "auto", "cpu", precision="bf16")


def test_a_cache_folder_that_cannot_be_written(
    exported_for_all: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLPDEPLOY_CACHE", str(tmp_path / "file"))
    assert choice(exported_for_all) in ("onnxruntime", "openvino")
    assert "cannot be remembered" in capsys.readouterr().err
