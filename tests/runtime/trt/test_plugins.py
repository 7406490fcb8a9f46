"""Engines with our plugin: from its library, which is loaded once, or carried by the engine itself."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.fake_quick_plugin import fake_ptx
from fakes.machine import NEWEST, Machine
from tiny_engine import PROFILES, close

from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.errors import PluginError
from mlpdeploy.plugins.find import (
    CACHE_VARIABLE,
    FORMAT_VERSION,
    LIBRARY_NAME,
    RECORD_NAME,
    BuildRecord,
    cache_directory,
)
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError, load_tensorrt


def test_a_plugin_engine(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    machine.library.write_bytes(b"a plugin library")
    directory = machine.built(exported, tmp_path / "a", BuildOptions(shift="plugin"))
    for _ in range(2):  # the library is loaded once
        with load(directory, backend="tensorrt") as session:
            assert close(session.run({"input": images[:9]})["logits"], wanted[:9])


def test_two_threads_that_load_one_plugin_library(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    """The second waits for the first: TensorRT would refuse it."""
    library, registry = tmp_path / "libmlpdeploy_plugins.so", machine.module.get_plugin_registry()
    loaded: list[str] = []
    monkeypatch.setattr(registry, "load_library", lambda path: time.sleep(0.1) or loaded.append(path) or object())
    api = load_tensorrt("tensorrt")
    threads = [threading.Thread(target=api.load_plugins, args=(library,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [str(library)]


def test_an_engine_that_carries_the_plugin(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mlpdeploy.plugins.ptx.build_ptx", lambda: fake_ptx(tmp_path))
    options = dataclasses.replace(PROFILES, shift="plugin", plugin="embedded")
    directory = machine.built(exported, tmp_path / "a", options)
    assert machine.library is None  # there is none, at any time
    with load(directory, backend="tensorrt") as session:
        assert close(session.run({"input": images})["logits"], wanted)
        assert session.sidecar.fingerprint.embedded_sha256  # type: ignore[attr-defined]
    monkeypatch.setattr("mlpdeploy.plugins.ptx.build_ptx", lambda: pytest.fail("nothing is compiled to run it"))
    load(directory, backend="tensorrt").close()


def test_the_plugin_library(machine: Machine, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    library = tmp_path / "libmlpdeploy_plugins.so"
    library.write_bytes(b"a plugin library")
    machine.library = library
    own = machine.built(exported, tmp_path / "b", BuildOptions(shift="plugin"))
    machine.library = None
    with pytest.raises(PluginError, match=r"plan needs the plugin library: .*not built; run: mlpdeploy plugin build"):
        load(own, backend="tensorrt")
    machine.library = library
    library.write_bytes(b"another plugin library")
    with pytest.raises(PluginError, match="with another plugin library than"):
        load(own, backend="tensorrt")
    earlier = cache_directory() / "earlier" / LIBRARY_NAME
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"a plugin library")
    digest = hashlib.sha256(b"a plugin library").hexdigest()
    record = BuildRecord(FORMAT_VERSION, "1", "0", digest, 16, "IPluginV3", "11.4", "13.0", "g++", (), (), 1.0)
    (earlier.parent / RECORD_NAME).write_text(record.to_json())
    load(own, backend="tensorrt").close()  # the cache still has the one that it was built with
    assert machine.module.get_plugin_registry()._loaded == [str(earlier)]
    earlier.write_bytes(b"a plugin librarz")
    with pytest.raises(PluginError, match="was changed or cut off"):
        load(own, backend="tensorrt")
    shutil.rmtree(earlier.parent)
    library.write_bytes(b"a plugin library")
    machine.use(NEWEST, plugins=False)
    with pytest.raises(EngineError, match=r"cannot load the plugin library .*\.so: .*(file too short|ELF header)"):
        load(own, backend="tensorrt")


def test_an_engine_that_needs_no_library_runs_where_there_is_none(
    machine: Machine, exported: Path, tmp_path: Path
) -> None:
    machine.library = tmp_path / "libmlpdeploy_plugins.so"
    machine.library.write_bytes(b"a plugin library")
    own = machine.built(exported, tmp_path / "b", BuildOptions(shift="plugin", batches=((1, 8, 32),)))
    native = build_artifact(own, BuildOptions(shift="native", batches=((1, 1, 1),)))
    with load(own, backend="tensorrt") as session:
        assert session.max_batch == 32
    machine.library = None
    with load(own, backend="tensorrt") as session:
        assert session.file == f"engines/{native.sidecar.file}"
