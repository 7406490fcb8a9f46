"""What else one would use for the same weights: PyTorch as it is or compiled, and ONNX exported without us.

All of them are callables from one batch to the outputs, so that nothing here knows of time, and nothing that measures
knows of a framework.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpdeploy.bench.candidates import LABELS, Peer, PeerUnavailableError, Source, failures_of
from mlpdeploy.bench.measure import Progress, Run
from mlpdeploy.env import require
from mlpdeploy.errors import InternalError, MissingDependencyError, UsageError
from mlpdeploy.manifest import CANONICAL, Manifest
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PeerSite:
    """What the peers are built from.

    Attributes:
        directory, manifest: of the artifact.
        threads: of one run.
        max_batch: the largest batch that will be run.
        height_width: of the images, in pixels.
        workspace: folder for the ONNX files.
        module: the torch module with the artifact's weights; None where no peer needs it.
        precision: what ours computes in.
    """

    directory: Path
    manifest: Manifest
    threads: int
    max_batch: int
    height_width: tuple[int, int]
    workspace: Path
    module: torch.nn.Module | None = None
    precision: str = "fp32"

    @property
    def dtype(self) -> str:
        """Of the artifact's input; the module and what is exported from it take float32 whatever that is."""
        return self.manifest.inputs[0].dtype

    def example(self) -> np.ndarray:
        """Return the batch to trace with, (2, C, H, W): one row would be taken for a constant."""
        return np.zeros((2, int(self.manifest.inputs[0].shape[1]), *self.height_width), np.float32)


@dataclass
class BuiltPeers:
    """The peers that can run here, and {name: reason} for those that cannot."""

    peers: list[Peer] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)


@contextmanager
def build_peers(
    names: Sequence[str],
    directory: Path,
    manifest: Manifest,
    *,
    threads: int,
    max_batch: int,
    height_width: tuple[int, int],
    precision: str,
    progress: Progress,
) -> Iterator[BuiltPeers]:
    """Yield the peers; their ONNX files, and PyTorch's number of threads, last as long as the block.

    Raises:
        ArtifactError: the artifact's weights cannot be read.
    """
    built = BuiltPeers()
    wanted = []
    for name in names:
        try:
            for package in _BUILDERS[name][0]:
                require(package)
            wanted.append(name)
        except (MissingDependencyError, ImportError) as error:  # missing, or installed and damaged
            built.unavailable[name] = str(error)
    needs_torch = any("torch" in _BUILDERS[name][0] for name in wanted)
    with tempfile.TemporaryDirectory(prefix="mlpdeploy-bench-") as workspace, _torch_threads(needs_torch, threads):
        module = _reference_module(directory, manifest) if needs_torch else None
        site = PeerSite(directory, manifest, threads, max_batch, height_width, Path(workspace), module, precision)
        for name in wanted:
            progress(f"preparing {LABELS[name]}")
            try:
                with failures_of(name):
                    peer = _BUILDERS[name][1](site)
                if site.dtype != "float32" and name in _OTHERS:
                    peer = dataclasses.replace(peer, run=in_float32(peer.run))
                built.peers.append(peer)
            except (PeerUnavailableError, MissingDependencyError, UsageError) as error:
                built.unavailable[name] = str(error)
        yield built


def artifact_run(directory: Path, threads: int, max_batch: int, role: str | None = None) -> Run:
    """Return our Session on the artifact, ONNX Runtime on the CPU, as a callable."""
    return session_run(load(directory, "onnxruntime", "cpu", threads=threads, max_batch=max_batch, role=role))


def openvino_run(directory: Path, threads: int, max_batch: int) -> Run:
    """Return our Session on the artifact, OpenVINO on the CPU, as a callable."""
    return session_run(load(directory, "openvino", "cpu", threads=threads, max_batch=max_batch))


def default_openvino_run(path: Path, threads: int, precision: str) -> Run:
    """Return OpenVINO on a file as its manual begins: default options, but for the threads and the arithmetic.

    By default it computes in bfloat16 where the processor can, which is no peer of a model in float32.
    """
    from mlpdeploy.runtime.openvino import HINTS

    core = require("openvino").Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")}
    compiled = core.compile_model(str(path), "CPU", options)
    return lambda batch: list(compiled([batch]).values())


def session_run(session: Session) -> Run:
    """Return a Session with one input as a callable."""
    name = session.inputs[0].name
    return lambda batch: list(session.run({name: batch}).values())


def no_kernels_run(directory: Path, threads: int, max_batch: int) -> Run:
    """Return our Session on the artifact, ONNX Runtime's own operators on the CPU, as a callable."""
    return session_run(load(directory, "onnxruntime", "cpu", threads=threads, max_batch=max_batch, kernels=False))


def canonical_run(directory: Path, threads: int, max_batch: int) -> Run:
    """Return our Session on the artifact's canonical model, as a callable."""
    return artifact_run(directory, threads, max_batch, role=CANONICAL)


