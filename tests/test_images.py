"""Decoding: every kind of good picture, every bad one refused by name. Preprocessing: torchvision's, bit for bit."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from mlpdeploy import images
from mlpdeploy.errors import ImageError, MissingDependencyError, UsageError
from mlpdeploy.images import MAX_PIXELS, find_images, image_from_bytes, preprocess, read_image, sample_photographs
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.plugins import cpu_pictures

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ORIENTATION_TAG = 0x0112


@pytest.fixture(autouse=True)
def by_pillow(monkeypatch):
    """Whether or not there are CPU kernels; tests/plugins/test_cpu_pictures.py compares theirs with these."""
    monkeypatch.setattr(cpu_pictures, "_function", lambda: None)


def settings_for(
    height_width: tuple[int, int] = (224, 224),
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
    mean: tuple[float, ...] = IMAGENET["mean"],
    std: tuple[float, ...] = IMAGENET["std"],
    color_order: str = "RGB",
) -> Preprocessing:
    return Preprocessing(height_width, crop_pct, interpolation, mean, std, color_order)


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


def pixels_or_none(path: Path) -> np.ndarray | None:
    """Return the pixels, or None where the file is refused by name; any other error fails the test."""
    message = str(path)
    try:
        return pixels(path)
    except ImageError as error:
        message = str(error)
    assert str(path) in message
    return None


def refused(path: Path, *words: str) -> str:
    """Return the message of the ImageError; it must name the file and hold each of `words`."""
    with pytest.raises(ImageError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message


# Good pictures.


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_lossless_formats_give_the_exact_pixels(tmp_path, kind, options):
    image = photo(13, 29)
    path = write(tmp_path, f"a.{kind.lower()}", encoded(image, kind, **options))
    np.testing.assert_array_equal(pixels(path), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_jpeg(tmp_path, options):
    image = photo(64, 48).resize((480, 640), Image.Resampling.BICUBIC)
    path = write(tmp_path, "a.jpg", encoded(image, "JPEG", quality=95, **options))
    difference = np.abs(pixels(path).astype(int) - np.asarray(image))
    assert difference.mean() < 2


def test_the_suffix_does_not_matter(tmp_path):
    path = write(tmp_path, "png_named.jpg", encoded(photo(9, 9), "PNG"))
    assert pixels(path).shape == (9, 9, 3)


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    for color in [(255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]:
        image = Image.new("RGB", (16, 16), color).convert("CMYK")
        path = write(tmp_path, "cmyk.jpg", encoded(image, "JPEG", quality=95))
        assert Image.open(path).mode == "CMYK"
        assert np.abs(pixels(path).astype(int) - color).max() <= 4


def test_alpha_is_dropped_and_not_composited(tmp_path):
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        path = write(tmp_path, "a." + kind, encoded(image, kind, **options))
        assert (pixels(path) == (200, 100, 50)).all()


def test_grey_with_alpha(tmp_path):
    path = write(tmp_path, "la.png", encoded(Image.new("LA", (4, 4), (77, 3)), "PNG"))
    assert (pixels(path) == 77).all()


def test_palette_with_transparency_keeps_its_colors_and_does_not_warn(tmp_path):
    colors = np.array([[250, 1, 2], [3, 240, 4], [5, 6, 230]], np.uint8)
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette(colors.tobytes())
    path = write(tmp_path, "p.png", encoded(image, "PNG", transparency=b"\x00\x80\xff"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(path)[0], colors)


def test_one_bit(tmp_path):
    bits = np.array([[True, False, True]])
    for kind in ("PNG", "TIFF", "BMP"):
        path = write(tmp_path, "bits." + kind, encoded(Image.fromarray(bits), kind))
        assert Image.open(path).mode == "1"
        np.testing.assert_array_equal(pixels(path)[0, :, 0], [255, 0, 255])


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    wide = levels * 257
    files = {
        "grey.png": encoded(Image.fromarray(wide), "PNG"),
        "grey.tif": encoded(Image.fromarray(wide), "TIFF"),
        "big_endian.tif": encoded(Image.frombytes("I;16B", (16, 16), wide.astype(">u2").tobytes()), "TIFF"),
        "grey.pgm": b"P5 16 16 65535\n" + wide.astype(">u2").tobytes(),
        "signed32.tif": encoded(Image.fromarray(wide.astype(np.int32)), "TIFF"),
    }
    for name, data in files.items():
        path = write(tmp_path, name, data)
        assert Image.open(path).mode.startswith("I"), name
        np.testing.assert_array_equal(pixels(path)[..., 0], levels, err_msg=name)
        np.testing.assert_array_equal(pixels(path)[..., 2], levels, err_msg=name)


def test_thirty_two_bits_that_hold_eight_are_eight(tmp_path):
    levels = np.arange(256, dtype=np.int32).reshape(16, 16)
    path = write(tmp_path, "levels.tif", encoded(Image.fromarray(levels), "TIFF"))
    np.testing.assert_array_equal(pixels(path)[..., 1], levels)
    dark = write(tmp_path, "dark.pgm", b"P5 16 16 65535\n" + levels.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(dark)[..., 1], 0)


def test_sixteen_bit_grey_equals_the_same_picture_in_sixteen_bit_color(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (6, 5)).astype(">u2")
    grey = b"".join(b"\0" + row.tobytes() for row in values)
    color = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in values)
    one = write(tmp_path, "grey.png", png(5, 6, 16, 0, grey))
    other = write(tmp_path, "color.png", png(5, 6, 16, 2, color))
    np.testing.assert_array_equal(pixels(one), pixels(other))


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the array that a camera stores: EXIF 2.32 says which visual side its 0th row and 0th column are."""
    row0, column0 = [
        ("top", "left"),
        ("top", "right"),
        ("bottom", "right"),
        ("bottom", "left"),
        ("left", "top"),
        ("right", "top"),
        ("right", "bottom"),
        ("left", "bottom"),
    ][orientation - 1]
    stored = upright if row0 in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if row0 in ("bottom", "right") else stored
    return np.ascontiguousarray(stored[:, ::-1] if column0 in ("bottom", "right") else stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation(tmp_path, kind, orientation):
    quadrants = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[9, 9, 9], [250, 250, 0], [120, 0, 120]]], np.uint8)
    upright = quadrants.repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encoded(Image.fromarray(stored_as(upright, orientation)), kind, exif=exif, **options)
    got = pixels(write(tmp_path, "turned", data))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_exif_orientation_is_as_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    image = photo(5, 7)
    path = write(tmp_path, "a.png", encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels(path), np.asarray(image))


