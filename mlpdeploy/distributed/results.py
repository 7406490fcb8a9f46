"""The folder of results: one Parquet file for each chunk that is done, and what run they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import disk_errors, write_file
from mlpdeploy.distributed.chunks import Chunk
from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.prediction import Prediction

RUN_NAME = "_run.json"  # pyarrow passes over names that begin so when it reads the folder
OLD_RUN_NAME = "run.json"
FORMAT = "mlpdeploy-predictions"
VERSION = 1


def part_path(output: Path, chunk: Chunk) -> Path:
    """Return where a chunk's results stand once it is done."""
    return output / f"part-{chunk.index:06d}.parquet"


def schema() -> Any:
    """Return the columns: picture, row in a table, error, and the best classes."""
    arrow = require("pyarrow")
    score = arrow.struct([("index", arrow.int32()), ("label", arrow.string()), ("probability", arrow.float64())])
    return arrow.schema(
        [
            ("path", arrow.string()),
            ("row", arrow.int64()),
            ("error", arrow.string()),
            ("top", arrow.list_(score)),
        ]
    )


def write_part(path: Path, batches: Iterable[list[tuple[str, int | None, Prediction]]]) -> tuple[int, int]:
    """Write (path, row, prediction) batch by batch, whole or not at all; return (how many, of these with an error)."""
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    columns, rows, bad = schema(), 0, 0
    # Two workers may write the same chunk after one was given up: each has a name of its own until it is whole.
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    with disk_errors(path):
        try:
            with parquet.ParquetWriter(partial, columns) as writer:
                for batch in batches:
                    table = [_record(*item) for item in batch]
                    writer.write_table(arrow.Table.from_pylist(table, schema=columns))
                    rows += len(table)
                    bad += sum(record["error"] is not None for record in table)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return rows, bad


def _record(path: str, row: int | None, prediction: Prediction) -> dict[str, Any]:
    top = [{"index": s.index, "label": s.label, "probability": s.probability} for s in prediction.top]
    error = None if prediction.error is None else _text(prediction.error)
    return {"path": _text(path), "row": row, "error": error, "top": top}


def _text(text: str) -> str:
    """Return a text that Parquet takes: a name of a file may have bytes that are none, which become escapes."""
    return text.encode(errors="backslashreplace").decode()


def open_run(output: Path, sha256: str, what: dict[str, Any], *, skip_bad: bool = False) -> None:
    """Make the folder of a new run, or find that it is the same one.

    What was done without `skip_bad` has no errors in it, so a run that ended at a bad picture may go on with it.

    Raises:
        UsageError: the folder holds something else: results of other pictures, another model or other options.
    """
    record, old = output / RUN_NAME, output / OLD_RUN_NAME
    body = {"format": FORMAT, "version": VERSION, "work_sha256": sha256, **what, "skip_bad": skip_bad}
    if record.is_file() or old.is_file():
        try:
            known = json.loads((record if record.is_file() else old).read_text())
            same = known["work_sha256"] == sha256 and skip_bad >= known["skip_bad"]
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise UsageError(
                f"{output} holds the results of another run (other pictures, model or options)",
                fix="choose another folder with -o, or remove this one",
            )
        if known != body:
            _write_record(record, body)
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists and holds no results of mlpdeploy", fix="choose another folder with -o")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    _write_record(record, body)


def _write_record(record: Path, body: dict[str, Any]) -> None:
    write_file(record, (json.dumps(body, indent=1) + "\n").encode())
