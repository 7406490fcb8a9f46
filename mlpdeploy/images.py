"""Photographs: find the files, decode them to 8-bit RGB or refuse them by name, and make the input tensor of one."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlpdeploy.errors import ImageError, MissingDependencyError, MlpDeployError, UsageError
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.plugins.cpu_pictures import prepare_picture

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 64_000_000  # 64 megapixels are 192 MB once decoded
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
# Of pictures that are not read.
_FOREIGN = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".tga", ".dng", ".cr2", ".nef", ".arw"})
COLOR_ORDERS = {"RGB": 3, "L": 1}  # -> channels
# The formats that Pillow may try. The list keeps out the plugins that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
# A phone's JPEG with a second picture behind it (stereo, gain map). The first one is the photograph.
MULTI_PICTURE_JPEG = "MPO"

_EXIF_ORIENTATION = 0x0112
# EXIF 2.32, 4.6.5: orientation -> the transposition (a name in PIL.Image.Transpose) that brings the picture upright.
_TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_RESAMPLING = {"bicubic": "BICUBIC", "bilinear": "BILINEAR"}  # -> a name in PIL.Image.Resampling


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture as an RGB image of 8 bits a channel, upright as its EXIF orientation says.

    Grey, palette, 1-bit, YCbCr and CMYK pictures are converted as Pillow converts them. An alpha channel is dropped
    and not composited, as timm's `convert("RGB")` does, so the colours under transparent pixels count. Of 16-bit
    pictures the high byte is taken: Pillow does so for colour, but clips grey at 255. Colour profiles are not applied.

    Args:
        path: a file of one of `FORMATS`.
        max_pixels: the most that are decoded; a larger picture is refused from its header.

    Raises:
        ImageError: the file is missing, empty, a folder or no picture; it is truncated or damaged; it is animated, has
            several pages, too many pixels or none; or it holds numbers of unknown range (floating point, 32 bits).
    """
    path = Path(path)
    _check_file(path)
    return _decoded(path, path, max_pixels)


def image_from_bytes(data: bytes | bytearray | memoryview, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in a file's bytes, as `read_image` does."""
    if not len(data):
        raise ImageError("the picture is empty", "an image file")
    return _decoded(io.BytesIO(data), "the picture", max_pixels)


def _decoded(file: Path | io.BytesIO, path: Path | str, max_pixels: int) -> Image.Image:
    """Return the picture in a file that messages call `path`; see `read_image`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_header(image, path, max_pixels)
            image.load()
            orientation = image.getexif().get(_EXIF_ORIENTATION)
            rgb = _rgb_from(image, path)
    except MlpDeployError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image that can be read", f"one of {', '.join(FORMATS)}", "convert it to JPEG or PNG"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} has too many pixels ({error})", _megapixels(max_pixels), "make it smaller") from error
    # Pillow's decoders raise nearly every class there is for a damaged file.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{path} is truncated or damaged ({reason})", "a whole picture", "copy it again") from error
    name = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return rgb.transpose(Image.Transpose[name]) if name else rgb


def _check_file(path: Path) -> None:
    """Raise ImageError unless `path` is a regular file with something in it (a pipe would block the reader)."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist", "an image file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read ({error})", "an image file") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder", "an image file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is a pipe or a device", "an image file")
    if status.st_size == 0:
        raise ImageError(f"{path} is empty", "an image file", "copy it again")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{path} cannot be read (permission denied)", "an image file", "make it readable")


def _check_header(image: Image.Image, path: Path | str, max_pixels: int) -> None:
    """Raise ImageError for what the header alone rules out; nothing is decoded."""
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"{path} cannot be checked: this process tells Pillow to accept truncated files",
            fix="leave PIL.ImageFile.LOAD_TRUNCATED_IMAGES False",
        )
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{path} has {width} x {height} pixels", "at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(f"{path} has {width} x {height} pixels", _megapixels(max_pixels), "make it smaller")
    frames = 1 if image.format == MULTI_PICTURE_JPEG else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{path} has {frames} frames or pages", "one picture", "save one of them as a file")
    if image.mode == "F":
        raise ImageError(f"{path} holds floating-point pixels", "8 or 16 bits a channel", "convert it to PNG")


def _megapixels(pixels: int) -> str:
    return f"at most {pixels / 1e6:g} megapixels"


def _rgb_from(image: Image.Image, path: Path | str) -> Image.Image:
    """Return a picture with 8 bits a channel: this one, or a copy.

    Raises:
        ImageError: an integer picture with values outside of 0..65535.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise ImageError(f"{path} has pixel values from {low} to {high}", "0 to 65535", "convert it to 8 bits")
        # Of a TIFF's 32 bits a picture may use eight; a PGM of 16 bits has the same mode.
        bits = 0 if (image.mode, image.format) == ("I", "TIFF") and high <= 0xFF else 8
        return Image.fromarray((values >> bits).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # The same colours as in one step, without Pillow's warning about transparency in a palette.
        return image.convert("RGBA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Return the input tensor of one picture: resized, cropped at the centre, scaled to 0..1, normalized.

    Equal bit for bit to the evaluation transform of timm 1.0 on torchvision 0.29 (`Resize` of the shorter side to
    floor(crop / crop_pct) with antialiasing, `CenterCrop`, `ToTensor`, `Normalize`). A picture smaller than the crop
    is padded with black. For a crop that is not square the picture is scaled, its aspect kept, until it just covers
    both sides, as timm does; timm then always takes bilinear interpolation, here the declared one holds.

    Args:
        image: as `read_image` returns it. It is converted to `preprocessing.color_order` first.
        preprocessing: from the manifest.

    Returns:
        (C, H, W) float32, contiguous.

    Raises:
        ImageError: the picture is so elongated that resizing it would exceed `MAX_PIXELS`.
        UsageError: `preprocessing` itself is impossible.
    """
    from PIL import Image

    check_preprocessing(preprocessing)
    crop = preprocessing.height_width
    if image.mode != preprocessing.color_order:
        image = image.convert(preprocessing.color_order)
    height, width = _resized_height_width((image.height, image.width), crop, preprocessing.crop_pct)
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"a picture of {image.width} x {image.height} pixels is too elongated: resized it has {width} x {height}",
            _megapixels(MAX_PIXELS),
            "crop it",
        )
    corner = _crop_start(height, crop[0]), _crop_start(width, crop[1])
    bicubic = preprocessing.interpolation == "bicubic"
    levels = _levels(tuple(preprocessing.mean), tuple(preprocessing.std))
    prepared = prepare_picture(image, (height, width), corner, crop, bicubic, levels)
    if prepared is not None:
        return prepared
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling[_RESAMPLING[preprocessing.interpolation]])
    top, left = corner
    # Pillow fills what lies outside of the picture with zeros.
    shown = np.asarray(image.crop((left, top, left + crop[1], top + crop[0]))).reshape(*crop, -1)
    return np.stack([values.take(shown[..., channel]) for channel, values in enumerate(levels)])