def test_a_phones_jpeg_with_a_second_picture_gives_the_first(tmp_path):
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    path = write(tmp_path, "phone.jpg", encoded(image, "MPO", frames=(Image.new("RGB", (16, 16), "blue"),)))
    assert Image.open(path).n_frames == 2
    assert np.abs(pixels(path).astype(int) - (200, 30, 30)).max() <= 4


# Bad pictures.


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


# Preprocessing.


def as_torchvision_does(image: Image.Image, p: Preprocessing) -> np.ndarray:
    """Return what Resize(size), CenterCrop, ToTensor and Normalize give, written from their documentation."""
    torch = pytest.importorskip("torch")
    crop_height, crop_width = p.height_width
    assert crop_height == crop_width
    size = math.floor(crop_height / p.crop_pct)
    short, long = min(image.size), max(image.size)
    if short != size:
        new_long = int(size * long / short)
        tall = image.height >= image.width
        filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
        image = image.resize((size, new_long) if tall else (new_long, size), filters[p.interpolation])
    missing_width, missing_height = max(crop_width - image.width, 0), max(crop_height - image.height, 0)
    left, top = missing_width // 2, missing_height // 2
    border = (left, top, missing_width - left, missing_height - top)
    image = ImageOps.expand(image, border, fill=0)
    top, left = round((image.height - crop_height) / 2.0), round((image.width - crop_width) / 2.0)
    array = np.array(image)[top : top + crop_height, left : left + crop_width].reshape(crop_height, crop_width, -1)
    tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (p.mean, p.std))
    return tensor.sub(mean).div(std).numpy()


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    crop=st.integers(2, 96),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 0.96, 1.0, 1.25]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@example(height=66, width=85, crop=64, crop_pct=0.96, interpolation="bicubic")  # the crop starts at 10.5: at 10
@example(height=73, width=73, crop=63, crop_pct=0.863, interpolation="bicubic")  # no resize
@example(height=50, width=50, crop=65, crop_pct=1.25, interpolation="bicubic")  # padded by 6 and 7
def test_preprocess_equals_torchvision(height, width, crop, crop_pct, interpolation):
    image = photo(height, width)
    p = settings_for((crop, crop), crop_pct, interpolation)
    got = preprocess(image, p)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, as_torchvision_does(image, p), strict=True)


