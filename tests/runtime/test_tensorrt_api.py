"""Every name of TensorRT that the package uses is in the real bindings of 8.6, 10 and 11; none is run here.

What the code uses is what the fakes have: they refuse every other name. So the fakes are compared with the bindings, in
both directions for names that a version lacks.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bindings import VERSIONS, run_with_bindings
from fakes.fake_cuda import FakeError
from fakes.fake_quick_plugin import make_quick_plugins
from fakes.fake_tensorrt import make_tensorrt
from fakes.machine import RTX

from mlpdeploy.errors import MissingDependencyError, UsageError
from mlpdeploy.runtime import tensorrt_api
from mlpdeploy.runtime.tensorrt_api import TensorRt, load_tensorrt

HERE = Path(__file__).parent


@cache
def real(major: int, scratch: Path) -> dict[str, Any]:
    """Return what probe_tensorrt.py finds in the real bindings of a version."""
    return run_with_bindings(HERE / "probe_tensorrt.py", major, scratch)


@pytest.fixture(params=VERSIONS)
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bindings")


def surface(version: str, rtx: bool = False) -> dict[str, set[str]]:
    """Return {name in the fake module: its public members}; those of `tensorrt.plugin` begin with `plugin.`."""
    fake = make_tensorrt(version, rtx=rtx)
    classes = {name: value for name, value in vars(fake).items() if not name.startswith("_")}
    classes |= fake._inner  # classes whose objects are only handed out
    if hasattr(fake, "QuickPluginCreationRequest"):
        quick = vars(make_quick_plugins(fake))
        classes |= {f"plugin.{name}": value for name, value in quick.items() if not name.startswith("_")}
    return {
        name: {member for member in dir(value) if not member.startswith("_")} if isinstance(value, type) else set()
        for name, value in classes.items()
    }


def test_what_the_code_uses_is_there(major: int, scratch: Path) -> None:
    found = real(major, scratch)
    assert found["version"] == VERSIONS[major]
    missing = []
    for name, members in surface(VERSIONS[major]).items():
        if name not in found["names"]:
            missing.append(name)
            continue
        missing += [f"{name}.{member}" for member in sorted(members - set(found["names"][name]))]
    assert not missing, f"TensorRT {VERSIONS[major]} has no {', '.join(missing)}"


def test_what_a_version_lacks_the_fake_lacks_too(major: int, scratch: Path) -> None:
    """Otherwise the fake would hide that the code takes the wrong branch."""
    found, mine = real(major, scratch)["names"], surface(VERSIONS[major])
    for other in VERSIONS.values():
        for name, members in surface(other).items():
            assert (name in mine) == (name in found), name
            for member in members if name in mine else ():
                assert (member in mine[name]) == (member in found[name]), f"{name}.{member}"


def test_logger_and_monitor_on_the_real_classes(major: int, scratch: Path) -> None:
    found = real(major, scratch)
    severities = [["error", "INTERNAL_ERROR"], ["error", "ERROR"], ["warning", "WARNING"], ["info", "INFO"]]
    assert found["heard"] == severities
    assert found["watched"] == (major >= 10)
    if found["watched"]:
        assert found["steps"] == [["start", "one", None, 2], ["step", "one", 1], ["finish", "one"]]
    assert found["typed"] == (major >= 10)
    (flags,) = found["flags"]
    assert flags > 0


def logger(version: str) -> Any:
    return TensorRt(make_tensorrt(version), "tensorrt", version).logger(lambda severity, text: None)


# In a process of its own: where the first logger is freed, TensorRT-RTX ends it.
TWO_USERS = """
import gc
from mlpdeploy.engines.tensorrt_builder import create_network
from mlpdeploy.runtime.tensorrt_api import Complaints, load_tensorrt
api = load_tensorrt("tensorrt-rtx")
first, second = Complaints(), Complaints()
builder, other = api.module.Builder(api.logger(first)), api.module.Builder(api.logger(second))
del first, builder
gc.collect()
network = create_network(api, other)
assert not api.module.OnnxParser(network, api.logger(second)).parse(b"no model")
assert api.module.get_plugin_registry().load_library("/nowhere.so") is None
print("still here")
"""


def test_the_first_user_of_tensorrt_may_go() -> None:
    """By the real TensorRT-RTX, which keeps the logger that it was given first."""
    pytest.importorskip("tensorrt_rtx")
    done = subprocess.run([sys.executable, "-c", TWO_USERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("still here\n")


def test_the_fake_refuses_what_is_wrong() -> None:
    trt = make_tensorrt("11.4.0.106")
    builder = trt.Builder(logger("11.4.0.106"))
    with pytest.raises(FakeError, match="strongly typed"):
        builder.create_network(0)
    with pytest.raises(FakeError, match="no fp16"):
        builder.create_builder_config().fp16 = True
    with pytest.raises(FakeError, match="min <= opt"):
        builder.create_optimization_profile().set_shape("input", (2,), (1,), (3,))
    with pytest.raises(FakeError, match="__init__"):
        trt.Builder(SimpleNamespace())


@pytest.mark.parametrize(("version", "fine"), [("8.5.3", False), ("8.6.0", True), ("10.0.1", True), ("12.0.0", False)])
def test_versions(monkeypatch: pytest.MonkeyPatch, version: str, fine: bool) -> None:
    monkeypatch.setattr(tensorrt_api, "require", lambda name: SimpleNamespace(__version__=version))
    if fine:
        assert load_tensorrt("tensorrt").name == f"TensorRT {version}"
    else:
        with pytest.raises(UsageError, match=r"8\.6 to 11"):
            load_tensorrt("tensorrt")


def test_a_package_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(tensorrt_api, "require", fail)
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded \(libnvinfer"):
        load_tensorrt("tensorrt")


def test_what_the_fake_of_tensorrt_rtx_has_is_in_the_real_one() -> None:
    real_rtx = pytest.importorskip("tensorrt_rtx")
    mine = surface(RTX, rtx=True)
    for name, members in mine.items():
        assert hasattr(real_rtx, name), name
        assert members <= set(dir(getattr(real_rtx, name))), name
