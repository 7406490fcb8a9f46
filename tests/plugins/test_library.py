"""The compiled library: what it shows, that it loads without a GPU, and that every method of both faces is right."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bindings import BINDINGS

from mlpdeploy.ops.axial_shift import NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION, ShiftSpec, attributes
from mlpdeploy.plugins.build import ARCHITECTURES
from mlpdeploy.plugins.elf import needed_libraries, read_symbols
from mlpdeploy.plugins.find import REGISTER_VARIABLE, PluginLibrary
from mlpdeploy.plugins.toolchain import CSRC, Toolchain, known_architectures

NATIVE = Path(__file__).parent / "native"

# Runs in a process of its own: a registry that fails aborts its process.
REGISTRY = """
import json, sys
import numpy as np
import tensorrt_dispatch_bindings as trt

library, name, version, namespace, values = sys.argv[1], *sys.argv[2:5], json.loads(sys.argv[5])
logger = trt.Logger(trt.Logger.WARNING)
registry = trt.get_plugin_registry()
handle = registry.load_library(library)
creator = registry.get_creator(name, version, namespace)
fields = []
for key, value in values.items():
    text = isinstance(value, str)
    data = np.frombuffer(value.encode(), np.int8) if text else np.array([value], np.int32)
    fields.append(trt.PluginField(key, data, trt.PluginFieldType.CHAR if text else trt.PluginFieldType.INT32))

def made(fields):
    try:
        plugin = creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    except Exception:
        return False
    return plugin is not None

print(json.dumps({
    "version": int(trt.__version__.partition(".")[0]),
    "loaded": handle is not None,
    "creator": [creator.name, creator.plugin_version, creator.plugin_namespace],
    "fields": [field.name for field in creator.field_names],
    "elsewhere": registry.get_creator(name, version, "") is None and registry.get_creator(name, "2", namespace) is None,
    "made": made(fields),
    "made without its first field": made(fields[1:]),
}))
"""


def test_only_the_entry_points_are_visible(plugin_library: PluginLibrary) -> None:
    symbols = read_symbols(plugin_library.path)
    assert symbols.defined == ("getCreators", "mlpdeploy_axial_shift", "setLoggerFinder")
    assert not [name for name in symbols.undefined if "nvinfer" in name.lower() or "registry" in name.lower()]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_our_reading_of_symbols_is_that_of_nm(plugin_library: PluginLibrary) -> None:
    done = subprocess.run(
        ["nm", "-D", "--without-symbol-versions", plugin_library.path], capture_output=True, text=True, check=True
    )
    names: dict[bool, set[str]] = {True: set(), False: set()}
    for line in done.stdout.splitlines():
        *_, kind, name = line.split()
        names[kind not in "Uwv"].add(name)
    symbols = read_symbols(plugin_library.path)
    assert (set(symbols.defined), set(symbols.undefined)) == (names[True], names[False])


def test_loads_without_toolkit_and_driver(plugin_library: PluginLibrary) -> None:
    data = plugin_library.path.read_bytes()
    for name in (b"libcudart.so", b"libcuda.so.1\0libc"):
        assert name not in data
    assert not [name for name in needed_libraries(plugin_library.path) if "nvinfer" in name]
    library = ctypes.CDLL(str(plugin_library.path))
    count = ctypes.c_int32()
    library.getCreators.restype = ctypes.c_void_p
    assert library.getCreators(ctypes.byref(count))
    assert count.value == 1


def major_of(tools: Toolchain) -> int:
    """Return the major version of the headers."""
    return int(tools.tensorrt_version.partition(".")[0])


def with_registry(major: int) -> dict[str, str]:
    """Return the environment of a process whose `tensorrt_dispatch_bindings` have the real registry of a version."""
    folder = BINDINGS / "registry-10"
    if major == 10 and folder.is_dir():
        return {**os.environ, "PYTHONPATH": str(folder)}
    if major == 11 and importlib.util.find_spec("tensorrt_dispatch_bindings") is not None:
        return dict(os.environ)
    pytest.skip(f"no plugin registry of TensorRT {major}: make bindings, and see tests/plugins/requirements.txt")


@pytest.mark.parametrize("major", [10, 11])
def test_the_real_registry_finds_the_creator_and_makes_the_plugin(plugin_library: PluginLibrary, major: int) -> None:
    node = attributes(ShiftSpec(5, 2, "reflect"), channels=96)
    values = {key: value for key, value in node.items() if not key.startswith("plugin_")}
    arguments = [str(plugin_library.path), NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE, json.dumps(values)]
    command = [sys.executable, "-c", REGISTRY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=with_registry(major))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "version": major,
        "loaded": True,
        "creator": [NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE],
        "fields": list(values),
        "elsewhere": True,
        "made": True,
        "made without its first field": False,
    }


# Opened like any library, with and without being asked to register itself.
OPENED = """
import ctypes, sys
import tensorrt_dispatch_bindings as trt

