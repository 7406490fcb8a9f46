"""Inference requests and answers as gRPC messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.protocol.inference import (
    Answer,
    InferenceRequest,
    RequestedOutput,
    requested_output,
    timeout_of,
)
from mlpdeploy.serving.protocol.messages import DATA_TYPES, message_classes
from mlpdeploy.serving.protocol.regions import Place, RegionReader, Regions
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
_RAW_INPUT_CONTENTS, _LENGTH_DELIMITED = 7, 2  # number and kind of a field on the wire
_SPLIT_BYTES, _MAX_SPLIT_FIELDS = 64 << 10, 64  # below and above, copying is cheaper than looking


def parse_message(name: str, data: bytes) -> Any:
    """Return a message, or raise UsageError if the bytes are none."""
    from google.protobuf.message import DecodeError

    try:
        return message_classes()[name].FromString(data)
    except (DecodeError, RecursionError) as error:
        raise UsageError("the bytes of the request are no message of the protocol") from error


def parse_infer(data: bytes) -> tuple[Any, list[memoryview]]:
    """Return (ModelInferRequest, its raw contents as views of the bytes).

    protobuf copies raw contents twice, which for a photograph takes longer than all the rest of the request does.

    Raises:
        UsageError: the bytes are no message.
    """
    rest, raw = _split_raw(data) if len(data) > _SPLIT_BYTES else (data, [])
    message = parse_message("ModelInferRequest", rest)
    return message, raw or [memoryview(content) for content in message.raw_input_contents]


def _split_raw(data: bytes) -> tuple[bytes, list[memoryview]]:
    """Return (the message without raw contents, these); anything but a short list of plain fields stays whole."""
    view, at = memoryview(data), 0
    kept: list[memoryview] = []
    raw: list[memoryview] = []
    for _ in range(_MAX_SPLIT_FIELDS):
        if at == len(data):
            return b"".join(kept), raw
        begin = at
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag & 7 != _LENGTH_DELIMITED or size > len(data) - at:
            break
        if tag >> 3 == _RAW_INPUT_CONTENTS:
            raw.append(view[at : at + size])
        else:
            kept.append(view[begin : at + size])
        at += size
    return data, []


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (the number that begins at a byte, the byte behind it); one that is cut off is larger than any length."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return len(data) << 3, at


def request_from_message(
    message: Any, raw: Sequence[memoryview], timeout: float | None, regions: Regions
) -> InferenceRequest:
    """Return the request in a ModelInferRequest.

    Args:
        message, raw: see `parse_infer`.
        timeout: what is left of the call's deadline in seconds, or None.
        regions: of shared memory, where tensors may lie.

    Raises:
        UsageError: anything in it is wrong.
        And what `RegionReader.read` raises.
    """
    places = [regions.place(tensor.name, _values(tensor.parameters)) for tensor in message.inputs]
    sent = places.count(None)
    if raw and len(raw) != sent:
        raise UsageError(f"{len(raw)} raw_input_contents for {sent} inputs", "one for each, or none")
    feeds: dict[str, np.ndarray] = {}
    contents, reader = iter(raw), RegionReader(regions)
    for tensor, place in zip(message.inputs, places, strict=True):
        if tensor.name in feeds:
            raise UsageError(f"input {tensor.name[:100]!r} comes twice", "once")
        if (raw or place is not None) and tensor.HasField("contents"):
            other = "raw contents" if place is None else "is in shared memory"
            raise UsageError(f"input {tensor.name[:100]!r} has contents and {other}", "one of them")
        data = next(contents, None) if place is None else reader.read(place)
        feeds[tensor.name] = _array(tensor, data)
    asked = timeout_of(_values(message.parameters))
    limits = [seconds for seconds in (asked, timeout) if seconds is not None]
    return InferenceRequest(feeds, _outputs(message.outputs, regions), True, min(limits, default=None), message.id)


def _array(tensor: Any, raw: memoryview | None) -> np.ndarray:
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


def _outputs(outputs: Any, regions: Regions) -> tuple[RequestedOutput, ...] | None:
    found = [requested_output(output.name, _values(output.parameters), True, regions) for output in outputs]
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
        tensor = message.outputs.add(name=answer.name, datatype=answer.datatype, shape=answer.shape)
        values = answer.values
        if isinstance(values, Place):
            for key, value in values.parameters().items():
                setattr(tensor.parameters[key], "string_param" if isinstance(value, str) else "int64_param", value)
            message.raw_output_contents.append(b"")  # clients count outputs to find theirs
            continue
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
