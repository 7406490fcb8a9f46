"""Builds for TensorRT 8.6, 10 and 11 against the recording fake, through the worker's own process."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from fakes.fake_quick_plugin import fake_ptx
from fakes.trt.engine import SCRATCH_BYTES
from tiny import tiny_vip

import mlpdeploy
from mlpdeploy.engines import plugin_code, single
from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.layers import read_engine
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.process import Phases
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.engines.tensorrt_builder import EngineFlags
from mlpdeploy.errors import ArtifactError, MissingDependencyError, UsageError
from mlpdeploy.export.add import lower_artifact
from mlpdeploy.export.export import export_model
from mlpdeploy.plugins.find import FORMAT_VERSION, RECORD_NAME, BuildRecord
from mlpdeploy.plugins.ptx import Ptx
from mlpdeploy.quant.quantize import quantize_artifact
from mlpdeploy.quant.recipe import Recipe
from mlpdeploy.runtime import gpu as gpu_module
from mlpdeploy.runtime import tensorrt_api
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.tensorrt_api import EngineError

TESTS = Path(__file__).parent.parent
VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
FIND_LIBRARY = plugin_code.find_library
GPU = Gpu("NVIDIA L4", "8.9", "580.65.06")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_fake(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> str:
    use_fake(monkeypatch, VERSIONS[-1])
    return VERSIONS[-1]


def use_fake(monkeypatch: pytest.MonkeyPatch, version: str, gpu: Gpu = GPU, library: Path | None = None) -> None:
    """Let the fake of a version, a GPU and a plugin library be what this machine has."""
    paths = [TESTS / "fakes" / "site", TESTS, Path(mlpdeploy.__file__).parent.parent]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("FAKE_TENSORRT", version)
    from fakes.fake_tensorrt import make_tensorrt

    monkeypatch.setattr(tensorrt_api, "require", lambda name: make_tensorrt(version))
    monkeypatch.setattr(tensorrt_api, "cuda_major", lambda target: None)
    monkeypatch.setattr(single, "visible_gpu", lambda: gpu)

    def find(version: str, say: object = None) -> Path:
        if library is None:
            raise MissingDependencyError("the plugin is not built", fix="run: mlpdeploy plugin build")
        return library

    def no_cuda(index: int) -> None:
        raise MissingDependencyError("no package for CUDA is installed")

    monkeypatch.setattr(plugin_code, "find_library", find)
    monkeypatch.setattr("mlpdeploy.plugins.find.find_plugin_library", find)
    monkeypatch.setattr("mlpdeploy.runtime.tensorrt.open_cuda", no_cuda)  # so `auto` cannot measure; see test_choose.py


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libmlpdeploy_plugins.so"
    path.write_bytes(b"a plugin library")
    return path


def plan_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def test_native_layers(version: str, artifact: Path) -> None:
    seen: list[float] = []
    built = build_artifact(
        artifact, BuildOptions(batches=((1, 2, 4), (5, 8, 16))), progress=lambda done, text: seen.append(done)
    )
    mark, plan = built.sidecar.fingerprint, plan_of(built.path)
    assert (mark.version, mark.gpu, mark.compute_capabilities, mark.shift) == (version, "NVIDIA L4", ("8.9",), "conv")
    assert built.sidecar.driver == "580.65.06" and built.path.suffix == ".plan"
    assert [profile["input"][2] for profile in plan["profiles"]] == [[4, 3, 32, 32], [16, 3, 32, 32]]
    assert plan["detailed"] and "TF32" not in plan["flags"]
    inside = built.sidecar.engine_layers
    assert inside is not None and inside["plugins"] == 0 and set(inside["types"]) == {"FLOAT"}
    assert built.sidecar.scratch_bytes == SCRATCH_BYTES
    assert (max(seen) >= 0.5) == (not version.startswith("8"))  # 8.6 has no progress monitor
    assert build_artifact(artifact, BuildOptions(batches=((1, 2, 4), (5, 8, 16)))).reused


def test_the_file_is_in_an_opset_that_the_version_reads(
    version: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    run = single.run_build

    def run_build(request: Any, *arguments: Any) -> Any:
        given.append(onnx.load(request.network, load_external_data=False).opset_import[0].version)
        return run(request, *arguments)

    monkeypatch.setattr(single, "run_build", run_build)
    build_artifact(artifact, BuildOptions())
    assert given == [17 if version.startswith("8") else 21]


def test_what_8_6_cannot_read_is_refused_before_the_build(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, "8.6.1")
    monkeypatch.setattr(
        "mlpdeploy.export.passes.lower_opset._without_a_form", lambda model, opset: {"head": "Foo of opset 19"}
    )
    with pytest.raises(UsageError, match=r"head is Foo of opset 19; .*opset 17 .*; use TensorRT 10 or newer"):
        build_artifact(artifact, BuildOptions())


def test_the_plugin(version: str, artifact: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = build_artifact(artifact, BuildOptions())
    assert native.sidecar.warnings == (
        "the shift is in native layers: the plugin is not built; run: mlpdeploy plugin build",
    )
    use_fake(monkeypatch, version, library=library)
    auto = build_artifact(artifact, BuildOptions())
    assert auto.sidecar.fingerprint.shift == "plugin" and auto.sidecar.fingerprint.plugin_sha256
    assert auto.sidecar.engine_layers is not None and auto.sidecar.engine_layers["plugins"] == 2
    assert build_artifact(artifact, BuildOptions(shift="native")).sidecar == native.sidecar
    library.write_bytes(b"another one")
    assert not build_artifact(artifact, BuildOptions(shift="plugin")).reused
    assert len(engines_of(artifact)) == 3


@pytest.fixture
def ptx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ptx:
    made = fake_ptx(tmp_path)
    monkeypatch.setattr("mlpdeploy.plugins.ptx.build_ptx", lambda: made)
    monkeypatch.setattr(tensorrt_api, "_STRICT_NUMPY", (99, 0))  # test_embedded.py has that refusal
    return made


def test_an_embedded_plugin(version: str, artifact: Path, ptx: Ptx) -> None:
    asked = BuildOptions(plugin="embedded", batches=((1, 1, 1), (2, 4, 8)))
    if version.startswith("8"):
        with pytest.raises(UsageError, match=r"--plugin embedded with TensorRT 8\.6\.1; wanted a later TensorRT 10"):
            build_artifact(artifact, asked)
        return
    built = build_artifact(artifact, asked)
    mark = built.sidecar.fingerprint
    assert (mark.shift, mark.plugin_sha256, mark.embedded_sha256) == ("plugin", "", ptx.sha256)
    code = plan_of(built.path)["embedded"]
    assert {entry["kernel"] for entry in code} == {"mlpdeploy_axial_shift_4"}
    assert len(code) == 2 * 2 * 2  # shifts, profiles, formats
    assert [entry["arguments"][0] for entry in code[:4]] == [21 * 8 * 8, 21 * 8 * 8, 4 * 21 * 8 * 8, 4 * 21 * 8 * 8]
    assert build_artifact(artifact, asked).reused
    changed = dataclasses.replace(asked, shift="native", plugin=None)
    assert not build_artifact(artifact, changed).reused


def test_an_embedded_plugin_that_refuses(newest: str, artifact: Path, ptx: Ptx) -> None:
    with pytest.raises(EngineError, match="the embedded axial shift got a tensor of 1409286144 elements; wanted"):
        build_artifact(artifact, BuildOptions(plugin="embedded", batches=((1, 1, 1 << 20),)))
    assert engines_of(artifact) == []


def test_an_embedded_plugin_that_cannot_be(newest: str, artifact: Path, ptx: Ptx, monkeypatch: Any) -> None:
    for options, text in (
        (BuildOptions(plugin="embedded", shift="native"), "--plugin embedded with --shift native; wanted one of"),
        (BuildOptions(plugin="embeded"), "unknown form of the plugin 'embeded'; did you mean embedded"),  # type: ignore[arg-type]
        (BuildOptions("tensorrt-rtx", plugin="embedded", compute_capabilities=("8.9",)), "which has no plugins"),
    ):
        with pytest.raises(UsageError, match=text):
            build_artifact(artifact, options)
    use_fake(monkeypatch, newest, gpu=dataclasses.replace(GPU, cuda="12.4"))
    with pytest.raises(EngineError, match=r"serves CUDA 12\.4, and this nvcc makes code for CUDA 13\.0"):
        build_artifact(artifact, BuildOptions(plugin="embedded"))
    with pytest.raises(MissingDependencyError, match="is not built"):
        build_artifact(artifact, BuildOptions(plugin="library"))  # asked for by name, so never native in silence


def test_the_plugin_is_compiled_on_demand(
    newest: str, artifact: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_code, "find_library", FIND_LIBRARY)
    asked: list[str] = []

    def ensure(face: str, say: Any) -> Path:
        asked.append(face)
        say("compiling the CUDA plugin")
        return library

    monkeypatch.setattr("mlpdeploy.plugins.build.ensure_plugin_library", ensure)
    seen: list[str] = []
    build_artifact(artifact, BuildOptions(shift="plugin"), progress=lambda done, text: seen.append(text))
    assert asked == ["IPluginV3"] and seen[0] == "compiling the CUDA plugin"


def test_a_plugin_that_is_not_there(
    version: str, artifact: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingDependencyError, match="is not built; run: mlpdeploy plugin build"):
        build_artifact(artifact, BuildOptions(shift="plugin"))
    use_fake(monkeypatch, version, library=library)
    monkeypatch.setenv("FAKE_PLUGINS", "broken")
    broken = r"cannot load the plugin library .*mlpdeploy plugin build"
    with pytest.raises(EngineError, match=broken):
        build_artifact(artifact, BuildOptions(shift="plugin"))
    assert engines_of(artifact) == []
    built = build_artifact(artifact, BuildOptions()).sidecar  # nobody asked for the plugin
    assert built.fingerprint.shift == "conv" and engines_of(artifact) == [built]
    assert built.warnings[0].startswith("the shift is in native layers: ") and re.search(broken, built.warnings[0])
    for asked in (BuildOptions(plugin="library"), BuildOptions(shift="plugin")):
        with pytest.raises(EngineError, match=broken):
            build_artifact(artifact, asked)


def test_a_plugin_for_a_later_cuda_than_the_drivers(
    newest: str, artifact: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels would not start: every launch would fail, and with it TensorRT's build."""
    record = BuildRecord(FORMAT_VERSION, "1", "0", "0", 1, "IPluginV3", "11.4", "13.0.88", "g++", ("89",), (), 1.0)
    (library.parent / RECORD_NAME).write_text(record.to_json())
    use_fake(monkeypatch, newest, library=library, gpu=dataclasses.replace(GPU, cuda="12.4"))
    built = build_artifact(artifact, BuildOptions()).sidecar
    assert built.fingerprint.shift == "conv"
    assert "serves CUDA 12.4, and" in built.warnings[0] and "was compiled by nvcc 13.0.88" in built.warnings[0]
    with pytest.raises(EngineError, match="name another nvcc in CUDACXX"):
        build_artifact(artifact, BuildOptions(shift="plugin"))
    use_fake(monkeypatch, newest, library=library, gpu=dataclasses.replace(GPU, cuda="13.0"))
    assert build_artifact(artifact, BuildOptions()).sidecar.fingerprint.shift == "plugin"


