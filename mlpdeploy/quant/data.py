"""Calibration images: chosen evenly, checked, identified by their content, and read a few at a time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mlpdeploy.errors import ImageError, MlpDeployError, UsageError
from mlpdeploy.images import find_images, preprocess, read_image
from mlpdeploy.manifest import Preprocessing, TensorSpec
from mlpdeploy.quant.rows import ArrayFile

FEWEST = 8  # different pictures that are not constant; fewer say nothing about ranges
RECOMMENDED = 32
NAMED = 5  # bad files that one message names

Progress = Callable[[int, int], None]  # (done, of how many)


@dataclass
class CalibrationData:
    """Preprocessed images, read when they are needed; what is kept does not grow with their pixels.

    Attributes:
        count: images.
        sha256: over the chosen images' content, in order, and the preprocessing.
        skipped: files that could not be read and were left out.
        warnings: what the user should be told.
    """

    count: int
    sha256: str
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    _images: Callable[[], Iterator[np.ndarray]] = field(default=lambda: iter(()), repr=False, compare=False)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yield (size, C, H, W) float32 arrays; the last one is filled up with the first images again."""
        rows: list[np.ndarray] = []
        for image in self._images():
            rows.append(image)
            if len(rows) == size:
                yield np.stack(rows)
                rows = []
        for image in self._images() if rows else ():
            if len(rows) == size:
                break
            rows.append(image)
        if rows:
            # Fewer images than one batch has rows: repeat them.
            yield np.stack((rows * size)[:size])