@pytest.mark.parametrize("crop", [(64, 64), (40, 96)], ids=["square", "oblong"])
def test_preprocess_equals_timm(crop):
    pytest.importorskip("timm")
    from timm.data import create_transform

    # timm resizes for an oblong crop with bilinear interpolation, whatever it is asked for.
    p = settings_for(crop, 0.9, "bicubic" if crop[0] == crop[1] else "bilinear")
    transform = create_transform((3, *crop), interpolation=p.interpolation, crop_pct=p.crop_pct, mean=p.mean, std=p.std)
    for seed, (height, width) in enumerate([(200, 301), (301, 200), (77, 77), (30, 45), (720, 1280)]):
        image = photo(height, width, seed)
        np.testing.assert_array_equal(preprocess(image, p), transform(image).numpy(), strict=True)


ODD_SIZES = [(1, 1), (7, 129), (223, 225), (224, 224), (248, 249), (255, 256), (333, 500), (1001, 77)]


# The published models' own settings: AS-MLP and most of Vision Permutator at 0.9, its largest at 0.875.
@pytest.mark.parametrize("crop_pct", [0.9, 0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocess_equals_timm_for_both_families(crop_pct, interpolation, mode):
    pytest.importorskip("timm")
    from timm.data import create_transform

    mean, std = ((0.449,), (0.226,)) if mode == "L" else (IMAGENET["mean"], IMAGENET["std"])
    p = settings_for((224, 224), crop_pct, interpolation, mean, std, mode)
    shape = (len(mean), *p.height_width)
    transform = create_transform(shape, interpolation=interpolation, crop_pct=crop_pct, mean=mean, std=std)
    for seed, (height, width) in enumerate(ODD_SIZES):
        image = photo(height, width, seed).convert(mode)
        np.testing.assert_array_equal(preprocess(image, p), transform(image).numpy(), strict=True)


@pytest.mark.parametrize("height_width", [(300, 200), (200, 300), (50, 400), (37, 41)])
@pytest.mark.parametrize("crop", [(40, 96), (96, 40)])
def test_an_oblong_crop_is_covered_and_keeps_the_aspect(height_width, crop):
    # A disc stays round: its extent is the same number of pixels along both axes.
    height, width = height_width
    rows, columns = np.mgrid[:height, :width]
    radius = min(height_width) / 3
    inside = (rows - (height - 1) / 2) ** 2 + (columns - (width - 1) / 2) ** 2 <= radius**2
    disc = Image.fromarray(inside * np.uint8(255)).convert("RGB")
    p = settings_for(crop, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    got = preprocess(disc, p)
    assert got.shape == (3, *crop)
    scale = max(crop[0] / height, crop[1] / width)
    for axis, side in ((0, crop[0]), (1, crop[1])):
        extent = (got[0] > 0.5).any(axis=1 - axis).sum()
        assert extent == pytest.approx(min(2 * radius * scale, side), abs=2)
    white = preprocess(Image.new("RGB", (width, height), "white"), p)
    assert white.min() == 1  # no border


def test_preprocess_of_one_grey_channel():
    image = photo(60, 50)
    p = settings_for((32, 32), 0.9, "bicubic", (0.5,), (0.25,), "L")
    got = preprocess(image, p)
    assert got.shape == (1, 32, 32)
    np.testing.assert_array_equal(got, as_torchvision_does(image.convert("L"), p), strict=True)


def test_preprocess_leaves_the_picture_as_it_is():
    image = photo(40, 30)
    before = image.tobytes()
    preprocess(image, settings_for((16, 16)))
    assert image.tobytes() == before


def test_preprocess_refuses_a_picture_that_would_explode(monkeypatch):
    image = Image.new("RGB", (MAX_PIXELS // 200, 1))
    monkeypatch.setattr(Image.Image, "resize", lambda *arguments: pytest.fail("resized"))
    with pytest.raises(ImageError, match=r"320000 x 1 pixels is too elongated"):
        preprocess(image, settings_for())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": "lanczos"}, "lanczos"),
        ({"color_order": "BGR"}, "BGR"),
        ({"mean": (0.5,)}, "3 numbers"),
        ({"std": (1.0, 1.0, 0.0)}, "zero"),
        ({"std": (1.0, 1.0, -0.5)}, "above zero"),
        ({"std": (1.0, 1.0, math.nan)}, "finite"),
        ({"mean": (0.0, math.inf, 0.0)}, "finite"),
        ({"crop_pct": 0.0}, "crop_pct 0"),
        ({"crop_pct": math.nan}, "crop_pct nan"),
        ({"crop_pct": 500.0}, "crop_pct 500"),
        ({"crop_pct": 5e-324}, "resized ones of at most 64000000"),
        ({"crop_pct": 3e-6, "height_width": (32, 224)}, "resized ones"),
        ({"height_width": (0, 224)}, "0, 224"),
    ],
)
def test_preprocess_refuses_impossible_settings(changes, words):
    with pytest.raises(UsageError, match=words):
        preprocess(photo(8, 8), settings_for(**changes))


# Finding.


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_pictures_of_other_kinds_are_told(tmp_path):
    touch(tmp_path, "d/a.png", "d/b.AVIF", "d/sub/c.heic", "d/sub/d.avif", "d/notes.txt", "d/._b.avif")
    with pytest.warns(UserWarning, match=r"that are not read: 2 \.avif, 1 \.heic"):
        assert find_images(tmp_path / "d") == [tmp_path / "d" / "a.png"]


def test_find_images_takes_files_as_given_and_expands_folders(tmp_path):
    touch(tmp_path, "d/b.JPG", "d/a.png", "d/sub/c.tiff", "d/notes.txt", "d/._a.png", "d/.hidden/x.jpg", "d/model.onnx")
    (odd,) = touch(tmp_path, "z.unknown")
    expected = [tmp_path / "d" / name for name in ("a.png", "b.JPG", "sub/c.tiff")]
    assert find_images([odd, tmp_path / "d"]) == [odd, *expected]
    assert find_images([str(tmp_path / "d"), odd, odd]) == [*expected, odd, odd]
    assert find_images(str(tmp_path / "d")) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"])
def test_find_images_knows_the_suffixes(tmp_path, suffix):
    expected = touch(tmp_path, f"a{suffix}")
    assert find_images([tmp_path]) == expected


def test_find_images_follows_no_circle(tmp_path):
    touch(tmp_path, "d/a.png")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    assert find_images([tmp_path]) == [tmp_path / "d" / "a.png"]


def test_find_images_refuses(tmp_path):
    touch(tmp_path, "texts/a.txt")
    for paths, words in [
        ([tmp_path / "nowhere.jpg"], "nowhere.jpg does not exist"),
        ([tmp_path / "texts"], "texts holds no image"),
        ([], "no image is given"),
        ([tmp_path / ("x" * 300)], r"x cannot be read \(File name too long\)"),
        (["a\0b.jpg"], "does not exist"),
    ]:
        with pytest.raises(UsageError, match=words):
            find_images(paths)


def test_sample_photographs():
    # Not pytest.importorskip: it would import scikit-learn, which takes seconds.
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    china, flower = sample_photographs()
    for path in (china, flower):
        assert pixels(path).shape == (427, 640, 3)


def test_sample_photographs_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        sample_photographs()


def test_importing_is_cheap():
    program = (
        "import sys; from mlpdeploy.images import sample_photographs\n"
        "try: sample_photographs()\n"
        "except Exception: pass\n"
        "print([name for name in ('PIL', 'sklearn', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
