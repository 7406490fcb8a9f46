"""A picture in, labels out."""

from __future__ import annotations

import asyncio
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlpdeploy.classification import MAX_DECODERS, check_logits, classifier_preprocessing, top_classes
from mlpdeploy.env import cpu_count
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.images import image_from_bytes, preprocess
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.serving.failures import QueueFullError
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.protocol.http import Buffer
from mlpdeploy.serving.protocol.limits import MAX_PICTURE_PIXELS, RefusedError
from mlpdeploy.serving.repository import ModelRepository

# What may hold a picture: browsers say image/..., curl --data-binary says the third, other clients one of the rest.
PLAIN_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
MULTIPART = "multipart/form-data"
MAX_PARTS = 16


class Decoder:
    """Decodes pictures in threads, no more than `waiting` at once."""

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(min(MAX_DECODERS, cpu_count()), thread_name_prefix="decode")
        self._limit, self._pending = waiting, 0
        self._pool.submit(importlib.import_module, "PIL.Image")  # or the first picture would wait for it

    async def decode(self, data: Buffer, preprocessing: Preprocessing) -> np.ndarray:
        """Return the (C, H, W) float32 input tensor of a picture.

        Raises:
            ImageError: it cannot be used.
            QueueFullError: too many pictures wait.
        """
        if self._pending >= self._limit:
            raise QueueFullError(f"{self._pending} pictures wait to be decoded", fix="try again later")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, _tensor, data, preprocessing)
        future.add_done_callback(self._done)
        tensor = await future
        if isinstance(tensor, ImageError):
            raise tensor
        return tensor

    def _done(self, future: asyncio.Future[np.ndarray | ImageError]) -> None:
        self._pending -= 1

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _tensor(data: Buffer, preprocessing: Preprocessing) -> np.ndarray | ImageError:
    """Return the input tensor, or the error as a new one: the traceback of the old one holds the pixels."""
    try:
        return preprocess(image_from_bytes(data, MAX_PICTURE_PIXELS), preprocessing)
    except ImageError as error:
        return ImageError(error.got, error.wanted, error.fix)


def classifier(repository: ModelRepository, name: str | None) -> Served:
    """Return the model that classifies: the named one, or the only one there is."""
    if name is not None:
        return repository.get(name)
    models = repository.models()
    if len(models) != 1:
        raise UsageError(f"{len(models)} models are served", "the name of one", "add ?model=NAME")
    return models[0]


async def classify(
    model: Served, decoder: Decoder, data: Buffer, top: int, timeout: float | None = None
) -> dict[str, Any]:
    """Return the best classes of a picture as JSON's values.

    Raises:
        UsageError: the model does not classify pictures.
        ImageError: the picture cannot be used.
        And whatever `Served.infer` raises.
    """
    manifest = model.manifest
    pixels = await decoder.decode(data, classifier_preprocessing(manifest, f"model {model.name}"))
    spec = manifest.inputs[0]
    arrays = await model.infer({spec.name: pixels[None].astype(spec.dtype, copy=False)}, timeout)
    logits = arrays[manifest.outputs[0].name]
    check_logits(logits, manifest.labels, ["the picture"])
    return {
        "model": model.name,
        "version": model.version,
        "random_weights": bool(manifest.model.get("random_weights")),
        "classes": [
            {"index": score.index, "label": score.label, "probability": score.probability}
            for score in top_classes(logits, manifest.labels, top)[0]
        ],
    }


def picture_in(body: Buffer, content_type: str) -> Buffer:
    """Return the picture's bytes: the body, or the first file of a form.

    Raises:
        RefusedError: the content type is not one for pictures.
        UsageError: the form is damaged or holds no file.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return _first_file(body, content_type)
    if kind in PLAIN_TYPES or kind.startswith("image/"):
        return body
    raise RefusedError(415, f"Content-Type {kind[:60]!r}", f"image/jpeg, image/png, ... or {MULTIPART}")


def _first_file(body: Buffer, content_type: str) -> bytes:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary or len(boundary) > 70:  # RFC 2046, 5.1.1
        raise UsageError("the form has no usable boundary", f"Content-Type: {MULTIPART}; boundary=...")
    parts: list[tuple[bytearray, bytearray]] = []  # (headers, data) of each part

    def begin() -> None:
        if len(parts) >= MAX_PARTS:
            raise UsageError("the form has too many parts", f"at most {MAX_PARTS}")
        parts.append((bytearray(), bytearray()))

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, start, end: parts[-1][0].extend(data[start:end] + b"="),
            "on_header_value": lambda data, start, end: parts[-1][0].extend(data[start:end] + b"\n"),
            "on_part_data": lambda data, start, end: parts[-1][1].extend(data[start:end]),
        },
    )
    try:
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as error:
        raise UsageError(f"the form cannot be read ({str(error)[:200]})") from error
    files = [data for headers, data in parts if b"filename" in headers]
    if not files:
        raise UsageError("the form has no file", "a part with a file name")
    return bytes(files[0])
