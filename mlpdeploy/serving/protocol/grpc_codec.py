"""Inference requests and answers as gRPC messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.protocol.inference import (
    Answer,
    InferenceRequest,
    RequestedOutput,
    refuse_shared_memory,
    timeout_of,
    whole_number,
)
from mlpdeploy.serving.protocol.messages import DATA_TYPES, message_classes
from mlpdeploy.serving.protocol.tensors import array_from_bytes, bytes_of, dtype_of, strings_bytes

# Datatype -> the field of InferTensorContents that holds its values. FP16 has none: it has to come raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def parse_message(name: str, data: bytes) -> Any:
    """Return a message, or raise UsageError if the bytes are none."""
    from google.protobuf.message import DecodeError

    try:
        return message_classes()[name].FromString(data)
    except (DecodeError, RecursionError) as error:
        raise UsageError("the bytes of the request are no message of the protocol") from error


def request_from_message(message: Any, timeout: float | None) -> InferenceRequest:
    """Return the request in a ModelInferRequest.

    Args:
        timeout: what is left of the call's deadline in seconds, or None.

    Raises:
        UsageError: anything in it is wrong.
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise UsageError(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs", "one for each, or none")
    feeds: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(message.inputs):
        if tensor.name in feeds:
            raise UsageError(f"input {tensor.name[:100]!r} comes twice", "once")
        refuse_shared_memory(tensor.name, tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise UsageError(f"input {tensor.name[:100]!r} has contents and raw contents", "one of them")
        feeds[tensor.name] = _array(tensor, raw[index] if raw else None)
    asked = timeout_of(_values(message.parameters))
    limits = [seconds for seconds in (asked, timeout) if seconds is not None]
    return InferenceRequest(feeds, _outputs(message.outputs), True, min(limits, default=None), message.id)


def _array(tensor: Any, raw: bytes | None) -> np.ndarray:
    name, shape = tensor.name[:100], list(tensor.shape)
    if raw is not None:
        return array_from_bytes(name, tensor.datatype, shape, raw)
    dtype = dtype_of(name, tensor.datatype)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise UsageError(f"input {name!r} is {tensor.datatype} in contents", "raw_input_contents")
    values = np.array(getattr(tensor.contents, field))
    if dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise UsageError(f"input {name!r} has numbers outside of {tensor.datatype}")
    return array_from_bytes(name, tensor.datatype, shape, values.astype(dtype).tobytes())


def _outputs(outputs: Any) -> tuple[RequestedOutput, ...] | None:
    found = []
    for output in outputs:
        refuse_shared_memory(output.name, output.parameters)
        classes = whole_number("classification", _values(output.parameters).get("classification", 0))
        found.append(RequestedOutput(output.name, classes, True))
    if len({output.name for output in found}) != len(found):
        raise UsageError("an output is asked for twice", "once")
    return tuple(found) or None


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} of a map of InferParameter."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None) for name, value in parameters.items()
    }


def message_from_answers(model: Served, request_id: str, answers: list[Answer]) -> Any:
    """Return the ModelInferResponse."""
    message = message_classes()["ModelInferResponse"](model_name=model.name, model_version=model.version, id=request_id)
    for answer in answers:
        message.outputs.add(name=answer.name, datatype=answer.datatype, shape=answer.shape)
        values = answer.values
        message.raw_output_contents.append(
            bytes(bytes_of(values)) if isinstance(values, np.ndarray) else strings_bytes(values)
        )
    return message


def config_message(configuration: Mapping[str, Any]) -> Any:
    """Return the ModelConfigResponse of a configuration as REST writes it."""
    values = dict(configuration)
    for key in ("input", "output"):
        values[key] = [{**tensor, "data_type": _number(tensor["data_type"])} for tensor in values[key]]
    classes = message_classes()
    return classes["ModelConfigResponse"](config=classes["ModelConfig"](**values))


def _number(data_type: str) -> int:
    return DATA_TYPES.index(data_type.removeprefix("TYPE_"))
