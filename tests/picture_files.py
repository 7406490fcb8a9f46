"""Files of pictures, good and bad, as they are written for tests, and what `read_image` makes of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlpdeploy.errors import ImageError
from mlpdeploy.images import read_image


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return an RGB picture with smooth and noisy parts."""
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height), 3)
    noise = generator.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, *, frames: tuple[Image.Image, ...] = (), **options: object) -> bytes:
    buffer = io.BytesIO()
    if frames:
        options |= {"save_all": True, "append_images": list(frames)}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, text: bytes = b"") -> bytes:
    """Return a PNG made by hand, with any header, any pixel data and any compressed text."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    texts = [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text))] if text else []
    chunks = [chunk(b"IHDR", header), *texts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(path: Path, *words: str) -> str:
    """Return the message of the ImageError; it must name the file and hold each of `words`."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message
