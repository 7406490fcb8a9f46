"""Decoding: bad pictures, each refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import encoded, photo, pixels, png, refused, write
from PIL import Image, ImageFile

from mlpdeploy.errors import ImageError
from mlpdeploy.images import image_from_bytes, read_image


def pixels_or_none(path: Path) -> np.ndarray | None:
    """Return the pixels, or None where the file is refused by name; any other error fails the test."""
    message = str(path)
    try:
        return pixels(path)
    except ImageError as error:
        message = str(error)
    assert str(path) in message
    return None


def test_missing_file(tmp_path):
    refused(tmp_path / "nowhere.jpg", "does not exist")
    refused(tmp_path / "no_folder" / "nowhere.jpg", "does not exist")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty_file(tmp_path):
    refused(write(tmp_path, "empty.jpg", b""), "is empty")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "pipe.jpg"
    os.mkfifo(path)
    messages: list[str] = []
    worker = threading.Thread(target=lambda: messages.append(refused(path)), daemon=True)
    worker.start()
    worker.join(timeout=10)
    assert len(messages) == 1
    assert "is a pipe" in messages[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = write(tmp_path, "secret.png", encoded(photo(4, 4), "PNG"))
    path.chmod(0)
    refused(path, "cannot be read")


def test_a_name_that_the_system_cannot_take(tmp_path):
    refused(tmp_path / ("x" * 5000), "cannot be read")
    refused(Path("nul\0l.jpg"), "cannot be read")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("text.jpg", b"This is no picture."),
        ("picture.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'),
        ("page.pdf", b"%PDF-1.7\n1 0 obj <<>> endobj\n%%EOF"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + b"\0" * 64),
        ("array.npy", b"\x93NUMPY\x01\0v\0"),
        ("half_a_header.png", png(9, 9, 8, 2, b"")[:14]),
    ],
)
def test_not_an_image(tmp_path, name, data):
    refused(write(tmp_path, name, data), "is not an image that can be read", "JPEG", "convert it")


def test_eps_never_starts_ghostscript(tmp_path, monkeypatch):
    def started(*arguments, **options):
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    data = encoded(photo(8, 8), "EPS")
    path = write(tmp_path, "picture.eps", data)
    assert Image.open(path).format == "EPS"  # Pillow itself would take it
    refused(path, "is not an image that can be read")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_and_several_pages(tmp_path, kind):
    first, *others = (photo(8, 8, seed) for seed in range(3))
    path = write(tmp_path, "moving", encoded(first, kind, frames=tuple(others)))
    refused(path, "3 frames", "one picture")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_one_frame_is_no_animation(tmp_path, kind):
    assert pixels(write(tmp_path, "still", encoded(photo(8, 8), kind))).shape == (8, 8, 3)


TRUNCATIONS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {}),
    "webp_lossless": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    "ppm": ("PPM", {}),
    "tiff": ("TIFF", {}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff_deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}


@pytest.mark.parametrize("case", TRUNCATIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_truncated_file_is_never_half_decoded(tmp_path, case):
    kind, options = TRUNCATIONS[case]
    data = encoded(photo(61, 83), kind, **options)
    path = write(tmp_path, "cut", data)
    whole = pixels(path)
    for cut in {*range(1, len(data), len(data) // 60), *range(len(data) - 20, len(data))}:
        path.write_bytes(data[:cut])
        got = pixels_or_none(path)
        if cut < 0.9 * len(data):
            assert got is None, f"cut at {cut} of {len(data)}"
        elif got is not None:
            # Only what follows the pixels may be missing (PNG's IEND).
            np.testing.assert_array_equal(got, whole, err_msg=f"cut at {cut} of {len(data)}")


def test_a_truncated_file_is_called_so(tmp_path):
    for kind in ("JPEG", "PNG", "BMP"):
        data = encoded(photo(61, 83), kind)
        refused(write(tmp_path, "half", data[: len(data) // 2]), "truncated or damaged", "a whole picture", "copy it")


def test_pillows_switch_for_truncated_files_is_not_obeyed(tmp_path, monkeypatch):
    data = encoded(photo(64, 64), "JPEG")
    path = write(tmp_path, "cut.jpg", data[: len(data) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(path, "LOAD_TRUNCATED_IMAGES")


FUZZED = [encoded(photo(12, 10), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from(FUZZED),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_an_image_error(tmp_path, data, changes):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    path = write(tmp_path, "damaged", bytes(damaged))
    pixels_or_none(path)


@pytest.mark.parametrize("height_width", [(9_000, 8_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_bomb_is_refused_from_its_header(tmp_path, monkeypatch, height_width):
    def decoded(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    height, width = height_width
    path = write(tmp_path, "bomb.png", png(width, height, 8, 2, b"\0" * 1000))
    message = refused(path, "pixels", "at most 64 megapixels")
    assert "damaged" not in message


def test_an_image_bomb_takes_no_memory(tmp_path):
    path = write(tmp_path, "bomb.png", png(9_000, 9_000, 8, 2, b"\0" * 9_000 * 3))
    program = """
import resource, sys, warnings
import PIL.PngImagePlugin
from mlpdeploy.errors import ImageError
from mlpdeploy.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1])
except ImageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # KiB; decoded it is 243 MB


def test_a_text_bomb_is_refused(tmp_path):
    path = write(tmp_path, "text.png", png(1, 1, 8, 2, b"\0" * 4, text=b" " * 50_000_000))
    assert path.stat().st_size < 100_000
    refused(path, "truncated or damaged")


def test_the_pixel_limit_is_the_callers(tmp_path):
    path = write(tmp_path, "a.png", encoded(photo(10, 10), "PNG"))
    assert read_image(path, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="10 x 10 pixels"):
        read_image(path, max_pixels=99)


def test_the_pixel_limit_holds_for_a_files_bytes():
    data = encoded(photo(8, 10), "PNG")
    assert image_from_bytes(data, 80).size == (10, 8)
    with pytest.raises(ImageError, match="the picture has 10 x 8 pixels"):
        image_from_bytes(data, 79)


@pytest.mark.parametrize(
    "data",
    [png(0, 4, 8, 2, b""), png(4, 0, 8, 2, b""), b"P6 0 4 255\n", b"GIF89a" + b"\0" * 7 + b";"],
    ids=["png-width", "png-height", "ppm", "gif"],
)
def test_zero_size(tmp_path, data):
    refused(write(tmp_path, "nothing", data))


def test_numbers_of_unknown_range(tmp_path):
    fractions = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    refused(write(tmp_path, "float.tif", encoded(fractions, "TIFF")), "floating-point")
    refused(write(tmp_path, "float.pfm", b"Pf\n2 1\n-1.0\n" + np.ones(2, "<f4").tobytes()), "floating-point")
    for value in (70_000, -1):
        integers = Image.fromarray(np.full((4, 4), value, np.int32))
        refused(write(tmp_path, "int.tif", encoded(integers, "TIFF")), str(value), "0 to 65535")
