"""Requests and answers of REST: JSON, and JSON followed by binary tensors."""

from __future__ import annotations

import json
import math
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
from mlpdeploy.serving.protocol.limits import MAX_JSON_BYTES, too_large
from mlpdeploy.serving.protocol.regions import Place, RegionReader, Regions
from mlpdeploy.serving.protocol.tensors import (
    BYTES,
    array_from_bytes,
    array_from_values,
    bytes_of,
    strings_bytes,
    whole_number,
)

Buffer = bytes | bytearray | memoryview


def parse_json(data: Buffer) -> Any:
    """Return the JSON in a body.

    Raises:
        RefusedError: it is longer than `MAX_JSON_BYTES`.
        UsageError: it is no JSON, or nested too deeply.
    """
    if len(data) > MAX_JSON_BYTES:
        raise too_large("the JSON", MAX_JSON_BYTES)
    try:
        return json.loads(bytes(data))
    except RecursionError:
        raise UsageError("the JSON is nested too deeply", "an object with inputs") from None
    except ValueError as error:  # also what is no Unicode, and numbers of thousands of digits
        raise UsageError(f"the body is no JSON ({str(error)[:200]})", "an object with inputs") from error


def parse_request(body: Buffer, json_length: str | None, regions: Regions) -> InferenceRequest:
    """Return the inference request in a body.

    Args:
        body: JSON, then the binary tensors in the order of the inputs.
        json_length: the header `Inference-Header-Content-Length`; None where the body is JSON alone.
        regions: of shared memory, where tensors may lie.

    Raises:
        UsageError: anything in it is wrong.
        RefusedError: the JSON is too long.
        And what `RegionReader.read` raises.
    """
    view = memoryview(body)
    length = len(view)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 16):
            raise UsageError(f"Inference-Header-Content-Length is {json_length[:40]!r}", "a whole number")
        length = int(json_length)
        if length > len(view):
            raise UsageError(f"Inference-Header-Content-Length is {length}", f"at most the body's {len(view)} bytes")
    head = parse_json(view[:length])
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise UsageError("the request has no list of inputs", '{"inputs": [...]}')
    parameters = _parameters(head, "the request")
    request_id = head.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 1000:
        raise UsageError("the id is no short string", "a string of at most 1000 characters")
    binary = _flag(parameters, "binary_data_output")
    return InferenceRequest(
        feeds=_feeds(head["inputs"], view[length:], regions),
        outputs=_outputs(head.get("outputs"), binary, regions),
        binary=binary,
        timeout=timeout_of(parameters),
        id=request_id,
    )


def _feeds(inputs: list[Any], tail: memoryview, regions: Regions) -> dict[str, np.ndarray]:
    """Return {name: array}; `tail` holds the binary tensors, all of it."""
    feeds: dict[str, np.ndarray] = {}
    reader = RegionReader(regions)
    at = 0
    for tensor in inputs:
        name = _name(tensor, "input")
        if name in feeds:
            raise UsageError(f"input {name[:100]!r} comes twice", "once")
        parameters = _parameters(tensor, f"input {name[:100]!r}")
        place = regions.place(name, parameters)
        kind, shape, size = tensor.get("datatype"), tensor.get("shape"), parameters.get("binary_data_size")
        if place is not None:
            if "data" in tensor or size is not None:
                raise UsageError(f"input {name[:100]!r} is in shared memory and in the request", "one of them")
            feeds[name] = array_from_bytes(name[:100], kind, shape, reader.read(place))
            continue
        if size is None:
            feeds[name] = array_from_values(name[:100], kind, shape, tensor.get("data"))
            continue
        if "data" in tensor:
            raise UsageError(f"input {name[:100]!r} has data and binary_data_size", "one of them")
        size = whole_number("binary_data_size", size)
        if size > len(tail) - at:
            raise UsageError(f"input {name[:100]!r} has {size} bytes of binary data", f"the body's {len(tail) - at}")
        feeds[name] = array_from_bytes(name[:100], kind, shape, tail[at : at + size])
        at += size
    if at != len(tail):
        raise UsageError(f"{len(tail) - at} bytes behind the binary data", "none")
    return feeds


def _outputs(outputs: Any, binary: bool, regions: Regions) -> tuple[RequestedOutput, ...] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise UsageError("outputs is no list", '[{"name": ...}]')
    found = []
    for output in outputs:
        name = _name(output, "output")
        parameters = _parameters(output, f"output {name[:100]!r}")
        found.append(requested_output(name, parameters, _flag(parameters, "binary_data", binary), regions))
    if len({output.name for output in found}) != len(found):
        raise UsageError("an output is asked for twice", "once")
    return tuple(found)


def _name(tensor: Any, what: str) -> str:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise UsageError(f"an {what} without a name", "an object with a name")
    return name


def _parameters(where: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = where.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise UsageError(f"the parameters of {what} are no object", '{"name": value}')
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {str(value)[:40]}", "true or false")
    return value


def write_answer(model: Served, request_id: str, answers: list[Answer]) -> tuple[list[Buffer], int | None]:
    """Return the parts of an answer's body, and the length of its JSON where binary tensors follow it.

    Raises:
        UsageError: JSON cannot hold a number of an output that is not asked for in binary.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[Buffer] = []
    for answer in answers:
        tensor: dict[str, Any] = {"name": answer.name, "datatype": answer.datatype, "shape": list(answer.shape)}
        values = answer.values
        if isinstance(values, Place):
            tensor["parameters"] = values.parameters()
        elif answer.binary:
            data = bytes_of(values) if isinstance(values, np.ndarray) else strings_bytes(values)
            tensor["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            tensor["data"] = values.reshape(-1).tolist() if isinstance(values, np.ndarray) else values
        outputs.append(tensor)
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request_id:
        head["id"] = request_id
    try:
        text = json.dumps(head, allow_nan=False).encode()
    except ValueError:
        numbers = (output for output in outputs if output["datatype"] != BYTES)
        wrong = next(o["name"] for o in numbers if not all(map(math.isfinite, o.get("data", ()))))
        raise UsageError(
            f"output {wrong!r} has numbers that are not finite, which JSON cannot write", fix="ask for binary data"
        ) from None
    return [text, *binary], len(text) if binary else None
