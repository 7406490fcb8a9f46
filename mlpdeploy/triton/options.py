"""What a Triton repository is asked to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError

TritonBackend = Literal["onnxruntime", "tensorrt"]
TritonDevice = Literal["cpu", "cuda"]
DEFAULT_MAX_BATCH = 8
DEFAULT_MAX_DELAY_MS = 2.0
DEFAULT_QUEUE_LIMIT = 128
DEFAULT_TIMEOUT_MS = 0.0


@dataclass(frozen=True)
class TritonOptions:
    """What `mlpdeploy triton` is asked for.

    Attributes:
        backend: of Triton that runs the model.
        device: of the onnxruntime backend; the tensorrt backend has GPUs only.
        engine: the fingerprint of one of the artifact's engines, or its beginning; empty for the only one.
        max_batch: rows that Triton puts together; None takes the engine's largest, or DEFAULT_MAX_BATCH.
        preferred: batch sizes that are sent on at once; empty takes those an engine was made fastest for.
        max_delay_ms: that a request waits for others; None means DEFAULT_MAX_DELAY_MS.
        queue_limit: requests that wait before further ones are refused; 0 means no limit, None DEFAULT_QUEUE_LIMIT.
        timeout_ms: that a request waits before it is refused; 0 means for ever, None DEFAULT_TIMEOUT_MS.
        instances: of the model, on the CPU or on each GPU.
        threads: of one run in the onnxruntime backend; None leaves it to ONNX Runtime.
        version: the number of the folder that the model stands in.
        keep_versions: how many of the newest versions Triton serves; so many stay where a model is replaced.
        warmup: run the smallest and the largest batch before the model is ready.
        ensemble: add a model that decodes and prepares photographs, and one of both.
    """

    backend: TritonBackend = "onnxruntime"
    device: TritonDevice = "cpu"
    engine: str = ""
    max_batch: int | None = None
    preferred: tuple[int, ...] = ()
    max_delay_ms: float | None = None
    queue_limit: int | None = None
    timeout_ms: float | None = None
    instances: int = 1
    threads: int | None = None
    version: int = 1
    keep_versions: int = 1
    warmup: bool = True
    ensemble: bool = False

    def check(self) -> None:
        """Raise UsageError for what cannot be, or contradicts itself."""
        if self.backend not in get_args(TritonBackend):
            raise UsageError(f"unknown backend {self.backend!r}", fix=closest(self.backend, get_args(TritonBackend)))
        if self.device not in get_args(TritonDevice):
            raise UsageError(f"unknown device {self.device!r}", "cpu or cuda")
        counts = {
            "--max-batch": self.max_batch,
            "--instances": self.instances,
            "--threads": self.threads,
            "--model-version": self.version,
            "--keep-versions": self.keep_versions,
        }
        for name, value in (*counts.items(), *(("--preferred", size) for size in self.preferred)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}", "at least 1")
        waits = (("--max-delay-ms", self.max_delay_ms), ("--timeout-ms", self.timeout_ms))
        for name, amount in (*waits, ("--queue-limit", self.queue_limit)):
            if amount is not None and not 0 <= amount < 1 << 31:
                raise UsageError(f"{name} {amount}", "0 or more")
        if self.backend == "tensorrt" and self.threads is not None:
            raise UsageError("--threads for the tensorrt backend, which computes on the GPU", fix="leave it out")
        if self.backend == "onnxruntime" and self.engine:
            raise UsageError(
                "--engine for the onnxruntime backend", fix="add --backend tensorrt, or leave --engine out"
            )
