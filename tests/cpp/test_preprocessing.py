"""Decoding and preprocessing in C++ against Pillow and mlpdeploy.images: the same values."""

from __future__ import annotations

import dataclasses
import random
import shutil
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native import NativeError, NativeSession, edit
from pictures import SETTINGS, SIZES, noise
from PIL import Image

from mlpdeploy.errors import ImageError, MlpDeployError
from mlpdeploy.images import preprocess, read_image, sample_photographs
from mlpdeploy.manifest import Preprocessing
from mlpdeploy.plugins import cpu_pictures


@pytest.fixture(autouse=True)
def python_takes_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the code that C++ shares with the library of CPU kernels."""
    monkeypatch.setattr(cpu_pictures, "_function", lambda: None)


@pytest.fixture(params=SETTINGS, ids=lambda p: f"{p.height_width}-{p.interpolation}-{p.color_order}-{p.crop_pct}")
def prepared(
    request: pytest.FixtureRequest, build: Path, artifact: Path
) -> Iterator[tuple[NativeSession, Preprocessing]]:
    """A session whose manifest has these settings."""
    edit(artifact, preprocessing=dataclasses.asdict(request.param))
    session = NativeSession(build, artifact)
    yield session, request.param
    session.close()


def shape_of(preprocessing: Preprocessing) -> tuple[int, ...]:
    return (len(preprocessing.mean), *preprocessing.height_width)


def test_every_value_is_that_of_python(prepared: tuple[NativeSession, Preprocessing]) -> None:
    session, preprocessing = prepared
    generator = random.Random(0)
    sizes = SIZES + [(generator.randint(1, 300), generator.randint(1, 300)) for _ in range(20)]
    for seed, size in enumerate(sizes):
        image = noise(size, seed)
        wanted = preprocess(image, preprocessing)
        got = session.prepare_pixels(np.asarray(image), shape_of(preprocessing))
        assert got.tobytes() == wanted.tobytes(), size


def test_too_elongated(prepared: tuple[NativeSession, Preprocessing]) -> None:
    session, preprocessing = prepared
    image = Image.new("RGB", (3_000_000, 1))
    with pytest.raises(ImageError) as python:
        preprocess(image, preprocessing)
    with pytest.raises(NativeError) as native:
        session.prepare_pixels(np.asarray(image), shape_of(preprocessing))
    assert str(native.value) == str(python.value)


@pytest.mark.parametrize(
    "changes", [{"crop_pct": 5e-324}, {"crop_pct": 3e-7, "height_width": (12, 33)}, {"std": (-1.0, 1.0, 1.0)}], ids=str
)
def test_settings_that_no_picture_can_be_prepared_with(build: Path, artifact: Path, changes: dict[str, object]) -> None:
    plain = Preprocessing((32, 32), 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3, "RGB")
    settings = dataclasses.replace(plain, **changes)  # type: ignore[arg-type]
    edit(artifact, preprocessing=dataclasses.asdict(settings))
    image = noise((40, 50), 0)
    with pytest.raises(MlpDeployError) as python:
        preprocess(image, settings)
    with pytest.raises(NativeError) as native:
        NativeSession(build, artifact).prepare_pixels(np.asarray(image), shape_of(settings))
    assert (str(native.value), native.value.code) == (str(python.value), python.value.exit_code)


def save_all(folder: Path) -> list[Path]:
    """Write a photograph in every form of JPEG and PNG that Pillow writes and we read."""
    photograph = Image.open(sample_photographs()[1]).resize((97, 61))
    paths = []

    def save(image: Image.Image, name: str, **options: object) -> None:
        paths.append(folder / name)
        image.save(paths[-1], **options)

    for subsampling in (0, 1, 2):
        save(photograph, f"sub{subsampling}.jpg", quality=87, subsampling=subsampling)
    save(photograph, "progressive.jpg", progressive=True, optimize=True)
    save(photograph.convert("L"), "grey.jpg")
    save(photograph.convert("CMYK"), "cmyk.jpg")
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(photograph, f"turned{orientation}.jpg", exif=exif)
        save(photograph, f"turned{orientation}.png", exif=exif)
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 255, (61, 97), np.uint8))
    rgba = photograph.copy()
    rgba.putalpha(alpha)
    save(rgba, "rgba.png")
    save(photograph.convert("L"), "grey.png")
    save(photograph.convert("LA"), "grey_alpha.png")
    save(photograph.convert("1"), "one_bit.png")
    for colors, bits in ((256, 8), (16, 4), (4, 2), (2, 1)):
        save(photograph.quantize(colors), f"palette{bits}.png", bits=bits)
    save(photograph.quantize(64), "palette_transparent.png", transparency=3)
    deep = np.random.default_rng(1).integers(0, 1 << 16, (61, 97), np.uint16)
    save(Image.fromarray(deep), "grey16.png")
    save(photograph, "grey_transparent.png", transparency=(1, 2, 3))
    return paths


def test_every_form_of_picture_decodes_as_in_python(build: Path, artifact: Path, tmp_path: Path) -> None:
    plain = Preprocessing((61, 61), 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3, "RGB")  # one side is not resized
    edit(artifact, preprocessing=dataclasses.asdict(plain))
    session = NativeSession(build, artifact)
    for path in [*save_all(tmp_path), *sample_photographs()]:
        wanted = preprocess(read_image(path), plain)
        got = session.prepare_file(path, shape_of(plain))
        assert np.abs(got - wanted).max() * 255 <= 1e-3, path.name
    session.close()


def orientations() -> dict[str, bytes]:
    """Return blocks of EXIF that say 6 in more or less usual ways."""

    def block(order: str, kind: int, count: int, value: bytes, magic: bytes = b"", rest: bytes = b"") -> bytes:
        head = magic or struct.pack(order + "2sH", b"II" if order == "<" else b"MM", 42)
        entry = struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, count) + value.ljust(4, b"\0")
        return head + entry + bytes(4) + rest

    blocks = {}
    for order in "<>":
        for kind, letter in ((1, "B"), (2, "c"), (3, "H"), (4, "I"), (6, "b"), (7, "B"), (8, "h"), (9, "i")):
            value = struct.pack(order + letter, b"6" if letter == "c" else 6)
            blocks[f"{order} type {kind}"] = block(order, kind, 1, value)
        short = struct.pack(order + "H", 6)
        blocks[f"{order} twice"] = b"Exif\0\0" + blocks[f"{order} type 3"]
        blocks[f"{order} none"] = block(order, 3, 0, short)
        blocks[f"{order} two"] = block(order, 3, 2, short + struct.pack(order + "H", 3))
        blocks[f"{order} three"] = block(order, 3, 3, struct.pack(order + "I", 26), rest=short * 3)
        blocks[f"{order} three elsewhere"] = block(order, 3, 3, struct.pack(order + "I", 9999))
        swapped = b"II\0*" if order == "<" else b"MM*\0"
        blocks[f"{order} swapped"] = block(order, 3, 1, short, swapped)
    return blocks


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_every_form_of_orientation_is_read_as_in_python(build: Path, artifact: Path, tmp_path: Path, kind: str) -> None:
    plain = Preprocessing((16, 16), 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3, "RGB")
    edit(artifact, preprocessing=dataclasses.asdict(plain))
    session = NativeSession(build, artifact)
    photograph = Image.open(sample_photographs()[0]).resize((24, 16))
    for name, exif in orientations().items():
        if kind == "png" and "twice" in name:
            continue  # libpng passes over it
        path = tmp_path / f"picture.{kind}"
        photograph.save(path, exif=b"Exif\0\0" + exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = preprocess(read_image(path), plain)
        got = session.prepare_file(path, shape_of(plain))
        assert np.abs(got - wanted).max() * 255 <= 1e-3, name
    session.close()


def test_pictures_that_cannot_be_used(build: Path, artifact: Path, tmp_path: Path) -> None:
    session = NativeSession(build, artifact)
    photograph = sample_photographs()[0].read_bytes()
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "animated.png", save_all=True, append_images=frames[1:])
    Image.new("L", (9000, 9000)).save(tmp_path / "huge.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "cut.jpg").write_bytes(photograph[: len(photograph) // 2])
    (tmp_path / "no_end.jpg").write_bytes(photograph[:-2])
    Image.new("RGB", (50, 50), "red").save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no picture")
    names = (
        "animated.png",
        "huge.png",
        "empty.jpg",
        "folder.jpg",
        "cut.jpg",
        "no_end.jpg",
        "cut.png",
        "text.jpg",
        "none.jpg",
    )
    for name in names:
        with pytest.raises(ImageError) as python:
            read_image(tmp_path / name)
        with pytest.raises(NativeError) as native:
            session.prepare_file(tmp_path / name, (3, 32, 32))
        got, wanted = (str(error.value).split(" (")[0] for error in (native, python))
        if name == "text.jpg":  # C++ reads two formats, and says so
            wanted, got = wanted.partition(";")[0], got.partition(";")[0]
        assert got == wanted
    session.close()
    shutil.rmtree(tmp_path / "folder.jpg")