logger = trt.Logger(trt.Logger.ERROR)
registry = trt.get_plugin_registry()
library = ctypes.CDLL(sys.argv[1])
print(registry.get_creator(*sys.argv[2:5]) is not None)
"""


@pytest.mark.parametrize("asked", [True, False])
def test_registers_itself_where_it_is_asked_to(plugin_library: PluginLibrary, tools: Toolchain, asked: bool) -> None:
    """In the version whose headers it was compiled with."""
    environment = with_registry(major_of(tools)) | {REGISTER_VARIABLE: "1" if asked else ""}
    command = [sys.executable, "-c", OPENED, str(plugin_library.path), NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{asked}\n"), done.stderr


def test_says_that_there_is_no_tensorrt(plugin_library: PluginLibrary) -> None:
    code = f"import ctypes; ctypes.CDLL({str(plugin_library.path)!r})"
    environment = {**os.environ, REGISTER_VARIABLE: "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stderr.startswith("mlpdeploy MLPDEPLOY_REGISTER_PLUGIN: this process has not loaded TensorRT ")


def test_it_is_never_unmapped(plugin_library: PluginLibrary) -> None:
    """TensorRT closes libraries, and the CUDA runtime in this one has handlers that run when the process ends."""
    path = str(plugin_library.path)
    code = f"import _ctypes, ctypes, os; _ctypes.dlclose(ctypes.CDLL({path!r})._handle)\n"
    code += f"ctypes.CDLL({path!r}, os.RTLD_NOLOAD)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tensorrt_in_name(major: int, folder: Path) -> Path:
    """Return an empty library that a process has loaded as this TensorRT."""
    library = folder / f"tensorrt_{major}.so"
    command = ["c++", "-shared", "-x", "c++", "/dev/null", f"-Wl,-soname,libnvinfer.so.{major}", "-o", library]
    subprocess.run([str(part) for part in command], check=True)
    return library


def run_harness(source: str, library: Path, tools: Toolchain, folder: Path, loaded: int) -> tuple[str, str]:
    """Compile a harness against headers alone, let it drive a library under a TensorRT; return stdout and stderr."""
    warnings = "-Wall,-Wextra,-Werror,-Wno-deprecated-declarations"
    command = [tools.nvcc, "-std=c++17", "-Xcompiler", warnings, "-isystem", tools.tensorrt_include]
    command += [NATIVE / source, "-ldl", "-o", folder / "harness"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "LD_PRELOAD": str(tensorrt_in_name(loaded, folder))}
    done = subprocess.run([folder / "harness", library], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_every_method_of_the_plugin_for_tensorrt_10_and_newer(
    plugin_library: PluginLibrary, tools: Toolchain, tmp_path: Path
) -> None:
    if major_of(tools) < 10:
        pytest.skip(f"headers of TensorRT {tools.tensorrt_version} have no IPluginV3")
    assert run_harness("harness_v3.cpp", plugin_library.path, tools, tmp_path, major_of(tools)) == ("OK\n", "")


@pytest.mark.parametrize("newer", [0, 1])
def test_a_logger_of_another_major_version_is_not_touched(
    plugin_library: PluginLibrary, tools: Toolchain, tmp_path: Path, newer: int
) -> None:
    """Its functions have other places: the message goes to stderr."""
    if major_of(tools) < 10:
        pytest.skip(f"headers of TensorRT {tools.tensorrt_version} have no IPluginV3")
    told = run_harness("harness_finder.cpp", plugin_library.path, tools, tmp_path, major_of(tools) + newer)
    assert told[0] == ("not asked\n" if newer else "asked\n")
    assert told[1].startswith("mlpdeploy AxialShift::createPlugin: ")


def test_every_method_of_the_plugin_for_tensorrt_8(tools: Toolchain, tmp_path: Path) -> None:
    """The old face, compiled with the headers at hand: TensorRT 10's still declare its interface."""
    library = tmp_path / "libplugin_v2.so"
    op = [path for path in (CSRC / "axial_shift").glob("*.c*") if path.name != "embedded.cu"]  # which is no part of it
    sources = [CSRC / "exports.cpp", CSRC / "guard.cpp", *op]
    command = [tools.nvcc, "-std=c++17", "-arch=sm_90", "-shared", "-cudart", "static", "-DMLPDEPLOY_PLUGIN_V2=1"]
    command += ["-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"]
    command += ["-isystem", tools.tensorrt_include, f"-I{CSRC}", f"-I{CSRC / 'axial_shift'}", *sources, "-o", library]
    command += ["-Xlinker", f"--version-script={CSRC / 'exports.map'}"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_symbols(library).defined == ("getPluginCreators", "mlpdeploy_axial_shift", "setLoggerFinder")
    assert run_harness("harness_v2.cpp", library, tools, tmp_path, major_of(tools))[0] == "OK\n"


def test_compiles_for_every_architecture(tools: Toolchain, plugin_library: PluginLibrary) -> None:
    library = plugin_library
    assert library.record is not None
    wanted = known_architectures(tools.nvcc).intersection(ARCHITECTURES)
    assert set(library.record.architectures) == wanted
    # The fat binary names each cubin's and each PTX's architecture in readable compiler options.
    data = library.path.read_bytes()
    assert all(f"sm_{name}".encode() in data for name in wanted)