def default_onnx_run(path: Path, threads: int, max_batch: int) -> Run:
    """Return ONNX Runtime on a file as its manual begins: default options, but for the number of threads."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: list(session.run(None, {name: batch}))


def import_runtime() -> None:
    """Import what every process of `LOADERS` needs, so that no figure of one candidate holds the import."""
    require("onnxruntime")


# Name -> function (path, threads, max_batch) that a fresh process calls with nothing but ONNX Runtime imported.
LOADERS: dict[str, Callable[[Path, int, int], Run]] = {
    "artifact": artifact_run,
    "openvino": openvino_run,
    "no-kernels": no_kernels_run,
    "canonical": canonical_run,
    "onnx": default_onnx_run,
}


def _no_kernels(site: PeerSite) -> Peer:
    with load(site.directory, "onnxruntime", "cpu", threads=site.threads) as session:
        if not session.kernels:
            raise PeerUnavailableError("no kernels of ours run this artifact here (mlpdeploy doctor)")
    run = no_kernels_run(site.directory, site.threads, site.max_batch)
    return Peer("no-kernels", run, Source("no-kernels", site.directory, site.dtype))


def _canonical(site: PeerSite) -> Peer:
    if site.manifest.file_for("cpu") == site.manifest.file_for(CANONICAL):
        raise PeerUnavailableError("the artifact has no file lowered for the CPU, so mlpdeploy runs the canonical one")
    run = canonical_run(site.directory, site.threads, site.max_batch)
    return Peer("canonical", run, Source("canonical", site.directory))


def _onnxruntime(site: PeerSite) -> Peer:
    run = artifact_run(site.directory, site.threads, site.max_batch)
    return Peer("onnxruntime", run, Source("artifact", site.directory, site.dtype))


def _openvino(site: PeerSite) -> Peer:
    if "openvino" not in {entry.role for entry in site.manifest.models.values()}:
        raise PeerUnavailableError(
            "the artifact has no file for openvino",
            fix="run: " + shlex.join(["mlpdeploy", "lower", str(site.directory), "--target", "openvino"]),
        )
    run = openvino_run(site.directory, site.threads, site.max_batch)
    return Peer("openvino", run, Source("openvino", site.directory, site.dtype))


def in_float32(run: Run) -> Run:
    """Return what takes float32 as a callable on other floats. A batch is converted once, which no time is taken of."""
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def run_converted(batch: np.ndarray) -> Sequence[np.ndarray]:
        if id(batch) not in known:
            known[id(batch)] = batch, batch.astype(np.float32)  # the batch too: else its number may be another's
        return run(known[id(batch)][1])

    return run_converted


def _torch_eager(site: PeerSite) -> Peer:
    return Peer("torch-eager", _torch_run(_module_of(site)))


def _torch_compile(site: PeerSite) -> Peer:
    import torch

    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(name and shutil.which(name) for name in compilers):
        raise PeerUnavailableError("no C++ compiler, which torch.compile needs on a CPU", fix="install g++")
    run = _torch_run(torch.compile(_module_of(site), dynamic=False))
    compiled_for: list[tuple[int, ...]] = []

    def run_compiled(batch: np.ndarray) -> Sequence[np.ndarray]:
        if compiled_for != [batch.shape]:
            # One shape at a time: after eight of them torch.compile falls back to eager without a word.
            torch.compiler.reset()
            compiled_for[:] = [batch.shape]
        return run(batch)

    return Peer("torch-compile", run_compiled)


def _torch_run(function: Any) -> Run:
    """Return a torch function of one tensor as a callable on arrays."""
    import torch

    def run(batch: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            result = function(torch.from_numpy(batch))
        return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]

    return run


def _naive_dynamo(site: PeerSite) -> Peer:
    path = _plain_export(site)
    return Peer("naive-dynamo", default_onnx_run(path, site.threads, site.max_batch), Source("onnx", path))


def _naive_openvino(site: PeerSite) -> Peer:
    return Peer("naive-openvino", default_openvino_run(_plain_export(site), site.threads, site.precision))


def _plain_export(site: PeerSite) -> Path:
    """Return the path of `torch.onnx.export`'s file, which two peers share."""
    import torch

    path = site.workspace / "dynamo.onnx"
    if path.exists():
        return path
    torch.onnx.export(
        _module_of(site),
        (torch.from_numpy(site.example()),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    return path


def _naive_legacy(site: PeerSite) -> Peer:
    import torch

    path = site.workspace / "legacy.onnx"
    torch.onnx.export(
        _module_of(site),
        (torch.from_numpy(site.example()),),
        str(path),
        dynamo=False,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
    )
    return Peer("naive-legacy", default_onnx_run(path, site.threads, site.max_batch), Source("onnx", path))


# Name -> (packages it needs, how it is built).
_BUILDERS: dict[str, tuple[tuple[str, ...], Callable[[PeerSite], Peer]]] = {
    "onnxruntime": (("onnxruntime",), _onnxruntime),
    "openvino": (("openvino",), _openvino),
    "no-kernels": (("onnxruntime",), _no_kernels),
    "canonical": (("onnxruntime",), _canonical),
    "torch-eager": (("torch", "onnx"), _torch_eager),
    "torch-compile": (("torch", "onnx"), _torch_compile),
    "naive-dynamo": (("torch", "onnx", "onnxscript", "onnxruntime"), _naive_dynamo),
    "naive-legacy": (("torch", "onnx", "onnxruntime"), _naive_legacy),
    "naive-openvino": (("torch", "onnx", "onnxscript", "openvino"), _naive_openvino),
}


_OTHERS = ("torch-eager", "torch-compile", "naive-dynamo", "naive-legacy", "naive-openvino")  # made without us


def _reference_module(directory: Path, manifest: Manifest) -> torch.nn.Module:
    from mlpdeploy.runtime.torch import reference_model

    return reference_model(directory, manifest)


def _module_of(site: PeerSite) -> torch.nn.Module:
    if site.module is None:
        raise InternalError("a peer needs the torch module, and its packages do not say so")
    return site.module


@contextmanager
def _torch_threads(wanted: bool, threads: int) -> Iterator[None]:
    """Within this block PyTorch computes with that many threads."""
    if not wanted:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
