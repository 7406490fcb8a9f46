"""`--shift auto`: both forms are built and run, the faster one stays with both numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fakes.machine import Machine

from mlpdeploy.engines import choose
from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.errors import MissingDependencyError
from mlpdeploy.runtime.loading import load

OPTIONS = BuildOptions(batches=((1, 1, 1), (2, 4, 8)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine(monkeypatch)
    found.library = tmp_path / "libmlpdeploy_plugins.so"
    found.library.write_bytes(b"a plugin library")
    return found


def test_both_are_run_and_one_stays(machine: Machine, artifact: Path) -> None:
    seen: list[tuple[float, str]] = []
    built = build_artifact(artifact, OPTIONS, progress=lambda done, text: seen.append((done, text)))
    assert list(built.sidecar.measured_ms) == ["plugin", "conv"]
    assert [list(times) for times in built.sidecar.measured_ms.values()] == [["1", "4"], ["1", "4"]]
    assert engines_of(artifact) == [built.sidecar] and built.path.exists()
    assert len(list((artifact / "engines").glob("*.plan"))) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {text.partition(":")[0] for _, text in seen} == {"plugin", "native", "measuring both"}
    assert machine.nothing_is_left()
    again = build_artifact(artifact, OPTIONS)
    assert again.reused and again.sidecar == built.sidecar
    with load(artifact, backend="tensorrt") as session:
        assert session.file == f"engines/{built.sidecar.file}"


@pytest.mark.parametrize("faster", ["plugin", "conv"])
def test_the_faster_one(machine: Machine, artifact: Path, monkeypatch: Any, faster: str) -> None:
    slower = {"plugin": "conv", "conv": "plugin"}[faster]
    times = {faster: {"1": 1.0, "4": 2.0}, slower: {"1": 0.9, "4": 3.0}}
    monkeypatch.setattr(choose, "measure", lambda *arguments: times)
    built = build_artifact(artifact, OPTIONS)
    assert built.sidecar.fingerprint.shift == faster and built.sidecar.measured_ms == times
    assert [engine.fingerprint.shift for engine in engines_of(artifact)] == [faster]


def test_what_was_there_before_stays(machine: Machine, artifact: Path, monkeypatch: Any) -> None:
    native = build_artifact(artifact, dataclasses.replace(OPTIONS, shift="native"))
    monkeypatch.setattr(choose, "measure", lambda *arguments: {"plugin": {"1": 1.0}, "conv": {"1": 2.0}})
    auto = build_artifact(artifact, OPTIONS)
    assert auto.sidecar.fingerprint.shift == "plugin"
    assert native.sidecar in engines_of(artifact) and len(engines_of(artifact)) == 2
    with load(artifact, backend="tensorrt") as session:
        assert session.file == f"engines/{auto.sidecar.file}"  # the one that was measured


def test_without_a_package_for_cuda(machine: Machine, artifact: Path, monkeypatch: Any) -> None:
    def missing(index: int) -> None:
        raise MissingDependencyError("no package for CUDA is installed", fix="run: pip install 'mlpdeploy[cuda]'")

    monkeypatch.setattr("mlpdeploy.runtime.tensorrt.open_cuda", missing)
    built = build_artifact(artifact, OPTIONS)
    assert built.sidecar.fingerprint.shift == "plugin" and built.sidecar.measured_ms == {}
    assert built.sidecar.warnings[0].startswith("the two forms of the shift were not measured, so this is the plugin")
    assert len(engines_of(artifact)) == 1
