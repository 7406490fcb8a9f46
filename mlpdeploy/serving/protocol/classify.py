"""A picture in, labels out."""

from __future__ import annotations

import asyncio
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlpdeploy.classification import MAX_DECODERS, check_logits, classifier_preprocessing, top_classes
from mlpdeploy.env import cpu_count
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.images import image_from_bytes, preprocess
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.serving.failures import DeadlineError, QueueFullError
from mlpdeploy.serving.interface import Served
from mlpdeploy.serving.protocol.http import Buffer
from mlpdeploy.serving.protocol.limits import MAX_PICTURE_PIXELS, RefusedError
from mlpdeploy.serving.repository import ModelRepository

# What may hold a picture: browsers say image/..., curl --data-binary says the third, other clients one of the rest.
PLAIN_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
MULTIPART = "multipart/form-data"
MAX_PARTS = 16
MAX_DISPOSITION_BYTES = 4096


class Decoder:
    """Decodes pictures in threads, no more than `waiting` at once."""

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(min(MAX_DECODERS, cpu_count()), thread_name_prefix="decode")
        self._limit, self._pending = waiting, 0
        self._pool.submit(importlib.import_module, "PIL.Image")  # or the first picture would wait for it

    async def decode(self, data: Buffer, preprocessing: Preprocessing, timeout: float) -> np.ndarray:
        """Return the (C, H, W) float32 input tensor of a picture.

        Raises:
            ImageError: it cannot be used.
            QueueFullError: too many pictures wait.
            DeadlineError: it takes longer than `timeout` seconds.
        """
        if self._pending >= self._limit:
            raise QueueFullError(f"{self._pending} pictures wait to be decoded", fix="try again later")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, _tensor, data, preprocessing)
        future.add_done_callback(self._done)
        try:
            tensor = await asyncio.wait_for(future, timeout)
        except (TimeoutError, asyncio.TimeoutError):
            raise DeadlineError(
                f"the picture was not decoded within {timeout:.3g} s", fix="allow more time, or try again later"
            ) from None
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
    """Return the best classes of a picture as JSON's values; decoding it counts for the timeout too.

    Raises:
        UsageError: the model does not classify pictures.
        ImageError: the picture cannot be used.
        QueueFullError, DeadlineError: see `Decoder.decode`.
        And whatever `Served.infer` raises.
    """
    manifest = model.manifest
    limit = model.options.timeout_ms / 1000 if timeout is None else timeout
    end = time.monotonic() + limit
    pixels = await decoder.decode(data, classifier_preprocessing(manifest, f"model {model.name}"), limit)
    spec = manifest.inputs[0]
    arrays = await model.infer({spec.name: pixels[None].astype(spec.dtype, copy=False)}, end - time.monotonic())
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
    parts: list[bytearray] = []
    files: list[bytearray] = []  # those of the parts that are files
    header, value = bytearray(), bytearray()  # the last one's name and value

    def begin() -> None:
        if len(parts) >= MAX_PARTS:
            raise UsageError("the form has too many parts", f"at most {MAX_PARTS}")
        parts.append(bytearray())

    def begin_header() -> None:
        header.clear()
        value.clear()

    def end_header() -> None:
        if header.lower() != b"content-disposition":
            return
        if len(value) > MAX_DISPOSITION_BYTES:  # its parser takes time that grows faster than its length
            raise UsageError("a part of the form has a long Content-Disposition", f"{MAX_DISPOSITION_BYTES} bytes")
        if b"filename" in parse_options_header(bytes(value))[1]:
            files.append(parts[-1])

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_begin": begin_header,
            "on_header_field": lambda data, start, end: header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: value.extend(data[start:end]),
            "on_header_end": end_header,
            "on_part_data": lambda data, start, end: parts[-1].extend(data[start:end]),
        },
    )
    try:
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as error:
        raise UsageError(f"the form cannot be read ({str(error)[:200]})") from error
    if not files:
        raise UsageError("the form has no file", "a part with a file name")
    return bytes(files[0])
