"""Triton repositories: read back through Triton's own protobuf definition, and refused where they cannot be."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb

from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.engines.sidecar import FOLDER, Fingerprint, Sidecar
from mlpdeploy.errors import ArtifactError, MlpDeployError, PluginError, UsageError
from mlpdeploy.images import preprocess, read_image
from mlpdeploy.manifest import Manifest, read_manifest, sha256_of
from mlpdeploy.plugins.find import LIBRARY_NAME, LIBRARY_VARIABLE
from mlpdeploy.triton.options import TritonOptions
from mlpdeploy.triton.repository import Written, write_repository

NAME = "m"


def config_of(repository: Path, name: str = NAME) -> Any:
    """Return a model's configuration; a field or value that Triton does not have would be an error."""
    config = text_format.Parse((repository / name / "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.name == name
    return config


def written(artifact: Path, repository: Path, force: bool = False, **options: Any) -> Written:
    return write_repository({NAME: artifact}, repository, TritonOptions(**options), force=force)


def test_onnxruntime(exported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(exported)
    result = written(exported, tmp_path, max_batch=16, instances=2, threads=3, preferred=(8, 4), timeout_ms=50)
    assert result.models == (NAME,)
    assert result.command == f"tritonserver --model-repository={tmp_path}"
    config = config_of(tmp_path)
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 16)
    assert config.default_model_filename == manifest.file_for("cpu") == "model.cpu.onnx"
    version = tmp_path / NAME / "1"
    assert sorted(path.name for path in version.iterdir()) == ["model.cpu.onnx", "model.cpu.weights"]
    for path in version.iterdir():
        assert sha256_of(path) == manifest.files[path.name].sha256
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("input", pb.TYPE_FP32, [3, 32, 32])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [("logits", pb.TYPE_FP32, [7])]
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [4, 8]
    assert batching.max_queue_delay_microseconds == 2000
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (128, 50_000)
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT
    assert [(g.kind, g.count) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 2)]
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert [(w.batch_size, list(w.inputs["input"].dims)) for w in config.model_warmup] == [
        (1, [3, 32, 32]),
        (16, [3, 32, 32]),
    ]
    assert config.version_policy.latest.num_versions == 1


def test_labels(exported: Path, tmp_path: Path) -> None:
    artifact = with_manifest(exported, tmp_path, labels=tuple("abcdefg"))
    written(artifact, tmp_path / "r")
    assert config_of(tmp_path / "r").output[0].label_filename == "labels.txt"
    assert (tmp_path / "r" / NAME / "labels.txt").read_text().split() == list("abcdefg")


def with_manifest(exported: Path, tmp_path: Path, **changes: Any) -> Path:
    artifact = Path(shutil.copytree(exported, tmp_path / "changed"))
    write_manifest(artifact, dataclasses.replace(read_manifest(artifact), **changes))
    return artifact


def with_shape(exported: Path, tmp_path: Path, shape: tuple[int | str, ...]) -> Path:
    manifest = read_manifest(exported)
    (image,), (logits,) = manifest.inputs, manifest.outputs
    output = dataclasses.replace(logits, shape=(shape[0], 7))
    return with_manifest(exported, tmp_path, inputs=(dataclasses.replace(image, shape=shape),), outputs=(output,))


def test_a_fixed_batch_is_part_of_the_shape(exported: Path, tmp_path: Path) -> None:
    artifact = with_shape(exported, tmp_path, (4, 3, 32, 32))
    written(artifact, tmp_path / "r")
    config = config_of(tmp_path / "r")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 3, 32, 32]
    assert list(config.output[0].dims) == [4, 7]
    assert not config.HasField("dynamic_batching")
    assert [(w.batch_size, list(w.inputs["input"].dims)) for w in config.model_warmup] == [(0, [4, 3, 32, 32])]
    asked = {"max_batch": 8, "preferred": (2,), "max_delay_ms": 2.0, "queue_limit": 0, "timeout_ms": 0.0}
    for option, value in asked.items():
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} for a model with a fixed batch of 4"):
            written(artifact, tmp_path / "r", **{option: value})
    with pytest.raises(UsageError, match="fixes its batch"):
        written(artifact, tmp_path / "s", ensemble=True)


