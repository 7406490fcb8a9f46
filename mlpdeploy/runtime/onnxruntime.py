"""The ONNX Runtime backend: CPU, and CUDA where the GPU package and a GPU are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlpdeploy.env import cpu_count, require
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, checked_file
from mlpdeploy.runtime.session import Arrays, LoadOptions, Session


class BackendSession(Session):
    """A Session on an `onnxruntime.InferenceSession`, which is thread-safe."""

    backend = "onnxruntime"

    def __init__(self, directory: Path, manifest: Manifest, options: LoadOptions) -> None:
        ort = require("onnxruntime")
        device = options.device
        has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        if device is not None and device.startswith("cuda") and not has_cuda:
            raise UsageError(
                f"device {device}, but this ONNX Runtime has no CUDA provider",
                fix="run: pip uninstall onnxruntime && pip install 'mlpdeploy[gpu]', or use --device cpu",
            )
        use_cuda = has_cuda if device is None else device.startswith("cuda")
        role = options.role or ("cuda" if use_cuda else "cpu")
        path = checked_file(directory, manifest, manifest.file_for(role))
        self._session = inference_session(path, threads=options.threads, cuda=use_cuda)
        runs_on = "cuda" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        super().__init__(manifest, runs_on, options.max_batch)
        self._names = [spec.name for spec in self.outputs]

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        if into is None:
            return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, array in into.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return into

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        sides = (self._session.get_inputs(), self._session.get_outputs())
        inputs, outputs = ([_spec_of(value) for value in side] for side in sides)
        return inputs, outputs

    def _release(self) -> None:
        del self._session


def _spec_of(value: Any) -> TensorSpec:
    """Return what ONNX Runtime says about one of its inputs or outputs."""
    dtype = {"float": "float32", "double": "float64"}.get(kind := value.type[7:-1], kind)
    return TensorSpec(value.name, tuple(value.shape), dtype, "")


def inference_session(source: Path, *, threads: int | None = None, cuda: bool = False) -> Any:
    """Return an `onnxruntime.InferenceSession` with the options that this project runs its models with.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cpu_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(str(source), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common class but Exception
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {source} ({first})", fix="export the model again"
        ) from error