@functools.lru_cache(maxsize=64)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Return (C, 256) float32: what becomes of the values of each channel, in the arithmetic of float32."""
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    each = ((scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True))
    return np.stack(list(each))


def check_preprocessing(preprocessing: Preprocessing) -> None:
    """Raise UsageError for settings that no picture can be prepared with."""
    p = preprocessing
    if p.interpolation not in _RESAMPLING:
        raise UsageError(f"unknown interpolation {p.interpolation!r}", f"one of {', '.join(_RESAMPLING)}")
    if p.color_order not in COLOR_ORDERS:
        raise UsageError(f"unknown color order {p.color_order!r}", f"one of {', '.join(COLOR_ORDERS)}")
    channels = COLOR_ORDERS[p.color_order]
    if (len(p.mean), len(p.std)) != (channels, channels):
        raise UsageError(f"mean {p.mean} and std {p.std}", f"{channels} numbers each")
    if not all(map(math.isfinite, (*p.mean, *p.std))) or min(p.std) <= 0:
        raise UsageError(f"mean {p.mean} and std {p.std}", "finite numbers, std above zero")
    sides = min(p.height_width), max(p.height_width)
    if sides[0] < 1 or not sides[1] / MAX_PIXELS <= p.crop_pct <= sides[0]:
        raise UsageError(
            f"a crop of {p.height_width} pixels with crop_pct {p.crop_pct}",
            f"sides of at least 1 pixel, resized ones of at most {MAX_PIXELS}",
        )


def _resized_height_width(height_width: tuple[int, int], crop: tuple[int, int], crop_pct: float) -> tuple[int, int]:
    """Return the (height, width) that the picture is resized to, in pixels, rounded as torchvision and timm do."""
    height, width = height_width
    target_height, target_width = (math.floor(side / crop_pct) for side in crop)
    if target_height != target_width:
        ratio = min(height / target_height, width / target_width)
        return round(height / ratio), round(width / ratio)
    if width <= height:
        return int(target_width * height / width), target_width
    return target_height, int(target_height * width / height)


def _crop_start(size: int, crop: int) -> int:
    """Return the crop's first pixel along one axis, negative where the picture is smaller than the crop."""
    return -((crop - size) // 2) if crop > size else round((size - crop) / 2.0)


def or_skip_it(error: ImageError) -> ImageError:
    """Return the error of one picture among many, which could also be passed over."""
    fix = f"{error.fix}, or pass --skip-bad" if error.fix else "pass --skip-bad to go on without it"
    return ImageError(error.got, error.wanted, fix)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files as given, and in place of each folder the images under it, sorted, by their `SUFFIXES`.

    Hidden files and folders are passed over: macOS leaves `._photo.jpg` beside `photo.jpg`.

    Raises:
        UsageError: a path does not exist or cannot be looked at, a folder holds no image or cannot be listed, or
            nothing is given.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a name with a zero in it names nothing
            raise UsageError(f"{path} does not exist", "an image file or a folder of them") from None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror})", "an image file or a folder of them"
            ) from error
        found += _images_under(path) if stat.S_ISDIR(mode) else [path]
    if not found:
        raise UsageError("no image is given", "image files or folders of them")
    return found


def _images_under(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be listed ({error.strerror})", fix="make it readable")

    found: list[Path] = []
    foreign: Counter[str] = Counter()
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(root, name) for name in shown if name.lower().endswith(SUFFIXES)]
        foreign.update(suffix for suffix in (Path(name).suffix.lower() for name in shown) if suffix in _FOREIGN)
    if not found:
        raise UsageError(f"{folder} holds no image", f"files that end in {', '.join(SUFFIXES)}")
    if foreign:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(foreign.items()))
        warnings.warn(f"pictures in {folder} that are not read: {kinds}", stacklevel=4)
    return sorted(found)


def sample_photographs() -> list[Path]:
    """Return the two photographs that scikit-learn ships (a temple and a flower, 640 x 427 pixels, CC BY).

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")  # finds it without importing it
    for folder in (package.submodule_search_locations or []) if package else []:
        paths = [Path(folder, "datasets", "images", name) for name in ("china.jpg", "flower.jpg")]
        if all(path.is_file() for path in paths):
            return paths
    raise MissingDependencyError("the sample photographs are not there", fix="run: pip install scikit-learn")