def test_single_rows_wait_in_the_same_queue(exported: Path, tmp_path: Path) -> None:
    written(exported, tmp_path, max_batch=1, queue_limit=3, timeout_ms=5)
    batching = config_of(tmp_path).dynamic_batching
    policy = batching.default_queue_policy
    assert list(batching.preferred_batch_size) == []
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (3, 5000)
    with pytest.raises(UsageError, match="--preferred 4; wanted at most the largest batch, 1"):
        written(exported, tmp_path, True, max_batch=1, preferred=(4,))


def test_open_sizes(exported: Path, tmp_path: Path) -> None:
    artifact = with_shape(exported, tmp_path, ("batch", 3, "32*height", "32*width"))
    written(artifact, tmp_path / "r")
    config = config_of(tmp_path / "r")
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["input"].dims) == [3, 224, 224]


def test_cuda_takes_the_canonical_file(exported: Path, tmp_path: Path) -> None:
    written(exported, tmp_path, device="cuda")
    config = config_of(tmp_path)
    assert config.default_model_filename == "model.onnx"
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU


def test_half_precision_on_cuda(exported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(exported)
    name = manifest.file_for("cpu")

    def half(shift: str) -> Path:
        files = {**manifest.files, name: dataclasses.replace(manifest.files[name], shift=shift)}
        return with_manifest(exported, tmp_path / shift, precision="fp16", files=files)

    written(half("slice"), tmp_path / "r", device="cuda")
    assert config_of(tmp_path / "r").default_model_filename == name
    with pytest.raises(UsageError, match="an artifact in fp16 on cuda; wanted float32, or fp16 with a file in"):
        written(half("plugin"), tmp_path / "s", device="cuda")


# TensorRT, with engines that are only names and checksums: Triton is who reads them.


def add_engine(
    artifact: Path,
    *profiles: tuple[int, int, int],
    plugin_sha256: str = "",
    target: str = "tensorrt",
    gpu: str = "L4",
    pixels: tuple[int, int, int] = (32, 32, 32),
) -> str:
    shapes = tuple(
        {"input": [[n, 3, side, side] for n, side in zip(batches, pixels, strict=True)]} for batches in profiles
    )
    mark = Fingerprint(target, "10.16.1", gpu, ("8.9",), "fp32", "plugin", shapes, {}, plugin_sha256, "0", "1")
    folder = artifact / FOLDER
    folder.mkdir(exist_ok=True)
    engine = folder / f"{mark.name()}.plan"
    engine.write_bytes(f"engine for {gpu}".encode())
    sidecar = Sidecar(
        fingerprint=mark,
        file=engine.name,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        driver="",
        parse_seconds=0.0,
        build_seconds=0.0,
        network_layers={},
        network_types={},
    )
    (folder / f"{mark.name()}.json").write_text(sidecar.to_json())
    return mark.name()


def test_tensorrt(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib" / "plugins.so"
    library.parent.mkdir()
    library.write_bytes(b"a library")
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    add_engine(artifact, (1, 1, 1), (1, 8, 64), plugin_sha256=sha256_of(library))
    result = written(artifact, tmp_path / "r", backend="tensorrt", keep_versions=3, version=4)
    config = config_of(tmp_path / "r")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 64)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.version_policy.latest.num_versions == 3
    assert (tmp_path / "r" / NAME / "4" / "model.plan").read_bytes() == b"engine for L4"
    copy = tmp_path / "r" / NAME / LIBRARY_NAME
    assert copy.read_bytes() == b"a library"
    assert result.command.startswith("env MLPDEPLOY_REGISTER_PLUGIN=1 tritonserver ")
    assert result.command.endswith(f" --backend-config=tensorrt,plugins={copy}")
    library.write_bytes(b"another library")
    with pytest.raises(PluginError, match="another plugin library"):
        written(artifact, tmp_path / "r", force=True, backend="tensorrt")


def test_other_versions_stay_as_many_as_are_served(exported: Path, tmp_path: Path) -> None:
    for version in (1, 2, 10):
        written(exported, tmp_path, force=True, version=version, keep_versions=9)
    (tmp_path / NAME / "1" / "model.cpu.onnx").write_bytes(b"of version 1")

    def versions() -> list[str]:
        return sorted(path.name for path in (tmp_path / NAME).iterdir() if path.is_dir())

    assert versions() == ["1", "10", "2"]
    written(exported, tmp_path, force=True, version=1, keep_versions=2)
    assert versions() == ["1", "10"]
    assert (tmp_path / NAME / "1" / "model.cpu.onnx").read_bytes() != b"of version 1"
    written(exported, tmp_path, force=True, version=11)
    assert versions() == ["11"]


def test_an_engine_of_open_sizes_is_warmed_at_its_own(exported: Path, tmp_path: Path) -> None:
    artifact = with_shape(exported, tmp_path, ("batch", 3, "32*height", "32*width"))
    add_engine(artifact, (1, 8, 64), pixels=(384, 512, 1024))
    written(artifact, tmp_path / "r", backend="tensorrt")
    warmup = config_of(tmp_path / "r").model_warmup
    assert [(w.batch_size, list(w.inputs["input"].dims)) for w in warmup] == [(1, [3, 512, 512]), (64, [3, 512, 512])]


def test_which_engine(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no engine for TensorRT"):
        written(artifact, tmp_path / "r", backend="tensorrt")
    add_engine(artifact, (1, 8, 32), target="tensorrt-rtx")
    with pytest.raises(ArtifactError, match="no engine for TensorRT"):
        written(artifact, tmp_path / "r", backend="tensorrt")
    one, _other = add_engine(artifact, (1, 4, 16)), add_engine(artifact, (1, 4, 16), gpu="A10")
    with pytest.raises(UsageError, match=r"2 engines; wanted one of .*L4.*--engine"):
        written(artifact, tmp_path / "r", backend="tensorrt")
    written(artifact, tmp_path / "r", backend="tensorrt", engine=one[:6])
    assert (tmp_path / "r" / NAME / "1" / "model.plan").read_bytes() == b"engine for L4"
    with pytest.raises(UsageError, match="at most 16 rows"):
        written(artifact, tmp_path / "r", force=True, backend="tensorrt", engine=one, max_batch=17)
    (artifact / FOLDER / f"{one}.plan").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="was changed"):
        written(artifact, tmp_path / "r", force=True, backend="tensorrt", engine=one)


def test_an_engine_without_single_rows(artifact: Path, tmp_path: Path) -> None:
    add_engine(artifact, (2, 8, 32))
    with pytest.raises(UsageError, match="takes no single row"):
        written(artifact, tmp_path / "r", backend="tensorrt")


# The ensemble.


def test_ensemble(exported: Path, tmp_path: Path) -> None:
    result = written(exported, tmp_path, ensemble=True, max_batch=4)
    assert result.models == (NAME, f"{NAME}_preprocess", f"{NAME}_photos")
    prepares, pipeline = config_of(tmp_path, f"{NAME}_preprocess"), config_of(tmp_path, f"{NAME}_photos")
    assert {config.max_batch_size for config in (config_of(tmp_path), prepares, pipeline)} == {4}
    assert [(i.name, i.data_type, list(i.dims)) for i in pipeline.input] == [("image", pb.TYPE_STRING, [1])]
    assert pipeline.input == prepares.input
    # Each step's maps: the model's own tensor name -> the pipeline's.
    models = {config.name: config for config in (config_of(tmp_path), prepares)}
    known = {tensor.name for tensor in pipeline.input}
    for step in pipeline.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.input_map.values()) <= known
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        known |= set(step.output_map.values())
    assert {tensor.name for tensor in pipeline.output} <= known
    assert list(prepares.output[0].dims) == list(config_of(tmp_path).input[0].dims)
    assert (tmp_path / f"{NAME}_photos" / "1").is_dir()


