"""The PyTorch backend: the reference that every other backend is compared with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlpdeploy.env import cpu_count, require
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import CANONICAL, TRANSPOSED, Manifest, TensorSpec, checked_file
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.runtime.session import LoadOptions, Session

if TYPE_CHECKING:
    import torch


_rounding = threading.Lock()  # held while torch's switches for it are ours


class BackendSession(Session):
    """A Session on the torch module, rebuilt from the manifest's architecture and the canonical file's weights.

    It computes in float32, whatever the artifact's precision: it is the reference.
    """

    backend = "torch"

    def __init__(self, directory: Path, manifest: Manifest, options: LoadOptions) -> None:
        torch = require("torch")
        device = options.device
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError(
                f"device {device}, but PyTorch sees no GPU", fix="use --device cpu, or see: mlpdeploy doctor"
            )
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._threads = options.threads or cpu_count()
        self.file = manifest.file_for(CANONICAL)
        self._model = reference_model(directory, manifest).to(name)
        super().__init__(manifest, name, options.max_batch)

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        import torch

        torch.set_num_threads(self._threads)
        (array,) = feeds.values()
        array = array if array.flags.writeable else array.copy()  # torch warns of what it could overwrite
        with torch.inference_mode(), nullcontext() if self.device == "cpu" else _float32_products():
            result = self._model(torch.from_numpy(array).to(self.device, torch.float32))
        tensors = result if isinstance(result, tuple) else (result,)
        arrays = {
            spec.name: t.cpu().numpy().astype(spec.dtype, copy=False)
            for spec, t in zip(self.outputs, tensors, strict=True)
        }
        if into is None:
            return arrays
        for name, array in arrays.items():
            into[name][...] = array
        return into

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return list(self.inputs), list(self.outputs)

    def _release(self) -> None:
        del self._model


@contextmanager
def _float32_products() -> Iterator[None]:
    """Have a GPU's products in float32; by default torch rounds those of convolutions to ten bits (TF32).

    The switches are those of the whole process, so one call at a time has them.
    """
    import torch

    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # not in its stubs
    with _rounding:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def reference_model(directory: Path, manifest: Manifest) -> torch.nn.Module:
    """Return the torch module of an artifact in eval mode, float32, with the weights of its canonical file.

    Raises:
        ArtifactError: the weights are not those that were exported.
    """
    import torch

    from mlpdeploy.models.build import config_from_dict, model_from_config

    weights = canonical_weights(checked_file(directory, manifest, manifest.file_for(CANONICAL)))
    model = model_from_config(config_from_dict(manifest.model["family"], manifest.model["config"]))
    state = {}
    for name, tensor in model.state_dict().items():
        if name not in weights or weights[name].shape != tuple(tensor.shape):
            raise ArtifactError(f"the canonical model lacks the weight {name}", fix="export the model again")
        state[name] = torch.from_numpy(weights[name])
    model.load_state_dict(state)
    model.name, model.source = manifest.model["name"], manifest.model["source"]
    return model.eval()


def canonical_weights(path: Path) -> dict[str, np.ndarray]:
    """Return {checkpoint's tensor name: array} of a canonical ONNX file's initializers."""
    require("onnx")
    import onnx
    from onnx import numpy_helper

    weights = {}
    for tensor in onnx.load(path).graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name.endswith(TRANSPOSED):
            array = array.T
        weights[tensor.name.removesuffix(TRANSPOSED)] = np.array(array, order="C")
    return weights