def test_a_quantized_artifact_has_the_shift_that_its_file_has(
    newest: str, artifact: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(name: str) -> Path:
        quantize_artifact(artifact, tmp_path / name, Recipe("fp16"), targets=("tensorrt",), verify=False)
        return tmp_path / name

    with pytest.raises(
        UsageError, match=r"shift as conv; run: .* --shift conv --force, or build the plugin: mlpdeploy"
    ):
        build_artifact(half("plugin"), BuildOptions())  # there is no plugin here
    lower_artifact(artifact, "tensorrt", shift="conv", verify=False)
    native = half("native")
    assert build_artifact(native, BuildOptions()).sidecar.fingerprint.shift == "conv"
    use_fake(monkeypatch, newest, library=library)
    built = build_artifact(native, BuildOptions(), force=True).sidecar
    assert built.fingerprint.shift == "conv" and built.warnings[0].startswith("the shift is in native layers: so it is")
    with pytest.raises(UsageError, match=r"with the shift as plugin; run: .*--shift plugin --force"):
        build_artifact(native, BuildOptions(shift="plugin"))


def test_types_that_tensorrt_does_not_tell_are_a_warning(newest: str, artifact: Path, monkeypatch: Any) -> None:
    built = build_artifact(artifact, BuildOptions(shift="native")).sidecar
    assert built.engine_layers is not None and set(built.engine_layers["types"]) == {"FLOAT"}  # of an open batch
    assert built.warnings == ()
    monkeypatch.setenv("FAKE_INSPECTOR", "silent")
    built = build_artifact(artifact, BuildOptions(shift="native"), force=True).sidecar
    assert built.engine_layers is not None and set(built.engine_layers["types"]) == {"unknown"}
    assert built.warnings == ("TensorRT does not tell the types in the engine, so that they were not compared",)


def test_an_engine_is_exactly_what_tensorrt_gave(newest: str, artifact: Path) -> None:
    """No header of ours, no trailer: what the builder serialized, and the description in a file beside it."""
    built = build_artifact(artifact, BuildOptions())
    text = built.path.read_bytes()
    assert json.dumps(json.loads(text)).encode() == text and text.startswith(b'{"embedded"')
    assert built.path.with_suffix(".json").is_file()


def test_a_vision_permutator_needs_no_plugin(newest: str, tmp_path: Path, library: Path, monkeypatch: Any) -> None:
    export_model(tiny_vip(), tmp_path / "vip", verify=False)
    use_fake(monkeypatch, newest, library=library)
    assert build_artifact(tmp_path / "vip", BuildOptions()).sidecar.fingerprint.shift == ""
    with pytest.raises(UsageError, match="an AS-MLP"):
        build_artifact(tmp_path / "vip", BuildOptions(shift="plugin"))


def test_every_flag_arrives(version: str, artifact: Path) -> None:
    flags = EngineFlags(
        tf32=True, workspace_bytes=1 << 28, optimization_level=5, hardware_compatible=True, version_compatible=True,
        refit=True, strip=not version.startswith("8"),
    )  # fmt: skip
    built = build_artifact(artifact, BuildOptions(flags=flags))
    wanted = {"TF32", "REFIT", "VERSION_COMPATIBLE"} | (set() if version.startswith("8") else {"STRIP_PLAN"})
    plan = plan_of(built.path)
    precision = {"OBEY_PRECISION_CONSTRAINTS"} if version.startswith("8") else set()
    assert set(plan["flags"]) == wanted | precision
    assert plan["options"] == {"level": 5, "workspace": 1 << 28, "compatibility": "AMPERE_PLUS"}
    assert built.sidecar.fingerprint.flags == dataclasses.asdict(flags)


@pytest.mark.parametrize(("version", "warned"), [("11.3.0.99", True), ("11.4.0.106", False)])
def test_refitting_with_a_version_that_may_drop_a_bias(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, version: str, warned: bool
) -> None:
    use_fake(monkeypatch, version)
    built = build_artifact(artifact, BuildOptions(shift="native", flags=EngineFlags(refit=True)))
    assert [warning.startswith("TensorRT 11.3.0.99 may drop the bias") for warning in built.sidecar.warnings] == (
        [True] * warned
    )


def test_stripping_needs_tensorrt_10(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, "8.6.1")
    with pytest.raises(UsageError, match=r"--strip with TensorRT 8\.6\.1"):
        build_artifact(artifact, BuildOptions(flags=EngineFlags(strip=True)))


def test_the_timing_cache_grows_and_is_keyed(newest: str, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_artifact(artifact, BuildOptions())
    build_artifact(artifact, BuildOptions(batches=((1, 1, 1),)))
    use_fake(monkeypatch, newest, gpu=Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06"))
    build_artifact(artifact, BuildOptions())
    caches = {path.name: path.read_bytes() for path in (artifact / "engines").glob("*.cache")}
    assert caches == {
        "timing-11.4.0.106-nvidia-l4-8.9.cache": b"2",
        "timing-11.4.0.106-nvidia-h100-80gb-hbm3-9.0.cache": b"1",
    }


def test_a_timing_cache_of_another_gpu(newest: str, artifact: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.cache"
    build_artifact(artifact, BuildOptions(timing_cache=own))
    assert own.read_bytes() == b"1"
    own.write_bytes(b"foreign")
    with pytest.raises(EngineError, match=r"refused the timing cache .*own\.cache.*name another file"):
        build_artifact(artifact, BuildOptions(timing_cache=own), force=True)
    assert own.read_bytes() == b"foreign" and len(engines_of(artifact)) == 1


@pytest.mark.parametrize("kept", [b"no cache", b"another GPU"])
def test_the_artifacts_own_timing_cache_that_is_refused(newest: str, artifact: Path, kept: bytes) -> None:
    build_artifact(artifact, BuildOptions(shift="native"))
    (cache,) = (artifact / "engines").glob("*.cache")
    cache.write_bytes(kept)
    built = build_artifact(artifact, BuildOptions(shift="native"), force=True)
    assert built.sidecar.warnings == (
        f"TensorRT 11.4.0.106 refused the timing cache {cache.name}: it begins with an empty one",
    )
    assert cache.read_bytes() == b"1"


def test_timings_that_tensorrt_does_not_give(newest: str, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TIMINGS", "none")
    built = build_artifact(artifact, BuildOptions(shift="native"))
    assert built.path.is_file() and not list((artifact / "engines").glob("*.cache"))


def test_without_a_gpu_nothing_is_started(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, VERSIONS[-1])
    monkeypatch.undo()
    monkeypatch.setattr(tensorrt_api, "require", lambda name: type("trt", (), {"__version__": "11.4.0"}))
    monkeypatch.setattr(gpu_module, "_LIBRARY", "libnot-there.so.1")
    with pytest.raises(MissingDependencyError, match=r"no NVIDIA driver on this machine.*--target tensorrt-rtx"):
        build_artifact(artifact, BuildOptions())
    assert not (artifact / "engines").exists()


def test_a_driver_that_is_too_old_builds_nothing(newest: str, artifact: Path, monkeypatch: Any) -> None:
    use_fake(monkeypatch, newest, gpu=dataclasses.replace(GPU, driver="550.54", cuda="12.4"))
    monkeypatch.setattr(tensorrt_api, "cuda_major", lambda target: 13)
    monkeypatch.setattr(single, "run_build", lambda *given: pytest.fail("a process was started"))
    with pytest.raises(EngineError, match=r"550\.54 serves CUDA 12\.4, .* is for CUDA 13; update .*tensorrt-cu12"):
        build_artifact(artifact, BuildOptions())


def test_a_builder_that_finds_no_cuda(newest: str, artifact: Path, monkeypatch: Any) -> None:
    """The bindings raise a bare TypeError, and TensorRT tells the reason as a warning."""
    monkeypatch.setenv("FAKE_BUILDER", "no CUDA")
    with pytest.raises(EngineError, match=r"begin to build: CUDA initialization .* error: 35; see: mlpdeploy doctor"):
        build_artifact(artifact, BuildOptions())


def test_an_error_that_nobody_foresaw(newest: str, artifact: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FAKE_BUILDER", "raises")
    wanted = r"ended with RuntimeError: std::exception \(.*\.py, line \d+\), and TensorRT said last: Could not find any"
    with pytest.raises(EngineError, match=wanted):
        build_artifact(artifact, BuildOptions())


def test_a_full_disk_leaves_nothing(newest: str, artifact: Path) -> None:
    (artifact / "engines").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        build_artifact(artifact, BuildOptions())


def test_half_that_became_fp32_names_the_layer() -> None:
    layers = [
        {
            "Name": "conv1 + gelu",
            "LayerType": "CaskConvolution",
            "TacticName": "sm80_xmma_fprop",
            "Outputs": [tensor("a", "Row major linear FP16 format")],
        },
        {"Name": "Reformatting CopyNode for a", "LayerType": "Reformat", "Outputs": [tensor("a'", "Two wide FP16")]},
        {"Name": "norm", "LayerType": "kgen", "Outputs": [tensor("b", "Row major linear FP32 format")]},
        {"Name": "shift_0", "LayerType": "PluginV3", "Outputs": [tensor("c", "Row major Int8 format")]},
    ]
    text = json.dumps({"Layers": layers})
    found = read_engine(text, {"a": "HALF", "b": "FLOAT"}, ["shift_0"])
    assert found.pop("each")[:2] == [
        {"name": "conv1 + gelu", "kind": "CaskConvolution", "types": ["HALF"], "tactic": "sm80_xmma_fprop"},
        {"name": "Reformatting CopyNode for a", "kind": "Reformat", "types": ["HALF"], "tactic": ""},
    ]
    assert found == {
        "layers": {"CaskConvolution": 1, "PluginV3": 1, "Reformat": 1, "kgen": 1},
        "types": {"HALF": 2, "FLOAT": 1, "INT8": 1},
        "plugins": 1,
        "reformats": 1,
    }
    with pytest.raises(EngineError, match=r"layer 'norm' gives 'b' as fp32; wanted HALF"):
        read_engine(text, {"b": "HALF"}, [])
    warnings: list[str] = []  # of a strongly typed network
    read_engine(text, {"b": "HALF"}, ["shift_0"], warnings)
    assert warnings == ["the engine's layer 'norm' gives 'b' as fp32, where the graph says HALF: verify and measure it"]
    with pytest.raises(EngineError, match=r"no plugin layer 'shift_1': 1 of 2"):
        read_engine(text, {}, ["shift_0", "shift_1"])


def test_a_plugin_that_only_the_metadata_names() -> None:
    fused = {"Name": "__myl_Fused", "LayerType": "kgen", "Metadata": "[ONNX Layer: /shift_0]\x1e[ONNX Layer: /norm]"}
    text = json.dumps({"Layers": [fused]}).replace("\\u001e", "\x1e")
    assert read_engine(text, {}, ["/shift_0"])["plugins"] == 0
    beside = {"Name": "Reformatting CopyNode for Input Tensor 0 to /shift_0", "LayerType": "Reformat"}
    with pytest.raises(EngineError, match=r"no plugin layer '/shift_0': 0 of 1"):
        read_engine(json.dumps({"Layers": [beside]}), {}, ["/shift_0"])


@pytest.mark.parametrize(
    ("inspector", "reason"),
    [
        ("none", "has no inspector for this engine"),
        ("other", "KeyError: 'Layers'"),
        ("no text", "UnicodeDecodeError: 'utf-8' codec"),
        ("no context", "cannot create an execution context"),
    ],
)
def test_an_engine_that_cannot_be_asked_is_kept(
    newest: str, artifact: Path, monkeypatch: Any, inspector: str, reason: str
) -> None:
    monkeypatch.setenv("FAKE_INSPECTOR", inspector)
    built = build_artifact(artifact, BuildOptions(shift="native"))
    assert engines_of(artifact) == [built.sidecar] and built.path.is_file()
    assert built.sidecar.engine_layers is None
    (warning,) = built.sidecar.warnings
    assert warning.startswith("the engine was not read back: ") and reason in warning


def test_an_engine_without_weights_is_not_asked(newest: str, artifact: Path) -> None:
    built = build_artifact(artifact, BuildOptions(shift="native", flags=EngineFlags(strip=True))).sidecar
    assert built.warnings == ("the engine was not read back: without its weights it does not run",)
    assert built.engine_layers is None


def test_an_engine_without_its_plugins_leaves_the_timings(
    newest: str, artifact: Path, library: Path, monkeypatch: Any
) -> None:
    use_fake(monkeypatch, newest, library=library)
    monkeypatch.setenv("FAKE_INSPECTOR", "lost")
    with pytest.raises(EngineError, match="the engine has no plugin layer"):
        build_artifact(artifact, BuildOptions(shift="plugin"))
    assert [path.suffix for path in (artifact / "engines").iterdir()] == [".cache"]


def tensor(name: str, form: str) -> dict[str, str]:
    return {"Name": name, "Format/Datatype": form}


def test_half_types_set_the_flag_of_8_6(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto, helper

    from mlpdeploy.engines.process import run_build
    from mlpdeploy.engines.worker import BuildRequest

    use_fake(monkeypatch, "8.6.1")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 3]) for name in ("input", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["y"], name="relu")], "g", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph), tmp_path / "half.onnx")
    request = BuildRequest("tensorrt", str(tmp_path / "half.onnx"), str(tmp_path / "plan"), "fp16")
    result = run_build(request, tmp_path)
    assert result.engine_layers is not None and result.engine_layers["types"] == {"HALF": 1}
    assert set(plan_of(tmp_path / "plan")["flags"]) == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}


def test_progress_never_falls_and_ends_within_one() -> None:
    phases, shares = Phases(), []
    phases.start("build", 2)
    for outer in range(2):
        phases.start("inner", 4)
        for step in range(4):
            phases.step("inner", step + 1)
            shares.append(phases.done())
        assert phases.text() == "inner 4/4"
        phases.finish("inner")
        phases.step("build", outer + 1)
        shares.append(phases.done())
    assert shares == sorted(shares) and shares[3] == 0.5 and shares[-1] == 1
