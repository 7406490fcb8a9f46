"""What there is to do, in chunks whose numbers do not depend on who does them or when."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.classification import EncodedPicture, Picture
from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.images import find_images

PARQUET = ".parquet"
DEFAULT_COLUMN = "image"
ROWS_READ = 64  # of a table at once: encoded pictures are large


@dataclass(frozen=True)
class Chunk:
    """A part of the work, done by one worker and written to one file.

    Attributes:
        index: of the chunk.
        rows: pictures in it.
        paths: image files; empty for rows of a table.
        table: a Parquet file; empty for image files.
        row_group: of the table.
        first_row: of the row group in the table.
        column: of the table with the pictures.
    """

    index: int
    rows: int
    paths: tuple[str, ...] = ()
    table: str = ""
    row_group: int = 0
    first_row: int = 0
    column: str = ""

    def pictures(self) -> Iterator[list[tuple[int | None, Picture]]]:
        """Yield lists of (row in the table or None, picture).

        Raises:
            UsageError: the table cannot be read, or no longer has the row group.
        """
        if not self.table:
            yield [(None, Path(path)) for path in self.paths]
            return
        row = self.first_row
        with _table_errors(self.table), require("pyarrow.parquet").ParquetFile(self.table) as file:
            for batch in file.iter_batches(ROWS_READ, row_groups=[self.row_group], columns=[self.column]):
                found: list[tuple[int | None, Picture]] = []
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    found.append((row, EncodedPicture(f"{self.table} row {row}", data or b"")))
                    row += 1
                yield found


@contextmanager
def _table_errors(table: Path | str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged or missing table into one UsageError."""
    arrow = require("pyarrow")
    try:
        yield
    except (OSError, arrow.ArrowException) as error:
        raise UsageError(f"{table} cannot be read ({error})", "a Parquet file") from error


def find_chunks(inputs: Sequence[Path], rows: int, column: str) -> list[Chunk]:
    """Return the chunks of image files and folders, or of Parquet files and folders of them.

    Args:
        inputs: image files and folders, or Parquet files and folders; not both.
        rows: image files in a chunk; a table's chunks are its row groups.
        column: of the tables, with the bytes of image files, or with structs that have them as `bytes`.

    Raises:
        UsageError: nothing is there, both kinds are, or a table lacks the column.
    """
    tables = [table for path in inputs for table in _tables(path)]
    if not tables:
        paths = [_absolute(path) for path in find_images(inputs)]
        parts = [paths[start : start + rows] for start in range(0, len(paths), rows)]
        return [Chunk(index, len(part), paths=tuple(part)) for index, part in enumerate(parts)]
    if any(not _tables(path) or _has_images(path) for path in inputs):
        raise UsageError("image files and Parquet files together", "one kind", "run the command once for each")
    chunks: list[Chunk] = []
    for table in tables:
        first = 0
        for group, count in enumerate(_row_groups(table, column)):
            if count:
                chunks.append(Chunk(len(chunks), count, (), _absolute(table), group, first, column))
            first += count
    if not chunks:
        raise UsageError(f"{tables[0]} has no rows", "tables with rows")
    return chunks


def _absolute(path: Path) -> str:
    """Return the path from the root. The name itself stays, also that of a link: the results are known by it."""
    return str(path.parent.resolve() / path.name)


def _tables(path: Path) -> list[Path]:
    if os.path.isdir(path):
        return sorted(found for found in path.glob(f"*{PARQUET}") if not found.name.startswith("."))
    return [path] if path.suffix == PARQUET else []


def _has_images(folder: Path) -> bool:
    try:
        return folder.is_dir() and bool(find_images([folder]))
    except UsageError:  # it holds none
        return False


def _row_groups(table: Path, column: str) -> list[int]:
    """Return the rows of each row group."""
    parquet, arrow = require("pyarrow.parquet"), require("pyarrow")
    with _table_errors(table), parquet.ParquetFile(table) as file:
        schema, metadata = file.schema_arrow, file.metadata
    if column not in schema.names:
        raise UsageError(f"{table} has no column {column!r}", f"one of {', '.join(schema.names)}", "name it: --column")
    kind = schema.field(column).type
    if arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)):
        raise UsageError(f"column {column!r} of {table} is {kind}", "the bytes of image files")
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def work_sha256(chunks: Sequence[Chunk], what: dict[str, Any]) -> str:
    """Return a checksum over the work: which pictures, in which chunks, and what is done with them.

    Files count with their size and time: another one may have taken the name meanwhile.
    """
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for chunk in chunks:
        files = chunk.paths or (chunk.table,)
        digest.update(repr((chunk, *map(_size_and_time, files))).encode())
    return digest.hexdigest()


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # told when it is read
        return None
    return found.st_size, found.st_mtime_ns
