"""Rows of an array in an `.npy` or `.npz` file, one at a time: memory does not grow with the file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mlpdeploy.errors import UsageError

ARRAY = "images"  # the array's name in an .npz file


class ArrayFile:
    """The header of an array's file, read and checked.

    Attributes:
        shape, dtype: of the whole array.

    Raises:
        UsageError: the file cannot be read, is no such array, or is shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self.shape, self.dtype = self._header(file)

    def rows(self, chosen: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, row) of the chosen rows, which must ascend."""
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        at = 0
        with self._open() as file:
            self._header(file)
            for index in chosen:
                self._skip(file, (index - at) * size)
                data = file.read(size)
                if len(data) < size:
                    raise UsageError(f"{self.path} ends within row {index}", "a whole file", "copy it again")
                at = index + 1
                yield index, np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran and len(shape) > 1:
            raise UsageError(f"{self.path} is stored column by column", "C order", "save np.ascontiguousarray(array)")
        if dtype.hasobject:
            raise UsageError(f"{self.path} holds Python objects", "numbers")
        return shape, dtype

    @staticmethod
    def _skip(file: IO[bytes], count: int) -> None:
        if file.seekable():
            file.seek(count, 1)
            return
        while count > 0:
            count -= len(file.read(min(count, 1 << 20))) or count

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            if self.path.suffix == ".npy":
                with self.path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as file:
                    yield file
        except KeyError:
            raise UsageError(f"{self.path} has no array {ARRAY!r}", f"np.savez(path, {ARRAY}=array)") from None
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UsageError(f"{self.path} cannot be read ({error})", "an array saved by numpy") from error
