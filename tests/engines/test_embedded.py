"""`--plugin embedded`: what TensorRT is told of the kernel that the engine carries, in the real bindings of 10 and 11.

The bindings' own plugin class calls our functions in the order in which TensorRT calls it. The arguments that it then
hands to the kernel are compared with the plan that csrc works out for the same shift, on the host.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bindings import run_with_bindings

from mlpdeploy.engines.embedded import CHUNK_BYTES, EMBEDDED_THREADS, PADDINGS, TYPES, Form, plan
from mlpdeploy.errors import MissingDependencyError, PluginError, UsageError
from mlpdeploy.ops import axial_shift
from mlpdeploy.ops.axial_shift import ShiftSpec
from mlpdeploy.plugins import ptx as ptx_module
from mlpdeploy.plugins.find import CACHE_VARIABLE
from mlpdeploy.plugins.ptx import ELEMENT_BYTES, Ptx, build_ptx, kernel_name, ptx_file
from mlpdeploy.plugins.toolchain import CSRC, find_nvcc
from mlpdeploy.runtime.tensorrt_api import TensorRt

PROBE = Path(__file__).parent / "probe_embedded.py"
NATIVE = Path(__file__).parents[1] / "plugins" / "native"
BLOCKS = {"LINEAR": lambda c: 1, "HWC": lambda c: c, "HWC8": lambda c: -(-c // 8) * 8, "CHW32": lambda c: 32}
BLOCKS["HWC16"] = lambda c: -(-c // 16) * 16


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Ptx:
    """The kernel as PTX; tests that need it are skipped where there is no nvcc."""
    if find_nvcc() is None:
        pytest.skip("no nvcc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("ptx")))
        patch.setenv("NVCC_APPEND_FLAGS", "-Werror all-warnings")  # users' builds do not stop for a warning
        return build_ptx()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bindings")


def case(dtype: str, form: str, shape: tuple[int, ...], most: int = 0, **attributes: Any) -> dict[str, Any]:
    """Return one shift; with `most` its batch is open up to that."""
    values = {"shift_size": 5, "dilation": 1, "padding": "zero", "channels": shape[1], **attributes}
    rest = shape[1:]
    return {
        "dtype": dtype, "format": form, "shape": (-1, *rest) if most else shape, "attributes": values,
        "min": (1, *rest) if most else shape, "opt": shape, "max": (most, *rest) if most else shape,
    }  # fmt: skip


def some_cases(count: int = 120) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(0), []
    while len(found) < count:
        dtype = str(rng.choice(list(TYPES)))
        form = str(rng.choice([form.format for form in TYPES[dtype][2]]))
        shape = tuple(int(size) for size in (rng.integers(1, 9), rng.integers(1, 200), *rng.integers(9, 60, 2)))
        found.append(
            case(
                dtype, form, shape, int(rng.choice([0, 64])), shift_size=int(rng.choice([1, 3, 5])),
                dilation=int(rng.choice([1, 2])), padding=str(rng.choice(PADDINGS)),
                channels=int(rng.choice([0, shape[1]])),
            )
        )  # fmt: skip
    return found


def host_plans(cases: list[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Return what csrc's own plan_of says."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = folder / "host_plan"
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", f"-I{CSRC / 'axial_shift'}"]
    subprocess.run([*command, str(NATIVE / "host_plan.cpp"), "-o", str(program)], check=True)
    lines = []
    for one in cases:
        values = one["attributes"]
        block = BLOCKS[one["format"]](one["opt"][1])
        numbers = (*one["opt"], block, values["shift_size"], values["dilation"], PADDINGS.index(values["padding"]))
        lines.append(" ".join(map(str, numbers)))
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def ask(
    major: int, scratch: Path, ptx: Ptx, cases: list[dict[str, Any]], eager: bool = False, old_numpy: bool = True
) -> dict[str, Any]:
    request = {"ptx": str(ptx.folder), "eager": eager, "cases": cases, "old_numpy": old_numpy and major == 10}
    return run_with_bindings(PROBE, major, scratch, request, real_registry=eager)


def test_the_paddings_are_counted_alike() -> None:
    assert PADDINGS == axial_shift.PADDINGS


@pytest.mark.parametrize(("major", "eager"), [(10, False), (11, False), (11, True)])
def test_the_real_plugin_class_hands_the_kernel_its_plan(major: int, eager: bool, scratch: Path, ptx: Ptx) -> None:
    """With `eager` through the registry of a real TensorRT 11.4, which finds the creator by name and namespace."""
    cases = some_cases()
    found = ask(major, scratch, ptx, cases, eager)
    integer = ["INT64"] * 2
    assert found["fields"] == [list(pair) for pair in zip(
        ("shift_size", "dilation", "padding", "channels"), (*integer, "CHAR", "INT64"), strict=True
    )]  # fmt: skip
    for one, got, planned in zip(cases, found["cases"], host_plans(cases, scratch), strict=True):
        assert got["arguments"] == planned, one
        _, element_bytes, forms = TYPES[one["dtype"]]
        assert got["kernel"] == kernel_name(element_bytes)
        assert got["ptx_bytes"] == (ptx.folder / ptx_file(element_bytes)).stat().st_size
        assert got["types"] == [one["dtype"]] * 2
        assert got["forms"] == [[one["dtype"], form.format] for form in forms for _ in range(3)]
        threads = got["launch"].pop("grid_x") * EMBEDDED_THREADS
        assert 0 <= threads * 16 // element_bytes - planned[0] < EMBEDDED_THREADS * 16 // element_bytes
        rest = {"grid_y": 1, "grid_z": 1, "block_x": EMBEDDED_THREADS, "block_y": 1, "block_z": 1, "shared_mem": 0}
        assert got["launch"] == rest


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("element_bytes", ELEMENT_BYTES)
@pytest.mark.parametrize("offset", [0, 1])  # at 1 nothing is aligned to 16 bytes
def test_the_kernel_with_these_arguments_is_the_reference(element_bytes: int, offset: int, tmp_path: Path) -> None:
    """embedded.cu compiled for the host, on planar tensors, launched with the arguments that TensorRT would give."""
    library = tmp_path / "libembedded.so"
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", f"-I{CSRC / 'axial_shift'}", "-Wno-unknown-pragmas"]
    command += ["-x", "c++", f"-DMLPDEPLOY_ELEMENT_BYTES={element_bytes}", str(NATIVE / "host_embedded.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    launch, rng = ctypes.CDLL(str(library)).launch, np.random.default_rng(element_bytes)
    dtype = np.dtype(f"i{element_bytes}")
    for spec in (ShiftSpec(5), ShiftSpec(3, 2, "circular"), ShiftSpec(5, 1, "reflect"), ShiftSpec(1, 1, "replicate")):
        for shape in ((2, 20, 9, 7), (1, 96, 14, 14), (3, 5, 9, 33)):
            sizes = [Whole(size) for size in shape]
            values = plan(sizes, Form("LINEAR", block=1), spec.shift_size, spec.dilation, spec.padding, Whole.ceil)
            x = np.zeros(np.prod(shape) + offset, dtype)[offset:]
            x[:] = rng.integers(-100, 100, x.size)
            outputs = [np.zeros(x.size + offset, dtype)[offset:] for _ in range(2)]
            blocks = -(-x.size // (EMBEDDED_THREADS * CHUNK_BYTES // element_bytes))
            arguments = (ctypes.c_int32 * len(values))(*values)
            launch(blocks, EMBEDDED_THREADS, arguments, *(ctypes.c_void_p(a.ctypes.data) for a in (x, *outputs)))
            planar = torch.from_numpy(x.reshape(shape).astype(np.float64))
            for got, wanted in zip(outputs, axial_shift.axial_shift_ref(planar, spec), strict=True):
                np.testing.assert_array_equal(got.reshape(shape), wanted.numpy())


class Whole(int):
    """A number that is combined as a symbol is."""

    def __mul__(self, other: int) -> Whole:
        return Whole(int(self) * int(other))

    @staticmethod
    def ceil(first: int, second: int) -> Whole:
        return Whole(-(-int(first) // int(second)))


def test_what_the_kernel_cannot_do_is_refused(scratch: Path, ptx: Ptx) -> None:
    wrong = {
        "2147483648 elements": case("HALF", "LINEAR", (1, 512, 64, 64), most=1024),
        "4294967296 elements": case("INT8", "CHW32", (1, 1, 1024, 1024), most=128),  # with what fills the blocks
        "3221225472 elements": case("HALF", "HWC8", (1, 17, 1024, 1024), most=128),
        "reflect padding by 4 pixels on 4x9": case("FLOAT", "LINEAR", (1, 8, 4, 9), dilation=2, padding="reflect"),
        "circular padding by 4 pixels on 3x9": case("FLOAT", "LINEAR", (1, 8, 3, 9), dilation=2, padding="circular"),
        "a node for 9 channels on 8": case("FLOAT", "LINEAR", (1, 8, 4, 9), channels=9),
        "shift_size 4": case("FLOAT", "LINEAR", (1, 8, 4, 9), shift_size=4),
        "padding 'mirror'": case("FLOAT", "LINEAR", (1, 8, 4, 9), padding="mirror"),
        "got INT32": case("INT32", "LINEAR", (1, 8, 4, 9)),
    }
    for (text, _), got in zip(wrong.items(), ask(11, scratch, ptx, list(wrong.values()))["cases"], strict=True):
        assert text in got["error"] and got["told"]


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="this numpy lets TensorRT 10 read arrays")
def test_tensorrt_10_cannot_read_the_arrays_of_a_new_numpy(scratch: Path, ptx: Ptx) -> None:
    """So it is refused before it is tried: where this fails, the refusal has become wrong."""
    (got,) = ask(10, scratch, ptx, [case("FLOAT", "LINEAR", (1, 8, 9, 9))], old_numpy=False)["cases"]
    assert "0-dimensional arrays" in got["error"]
    module = SimpleNamespace(QuickPluginCreationRequest=1)
    with pytest.raises(UsageError, match=r"numpy 2\..*cannot read; wanted numpy before 2\.4, or TensorRT 11"):
        TensorRt(module, "tensorrt", "10.16.1.11").check_embedded()
    TensorRt(module, "tensorrt", "11.4.0.106").check_embedded()


def test_the_code_is_one_kernel_for_each_size(ptx: Ptx) -> None:
    for element_bytes in ELEMENT_BYTES:
        text = (ptx.folder / ptx_file(element_bytes)).read_text()
        assert re.findall(r"\.visible \.entry (\w+)", text) == [kernel_name(element_bytes)]
        assert ".target sm_75" in text
        declared = re.findall(r"\.param \.(\w+) \w+_param_\d+", text)
        assert declared == ["u64", *["u32"] * 13, "u64", "u64"]
        assert not re.search(r"\.extern|\bcall\b", text)  # nothing that a module alone does not have


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ptx: Ptx) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(ptx.folder.parents[1]))
    monkeypatch.setattr(ptx_module, "_compile", lambda *arguments: pytest.fail("compiled again"))
    assert build_ptx() == ptx


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(ptx_module, "find_nvcc", lambda: None)
    with pytest.raises(MissingDependencyError, match=r"no nvcc found .*whose nvcc makes the code"):
        build_ptx()


def test_what_the_compiler_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in --version) echo V13.0.1;; --list*) echo compute_80;; *) echo broken >&2; exit 1;; esac"
    )
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(PluginError, match=r"could not be compiled to PTX \(broken\)"):
        build_ptx()
    assert not list((tmp_path / "cache" / "plugins").iterdir())