class FakeTriton(types.ModuleType):
    """What the preprocessing model uses of Triton's Python backend."""

    class TritonError(Exception):
        INVALID_ARG = 3

        def __init__(self, text: str, code: int) -> None:
            super().__init__(text, code)

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class InferenceResponse:
        def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
            self.outputs, self.error = list(output_tensors), error

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Any:
        return request[name]


def test_preprocessing_model(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copied model.py prepares pictures as predict does, and a bad one fails alone."""
    triton = FakeTriton("triton_python_backend_utils")
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    written(exported, tmp_path / "r", ensemble=True)
    folder = tmp_path / "r" / f"{NAME}_preprocess"
    names: dict[str, Any] = {"__name__": "model"}
    exec((folder / "1" / "model.py").read_text(), names)
    model = names["TritonPythonModel"]()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)).save(path)

    def request(*pictures: bytes) -> dict[str, Any]:
        return {"image": triton.Tensor("image", np.array([[p] for p in pictures], object))}

    good, bad, single = model.execute(
        [request(*(p.read_bytes() for p in paths[:2])), request(b"GIF89a"), request(paths[2].read_bytes())]
    )
    manifest: Manifest = read_manifest(exported)
    assert manifest.preprocessing is not None
    expected = [preprocess(read_image(path), manifest.preprocessing) for path in paths]
    assert good.outputs[0].name == "input"
    np.testing.assert_array_equal(good.outputs[0].array, np.stack(expected[:2]))
    np.testing.assert_array_equal(single.outputs[0].array, expected[2][None])
    assert "truncated or damaged" in str(bad.error) or "not an image" in str(bad.error)
    assert (good.error, bad.outputs) == (None, [])


def test_no_ensemble_of_feature_maps(exported: Path, tmp_path: Path) -> None:
    artifact = with_manifest(exported, tmp_path, preprocessing=None)
    with pytest.raises(UsageError, match="does not say how a photograph"):
        written(artifact, tmp_path / "r", ensemble=True)
    assert not (tmp_path / "r").exists()


# What is there stays there.


def test_nothing_is_replaced_unasked(exported: Path, tmp_path: Path) -> None:
    written(exported, tmp_path / "r")
    before = (tmp_path / "r" / NAME / "config.pbtxt").read_text()
    with pytest.raises(UsageError, match="is there already; pass --force"):
        written(exported, tmp_path / "r", max_batch=2)
    assert (tmp_path / "r" / NAME / "config.pbtxt").read_text() == before
    written(exported, tmp_path / "r", force=True, max_batch=2)
    assert config_of(tmp_path / "r").max_batch_size == 2
    write_repository({"other": exported}, tmp_path / "r", TritonOptions())
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [NAME, "other"]
    strange = tmp_path / "r" / "strange"
    strange.mkdir()
    (strange / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="not replaced even with --force"):
        write_repository({"strange": exported}, tmp_path / "r", TritonOptions(), force=True)


def test_a_failure_leaves_nothing(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(exported, tmp_path / "r", max_batch=2, ensemble=True)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlpdeploy.triton.repository.shutil.copyfile", full)
    with pytest.raises(ArtifactError, match="no space left"):
        written(exported, tmp_path / "r", max_batch=4, ensemble=True, force=True)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [NAME, f"{NAME}_photos", f"{NAME}_preprocess"]
    assert config_of(tmp_path / "r").max_batch_size == 2


def test_a_damaged_artifact(artifact: Path, tmp_path: Path, flip_byte: Any) -> None:
    flip_byte(artifact / "model.cpu.weights")
    with pytest.raises(ArtifactError, match="SHA-256"):
        written(artifact, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"backend": "tensort"}, "did you mean tensorrt"),
        ({"device": "gpu"}, "cpu or cuda"),
        ({"instances": 0}, "--instances 0"),
        ({"preferred": (4, 0)}, "--preferred 0"),
        ({"preferred": (16,)}, "at most the largest batch, 8"),
        ({"max_delay_ms": -1.0}, "--max-delay-ms"),
        ({"backend": "tensorrt", "threads": 2}, "--threads for the tensorrt backend"),
        ({"engine": "ab"}, "--engine for the onnxruntime"),
    ],
)
def test_contradictions(exported: Path, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(MlpDeployError, match=text):
        written(exported, tmp_path / "r", **changes)
    assert not (tmp_path / "r").exists()


def test_command(exported: Path, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    arguments = ["triton", str(exported), f"second={exported}", "-o", str(repository)]
    done = CliRunner().invoke(main, [*arguments, "--json", "--keep-versions", "2"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["models"] == ["asmlp_t", "second"]
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, "is there already" in done.output) == (2, True)
    done = CliRunner().invoke(main, [*arguments, "--force"])
    assert f"tritonserver --model-repository={repository}" in done.stdout
    for bad in ([f"../x={exported}"], [str(exported), f"asmlp_t={exported}"]):
        done = CliRunner().invoke(main, ["triton", *bad, "-o", str(tmp_path / "s")])
        assert (done.exit_code, "name" in done.output) == (2, True)
    assert not (tmp_path / "s").exists()
