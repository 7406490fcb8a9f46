"""An inference request and its answer, whatever protocol it came by; and what a server tells about its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import TensorSpec
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.protocol.regions import Place, Regions
from mlpdeploy.serving.protocol.tensors import BYTES, bytes_of, datatype_of, whole_number
from mlpdeploy.serving.repository import ModelRepository

PLATFORM = "mlpdeploy"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
SHARED_MEMORY = "system_shared_memory"  # the extension of servers that were told to


@dataclass(frozen=True)
class RequestedOutput:
    """One output of a request.

    Attributes:
        name: of the output.
        classes: how many classes to answer in words; 0 gives the tensor itself.
        binary: whether REST answers it in binary.
        place: in shared memory that it is written to; None sends it.
    """

    name: str
    classes: int = 0
    binary: bool = False
    place: Place | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """What a client asks for.

    Attributes:
        feeds: {input name: array}, not checked yet.
        outputs: wanted ones in the wanted order; None means all, in binary if `binary` says so.
        timeout: seconds, None for the server's.
        id: comes back with the answer.
    """

    feeds: dict[str, np.ndarray]
    outputs: tuple[RequestedOutput, ...] | None = None
    binary: bool = False
    timeout: float | None = None
    id: str = ""


@dataclass(frozen=True)
class Answer:
    """One output.

    Attributes:
        name, datatype, shape: as the protocol tells them.
        binary: whether REST sends it in binary.
        values: an array, the words for classes, or where in shared memory it has been written to.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    binary: bool
    values: np.ndarray | list[str] | Place


async def infer(model: Served, request: InferenceRequest) -> list[Answer]:
    """Return the wanted outputs.

    Raises:
        UsageError: an unknown output, inputs that do not fit, or a classification of what are no classes.
        And whatever `Served.infer` raises.
    """
    specs = {spec.name: spec for spec in model.manifest.outputs}
    wanted = request.outputs
    if wanted is None:
        wanted = tuple(RequestedOutput(name, binary=request.binary) for name in specs)
    for output in wanted:
        if output.name not in specs:
            raise UsageError(f"unknown output {output.name[:100]!r}", fix=closest(output.name[:100], specs))
    arrays = await model.infer(request.feeds, request.timeout)
    return [_answer(output, specs[output.name], arrays[output.name], model) for output in wanted]


def _answer(output: RequestedOutput, spec: TensorSpec, array: np.ndarray, model: Served) -> Answer:
    if not output.classes:
        values = array if output.place is None else output.place.write(bytes_of(array))
        return Answer(output.name, datatype_of(spec.dtype), array.shape, output.binary, values)
    rows = array if array.ndim == 2 else array.reshape(len(array), -1)
    best = np.argsort(-rows, axis=1, kind="stable")[:, : output.classes]
    labels = model.manifest.labels
    words = [
        f"{row[index]:f}:{index}" + (f":{labels[index]}" if index < len(labels) else "")
        for row, order in zip(rows, best, strict=True)
        for index in order
    ]
    return Answer(output.name, BYTES, best.shape, output.binary, words)


def requested_output(name: str, parameters: Mapping[str, Any], binary: bool, regions: Regions) -> RequestedOutput:
    """Return the output that a request asks for.

    Raises:
        UsageError: a parameter is wrong, or classes are to be written to shared memory.
    """
    classes = whole_number("classification", parameters.get("classification", 0))
    place = regions.place(name, parameters)
    if classes and place is not None:
        raise UsageError(f"output {name[:100]!r} is asked for as classes and in shared memory", "one of them")
    return RequestedOutput(name, classes, binary, place)


def timeout_of(parameters: Any) -> float | None:
    """Return the `timeout` parameter, which is in microseconds, in seconds; None where it is missing or 0."""
    microseconds = whole_number("timeout", parameters.get("timeout", 0))
    return microseconds / 1e6 if microseconds else None


def metadata(repository: ModelRepository, model: Served) -> dict[str, Any]:
    """Return a model's metadata as REST writes it; -1 is a size that is not fixed."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": sizes(spec)}

    return {
        "name": model.name,
        "versions": [other.version for other in repository.models() if other.name == model.name],
        "platform": PLATFORM,
        "inputs": [tensor(spec) for spec in model.manifest.inputs],
        "outputs": [tensor(spec) for spec in model.manifest.outputs],
    }


def sizes(spec: TensorSpec) -> list[int]:
    """Return a shape with -1 for what is not fixed; the batch never is, because the server splits and pads."""
    return [-1, *(size if isinstance(size, int) else -1 for size in spec.shape[1:])]


def configuration(model: Served) -> dict[str, Any]:
    """Return what Triton's clients read of a model's configuration: names, types, sizes without the batch."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        kind = f"TYPE_{datatype_of(spec.dtype)}"
        return {"name": spec.name, "data_type": kind, "dims": sizes(spec)[1:]}

    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": model.max_batch,
        "input": [tensor(spec) for spec in model.manifest.inputs],
        "output": [tensor(spec) for spec in model.manifest.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(1000 * model.options.max_delay_ms)},
        "instance_group": [{"name": model.name, "count": model.instances}],
    }


def statistics(model: Served) -> dict[str, Any]:
    """Return a model's counts in the protocol's statistics extension; what is not measured is 0."""
    stats = model.stats
    batches = sum(stats.batches.values())

    def duration(count: int = 0, seconds: float = 0.0) -> dict[str, int]:
        return {"count": count, "ns": round(1e9 * seconds)}

    success_seconds = stats.queue_seconds + stats.compute_seconds
    return {
        "name": model.name,
        "version": model.version,
        "inference_count": stats.rows,
        "execution_count": batches,
        "inference_stats": {
            "success": duration(stats.requests, success_seconds),
            "fail": duration(sum(stats.failures.values())),
            "queue": duration(stats.requests, stats.queue_seconds),
            "compute_input": duration(),
            "compute_infer": duration(batches, stats.compute_seconds),
            "compute_output": duration(),
            "cache_hit": duration(),
            "cache_miss": duration(),
        },
        "batch_stats": [
            {"batch_size": rows, "compute_infer": duration(count)} for rows, count in sorted(stats.batches.items())
        ],
    }


def repository_index(repository: ModelRepository, ready_only: bool) -> list[dict[str, str]]:
    """Return all models with their state, or only those that are ready."""
    return [
        {"name": model.name, "version": model.version, "state": "READY" if model.ready else "UNAVAILABLE", "reason": ""}
        for model in repository.models()
        if model.ready or not ready_only
    ]
