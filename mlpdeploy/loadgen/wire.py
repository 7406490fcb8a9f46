"""Requests of the Open Inference Protocol v2 as bytes, made once and sent many times, and the answers that are read.

REST uses the binary tensor extension: a JSON head, then the inputs' raw bytes. gRPC's messages are few and small, so
they are written and read by field number: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlpdeploy.loadgen.shared import Place

# numpy's name -> the protocol's.
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}

_VARINT, _LENGTH = 0, 2  # wire types of protobuf
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output as the server tells it; -1 stands for an open size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model as the server tells it."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def rest_request(
    feeds: Mapping[str, np.ndarray], outputs: tuple[str, ...], places: Mapping[str, Place] | None = None
) -> tuple[bytes, int]:
    """Return (body, bytes of its JSON head) of an infer request whose outputs come back as raw bytes too.

    Args:
        feeds: {input name: array}.
        outputs: their names.
        places: where in shared memory the inputs lie; None sends them.
    """
    head = {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": DATATYPES[array.dtype.name],
                "parameters": _rest_place(places[name]) if places else {"binary_data_size": array.nbytes},
            }
            for name, array in feeds.items()
        ],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return text + b"".join(array.tobytes() for array in feeds.values() if not places), len(text)


def _rest_place(place: Place) -> dict[str, str | int]:
    return {
        "shared_memory_region": place.region,
        "shared_memory_offset": place.offset,
        "shared_memory_byte_size": place.byte_size,
    }


def rest_metadata(body: bytes) -> ModelMetadata:
    """Return what the answer to GET v2/models/NAME says.

    Raises:
        ValueError: it is not what the protocol says.
    """
    try:
        data = json.loads(body)

        def tensors(key: str) -> tuple[TensorMetadata, ...]:
            return tuple(TensorMetadata(t["name"], t["datatype"], tuple(map(int, t["shape"]))) for t in data[key])

        versions = tuple(map(str, data.get("versions") or ()))
        return ModelMetadata(data["name"], versions, data.get("platform", ""), tensors("inputs"), tensors("outputs"))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def rest_shapes(body: bytes, head_bytes: int | None) -> dict[str, tuple[int, ...]]:
    """Return {output name: shape} of an infer answer.

    Raises:
        ValueError: it is not what the protocol says.
    """
    try:
        data = json.loads(body[:head_bytes])
        return {tensor["name"]: tuple(tensor["shape"]) for tensor in data["outputs"]}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def grpc_request(
    model: str,
    version: str,
    feeds: Mapping[str, np.ndarray],
    outputs: tuple[str, ...],
    places: Mapping[str, Place] | None = None,
) -> bytes:
    """Return a ModelInferRequest with raw contents, or with places in shared memory."""
    parts = [_text(1, model), _text(2, version)]
    for name, array in feeds.items():
        shape = b"".join(map(_varint, array.shape))
        place = _grpc_place(places[name]) if places else b""
        parts.append(_bytes(5, _text(1, name) + _text(2, DATATYPES[array.dtype.name]) + _bytes(3, shape) + place))
    parts += [_bytes(6, _text(1, name)) for name in outputs]
    parts += [_bytes(7, array.tobytes()) for array in feeds.values() if not places]
    return b"".join(parts)


def _grpc_place(place: Place) -> bytes:
    """Return the parameters of a tensor, a map from names (1) to InferParameter (2)."""
    values = {
        "shared_memory_region": _text(3, place.region),
        "shared_memory_offset": _number(2, place.offset),
        "shared_memory_byte_size": _number(2, place.byte_size),
    }
    return b"".join(_bytes(4, _text(1, name) + _bytes(2, value)) for name, value in values.items())


def grpc_register_request(name: str, key: str, byte_size: int) -> bytes:
    """Return a SystemSharedMemoryRegisterRequest."""
    return _text(1, name) + _text(2, key) + _number(4, byte_size)


def grpc_unregister_request(name: str) -> bytes:
    """Return a SystemSharedMemoryUnregisterRequest."""
    return _text(1, name)


def grpc_metadata_request(model: str, version: str) -> bytes:
    """Return a ModelMetadataRequest."""
    return _text(1, model) + _text(2, version)


def grpc_metadata(message: bytes) -> ModelMetadata:
    """Return what a ModelMetadataResponse says.

    Raises:
        ValueError: it is cut off or no protobuf message.
    """
    name, platform = "", ""
    versions: list[str] = []
    tensors: dict[int, list[TensorMetadata]] = {4: [], 5: []}
    for field, value in _fields(message):
        if field == 1:
            name = _string(value)
        elif field == 2:
            versions.append(_string(value))
        elif field == 3:
            platform = _string(value)
        elif field in tensors:
            tensors[field].append(_tensor(value))
    return ModelMetadata(name, tuple(versions), platform, tuple(tensors[4]), tuple(tensors[5]))


def grpc_shapes(message: bytes) -> dict[str, tuple[int, ...]]:
    """Return {output name: shape} of a ModelInferResponse.

    Raises:
        ValueError: it is cut off or no protobuf message.
    """
    tensors = [_tensor(value) for field, value in _fields(message) if field == 5]
    return {tensor.name: tensor.shape for tensor in tensors}


def grpc_index(message: bytes) -> list[str]:
    """Return the models' names in a RepositoryIndexResponse.

    Raises:
        ValueError: it is cut off or no protobuf message.
    """
    names = []
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            names += [_string(inner) for number, inner in _fields(value) if number == 1]
    return names


def _tensor(value: int | bytes) -> TensorMetadata:
    """Return name (1), datatype (2) and shape (3, packed or not) of a tensor's message."""
    name, datatype = "", ""
    shape: list[int] = []
    if not isinstance(value, bytes):
        raise ValueError("a tensor that is no message")
    for field, inner in _fields(value):
        if field == 1:
            name = _string(inner)
        elif field == 2:
            datatype = _string(inner)
        elif field == 3 and isinstance(inner, int):
            shape.append(_signed(inner))
        elif field == 3 and isinstance(inner, bytes):
            start = 0
            while start < len(inner):
                number, start = _read_varint(inner, start)
                shape.append(_signed(number))
    return TensorMetadata(name, datatype, tuple(shape))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a message; numbers of fixed width come as their bytes."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if kind == _LENGTH:
            size, at = _read_varint(message, at)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"no protobuf message: wire type {kind}")
        if at + size > len(message):
            raise ValueError("a message that is cut off")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (the number at `at`, where it ends)."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a message that is cut off")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at
    raise ValueError("no protobuf message: a number of more than ten bytes")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _string(value: int | bytes) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a number where a text belongs")
    return value.decode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
