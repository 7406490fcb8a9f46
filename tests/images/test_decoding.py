"""Decoding: every kind of good picture."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from picture_files import encoded, photo, pixels, png, write
from PIL import Image

ORIENTATION_TAG = 0x0112


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