def calibration_images(
    source: str | Path | Sequence[str | Path],
    preprocessing: Preprocessing | None,
    spec: TensorSpec,
    limit: int,
    *,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> CalibrationData:
    """Return at most `limit` images of the source, evenly spaced, all of them checked.

    Args:
        source: a folder of pictures; an `.npy` file, or an `.npz` file with the array `images`: (N, C, H, W) float32,
            preprocessed already, or uint8 pictures, (N, H, W) or (N, H, W, C); a `.txt` file with the path of a picture
            a line (relative to the file); or several paths of pictures.
        preprocessing: from the manifest; None where the model's input is no picture.
        spec: of the model's input.
        limit: the most images.
        skip_bad: leave out pictures that cannot be read, instead of refusing.
        progress: called with (images checked, images).

    Raises:
        UsageError: fewer than 8 images, or fewer than 8 different ones that are not constant; an array of another
            shape or type; NaN or infinite values; pictures for a model without preprocessing.
        ImageError: pictures that cannot be read, by name.
    """
    say = progress or (lambda done, of: None)
    if isinstance(source, str | Path) and Path(source).suffix in (".npy", ".npz"):
        return _from_array(Path(source), preprocessing, spec, limit, say)
    if preprocessing is None:
        raise UsageError(
            "pictures for a model whose input has no preprocessing", "an .npy or .npz file of prepared inputs"
        )
    if isinstance(source, str | Path) and Path(source).suffix == ".txt":
        paths = _listed(Path(source))
    else:
        paths = find_images([source] if isinstance(source, str | Path) else source)
    return _from_files(paths, preprocessing, spec, limit, skip_bad, say)


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices out of `count`, in order: a source is often sorted by class."""
    return list(range(count)) if count <= limit else [index * count // limit for index in range(limit)]


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", "a text file with one path a line") from error
    return find_images([path.parent / line.strip() for line in lines if line.strip()])


def _from_files(
    paths: list[Path], preprocessing: Preprocessing, spec: TensorSpec, limit: int, skip_bad: bool, say: Progress
) -> CalibrationData:
    chosen = [paths[index] for index in evenly_spaced(len(paths), limit)]
    check = _Check(preprocessing)
    good: list[Path] = []
    bad: dict[str, str] = {}
    for done, path in enumerate(chosen):
        try:
            image = read_image(path)
            if not good:
                check_shape(preprocess(image, preprocessing).shape, spec, "the preprocessed picture")
        except ImageError as error:
            bad[str(path)] = error.got
        else:
            check.add(image.tobytes() + repr(image.size).encode(), all(a == b for a, b in _extremes(image)))
            good.append(path)
        say(done + 1, len(chosen))
    if bad and not skip_bad:
        named = "; ".join(list(bad.values())[:NAMED])
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ImageError(f"{len(bad)} of {len(chosen)} calibration images are bad: {named}{more}", fix="or --skip-bad")

    def images() -> Iterator[np.ndarray]:
        for path in good:
            yield preprocess(read_image(path), preprocessing)

    return check.data(images, tuple(bad))


def _extremes(image: object) -> list[tuple[int, int]]:
    found = image.getextrema()  # type: ignore[attr-defined]
    return [found] if isinstance(found[0], int) else list(found)


def _from_array(
    path: Path, preprocessing: Preprocessing | None, spec: TensorSpec, limit: int, say: Progress
) -> CalibrationData:
    file = ArrayFile(path)
    pictures = file.dtype == np.uint8
    if (len(file.shape) != 4 and not (pictures and len(file.shape) == 3)) or file.dtype not in (np.uint8, np.float32):
        raise UsageError(
            f"{path} holds {file.dtype} of shape {file.shape}",
            "(N, C, H, W) float32, preprocessed, or (N, H, W) or (N, H, W, C) uint8 pictures",
        )
    if pictures and (preprocessing is None or file.shape[3:] not in ((), (1,), (3,))):
        raise UsageError(f"{path} holds uint8 of shape {file.shape}", "1 or 3 channels last, for a model of pictures")
    if not pictures:
        check_shape(file.shape[1:], spec, str(path))
    chosen = evenly_spaced(file.shape[0], limit)
    prepare = _picture_preparer(preprocessing) if pictures and preprocessing is not None else np.ascontiguousarray
    check = _Check(preprocessing if pictures else None)
    for done, (index, row) in enumerate(file.rows(chosen)):
        if not pictures and not np.isfinite(row).all():
            raise UsageError(f"row {index} of {path} has NaN or infinite values", "finite numbers")
        if pictures and done == 0:
            check_shape(prepare(row).shape, spec, "the preprocessed picture")
        check.add(np.ascontiguousarray(row).tobytes() + repr(row.shape).encode(), bool(row.min() == row.max()))
        say(done + 1, len(chosen))

    def images() -> Iterator[np.ndarray]:
        for _, row in file.rows(chosen):
            yield prepare(row)

    return check.data(images, ())


def _picture_preparer(preprocessing: Preprocessing) -> Callable[[np.ndarray], np.ndarray]:
    from PIL import Image

    def prepare(row: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(row[:, :, 0] if row.shape[2:] == (1,) else row))
        return preprocess(picture, preprocessing)

    return prepare


def check_shape(shape: Sequence[int], spec: TensorSpec, what: str) -> None:
    """Raise UsageError unless (C, H, W) is what the model takes; `32*height` wants a multiple of 32."""
    wanted = spec.shape[1:]

    def fits(size: int, want: int | str) -> bool:
        if isinstance(want, int):
            return size == want
        factor = re.match(r"(\d+)\*", want)
        return size > 0 and size % int(factor.group(1) if factor else 1) == 0

    if len(shape) != len(wanted) or not all(fits(size, want) for size, want in zip(shape, wanted, strict=True)):
        raise UsageError(f"{what} has the shape {tuple(shape)} (C, H, W)", f"{wanted}")


class _Check:
    """Hashes images one by one and counts the different ones that are not constant."""

    def __init__(self, preprocessing: Preprocessing | None) -> None:
        self.digest = hashlib.sha256(json.dumps(preprocessing and asdict(preprocessing)).encode())
        self.count = 0
        self.different: set[bytes] = set()

    def add(self, content: bytes, constant: bool) -> None:
        single = hashlib.sha256(content).digest()
        self.digest.update(single)
        self.count += 1
        if not constant:
            self.different.add(single)

    def data(self, images: Callable[[], Iterator[np.ndarray]], skipped: tuple[str, ...]) -> CalibrationData:
        """Return the data, or raise UsageError where the images cannot tell ranges."""
        error: MlpDeployError | None = None
        if self.count < FEWEST:
            error = UsageError(f"{self.count} calibration images", f"at least {FEWEST}, better 512")
        elif len(self.different) < FEWEST:
            error = UsageError(
                f"{self.count} calibration images, of which {len(self.different)} are different and not constant",
                f"at least {FEWEST}, as the model will see them",
            )
        if error:
            raise error
        warnings = []
        if len(self.different) < RECOMMENDED:
            warnings.append(f"only {len(self.different)} different calibration images: ranges may be too narrow")
        if skipped:
            warnings.append(f"skipped {len(skipped)} unreadable files: {', '.join(skipped[:NAMED])}")
        return CalibrationData(self.count, self.digest.hexdigest(), skipped, tuple(warnings), images)
