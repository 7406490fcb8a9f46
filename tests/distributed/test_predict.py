"""Prediction in chunks: the rows are those of `predict`, nothing is done twice, and a killed worker loses nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from click.testing import CliRunner
from PIL import Image

from mlpdeploy.cli import main
from mlpdeploy.distributed.chunks import find_chunks, work_sha256
from mlpdeploy.distributed.cluster import cluster, default_threads
from mlpdeploy.distributed.predict import RayOptions, Summary, predict_on_ray
from mlpdeploy.distributed.results import open_run, write_part
from mlpdeploy.distributed.worker import Worker, WorkerOptions
from mlpdeploy.errors import ImageError, UsageError
from mlpdeploy.prediction import Prediction, predict


class Stopped(BaseException):
    """Ends a run from outside, as Ctrl-C does."""


def paint(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{index:03d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 36, 3), np.uint8)).save(path)
    return paths


def table_of(path: Path, values: list[bytes | None], column: str = "image", groups: int = 3) -> Path:
    pictures = arrow.array(values, None if values else arrow.binary())
    ids = arrow.array(range(len(values)), arrow.int64())
    parquet.write_table(arrow.table({"id": ids, column: pictures}), path, row_group_size=groups)
    return path


def rows_in(output: Path) -> list[dict[str, Any]]:
    found = [parquet.read_table(path).to_pylist() for path in sorted(output.glob("part-*.parquet"))]
    return [row for part in found for row in part]


def same(rows: list[dict[str, Any]], expected: list[Prediction]) -> None:
    """Compare classes and probabilities; batches may be put together otherwise, which moves the last bits."""
    assert len(rows) == len(expected)
    for row, prediction in zip(rows, expected, strict=True):
        assert [score["index"] for score in row["top"]] == [score.index for score in prediction.top]
        assert [score["label"] for score in row["top"]] == [score.label for score in prediction.top]
        probabilities = [score.probability for score in prediction.top]
        assert [score["probability"] for score in row["top"]] == pytest.approx(probabilities, rel=1e-4)


def worker(exported: Path, output: Path, **changes: Any) -> Worker:
    output.mkdir(exist_ok=True)
    values = {"top": 3, "batch": 8, "skip_bad": True, "backend": None, "device": None, "precision": None}
    return Worker(
        WorkerOptions(**{"directory": str(exported), "output": str(output), "threads": 1, **values, **changes})
    )


# Chunks and their files; no Ray.


def test_a_worker_writes_what_predict_says(exported: Path, tmp_path: Path) -> None:
    paths = paint(tmp_path / "pictures", 7)
    paths[2].write_bytes(b"no picture")
    chunks = find_chunks([tmp_path / "pictures"], 3, "image")
    assert [chunk.rows for chunk in chunks] == [3, 3, 1]
    one = worker(exported, tmp_path / "out")
    assert [(done.rows, done.bad) for done in map(one.run, chunks)] == [(3, 1), (3, 0), (1, 0)]
    rows = rows_in(tmp_path / "out")
    same(rows, predict(exported, paths, top=3, threads=1, skip_bad=True))
    assert [row["path"] for row in rows] == list(map(str, paths))
    assert {row["row"] for row in rows} == {None}
    assert [row["error"] is None for row in rows] == [True, True, False, True, True, True, True]
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("nested", [False, True])
def test_tables(exported: Path, tmp_path: Path, nested: bool) -> None:
    """Row groups are chunks; pictures are bytes, or structs that have them as Hugging Face writes them."""
    paths = paint(tmp_path / "pictures", 5)
    data: list[Any] = [path.read_bytes() for path in paths]
    data[1] = None
    values = [{"bytes": item, "path": "x"} for item in data] if nested else data
    tables = tmp_path / "tables"
    tables.mkdir()
    table_of(tables / "a.parquet", values, "picture", groups=2)
    chunks = find_chunks([tables], 100, "picture")
    assert [(chunk.rows, chunk.row_group, chunk.first_row) for chunk in chunks] == [(2, 0, 0), (2, 1, 2), (1, 2, 4)]
    one = worker(exported, tmp_path / "out")
    for chunk in chunks:
        assert one.run(chunk).error is None
    rows = rows_in(tmp_path / "out")
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]
    assert {row["path"] for row in rows} == {str(tables / "a.parquet")}
    assert "row 1" in rows[1]["error"]
    del rows[1], paths[1]
    same(rows, predict(exported, paths, top=3, threads=1))


def test_a_bad_picture_is_an_error_and_leaves_no_file(exported: Path, tmp_path: Path) -> None:
    paths = paint(tmp_path / "pictures", 3)
    paths[1].write_bytes(b"no picture")
    (chunk,) = find_chunks([tmp_path / "pictures"], 10, "image")
    done = worker(exported, tmp_path / "out", skip_bad=False).run(chunk)
    assert done.error is not None
    assert done.error[0] == "ImageError"
    assert str(paths[1]) in done.error[1]
    assert list((tmp_path / "out").iterdir()) == []


def test_two_workers_may_write_one_chunk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, row = tmp_path / "part-000000.parquet", ("a.png", None, Prediction("a.png", error="no picture"))

    def slowly() -> Iterator[list[tuple[str, int | None, Prediction]]]:
        yield [row]
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            assert write_part(path, [[row]]) == (1, 1)
        yield [row]

    assert write_part(path, slowly()) == (2, 2)
    assert parquet.read_table(path).num_rows == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_worker_loads_what_was_asked_for(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "pictures", 1)
    (chunk,) = find_chunks([tmp_path / "pictures"], 10, "image")
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> None:
        asked.append((arguments, options))
        raise UsageError("seen")

    monkeypatch.setattr("mlpdeploy.distributed.worker.load", load)
    values = {"backend": "openvino", "device": "cpu", "threads": 2, "precision": "bf16", "batch": 5}
    assert worker(exported, tmp_path / "out", **values).run(chunk).error == ("UsageError", "seen", "", "")
    wanted = {"threads": 2, "max_batch": 5, "precision": "bf16"}
    assert asked == [((str(exported), "openvino", "cpu"), wanted)]


def test_a_table_that_cannot_be_read_any_more(exported: Path, tmp_path: Path) -> None:
    table = table_of(tmp_path / "t.parquet", [b"x"] * 6)
    first, last = find_chunks([table], 10, "image")
    one = worker(exported, tmp_path / "out")
    table_of(table, [b"x"])
    all_done = [one.run(last)]
    table.write_bytes(table.read_bytes()[:-30])
    all_done.append(one.run(first))
    table.unlink()
    all_done.append(one.run(first))
    for done in all_done:
        assert done.error is not None
        assert done.error[0] == "UsageError"
        assert f"{table} cannot be read" in done.error[1]
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_are_called_as_they_were_found(exported: Path, tmp_path: Path) -> None:
    """Links keep their own names, and bytes that are no text become escapes."""
    (path,) = paint(tmp_path / "stored", 1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").symlink_to(path)
    (folder / "b.png").symlink_to("../stored/000.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/c\xff.png")).write_bytes(b"no picture")
    (tmp_path / "other").symlink_to(folder)
    (chunk,) = find_chunks([tmp_path / "other"], 10, "image")
    assert worker(exported, tmp_path / "out").run(chunk).error is None
    rows = rows_in(tmp_path / "out")
    assert [row["path"] for row in rows] == [str(folder / name) for name in ("a.png", "b.png", "c\\udcff.png")]
    assert [bool(row["error"]) for row in rows] == [False, False, True]


def test_what_there_is_to_do(tmp_path: Path) -> None:
    paint(tmp_path / "pictures", 2)
    table = table_of(tmp_path / "t.parquet", [b"x"])
    with pytest.raises(UsageError, match="together"):
        find_chunks([tmp_path / "pictures", table], 2, "image")
    table_of(tmp_path / "pictures" / "t.parquet", [b"x"])
    with pytest.raises(UsageError, match="together"):
        find_chunks([tmp_path / "pictures"], 2, "image")
    tables = tmp_path / "tables"
    paint(tables, 0)
    table_of(tables / "t.parquet", [b"x"])
    paint(tables / "more", 1)
    with pytest.raises(UsageError, match="together"):
        find_chunks([tables], 2, "image")
    with pytest.raises(UsageError, match="cannot be read"):
        find_chunks([tmp_path / ("x" * 300)], 2, "image")
    with pytest.raises(UsageError, match=r"no column 'picture'; wanted one of id, image"):
        find_chunks([table], 2, "picture")
    with pytest.raises(UsageError, match="is int64"):
        find_chunks([table], 2, "id")
    with pytest.raises(UsageError, match="has no rows"):
        find_chunks([table_of(tmp_path / "empty.parquet", [])], 2, "image")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="cannot be read"):
        find_chunks([tmp_path / "bad.parquet"], 2, "image")


def test_a_folder_keeps_one_run(tmp_path: Path) -> None:
    open_run(tmp_path / "out", "a", {"top": 1})
    open_run(tmp_path / "out", "a", {"top": 1})
    with pytest.raises(UsageError, match="results of another run"):
        open_run(tmp_path / "out", "b", {"top": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(UsageError, match="holds no results"):
        open_run(tmp_path / "mine", "a", {})


def test_a_run_goes_on_with_skip_bad_and_not_without_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for skip_bad in (False, True, True):
        open_run(output, "a", {"top": 1}, skip_bad=skip_bad)
    with pytest.raises(UsageError, match="results of another run"):
        open_run(output, "a", {"top": 1}, skip_bad=False)
    with pytest.raises(UsageError, match="results of another run"):
        open_run(output, "b", {"top": 1}, skip_bad=True)


def test_the_folder_is_read_at_once(exported: Path, tmp_path: Path) -> None:
    """As docs/how-to/many-machines.md says, by pyarrow as by pandas."""
    paint(tmp_path / "pictures", 3)
    output = tmp_path / "classes"
    open_run(output, "a", {})
    one = worker(exported, output)
    for chunk in find_chunks([tmp_path / "pictures"], 2, "image"):
        assert one.run(chunk).rows
    assert parquet.read_table(output).num_rows == 3
    assert parquet.read_table(output).to_pylist() == rows_in(output)
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_parquet(output)["path"]) == [row["path"] for row in rows_in(output)]


def test_a_folder_of_an_older_version_is_known(tmp_path: Path) -> None:
    open_run(tmp_path / "out", "a", {})
    (record,) = (tmp_path / "out").iterdir()
    record.rename(tmp_path / "out" / "run.json")
    open_run(tmp_path / "out", "a", {})
    with pytest.raises(UsageError, match="results of another run"):
        open_run(tmp_path / "out", "b", {})


@pytest.mark.parametrize("kind", ["pictures", "tables"])
def test_replaced_pictures_are_other_work(tmp_path: Path, kind: str) -> None:
    paths = paint(tmp_path / "pictures", 2)
    (tmp_path / "tables").mkdir()
    table = table_of(tmp_path / "tables" / "t.parquet", [b"x", b"y"])
    path = table if kind == "tables" else paths[0]

    def work() -> str:
        return work_sha256(find_chunks([tmp_path / kind], 1, "image"), {})

    before, written = work(), path.stat().st_mtime_ns
    assert work() == before
    os.utime(path, ns=(0, written + 1))
    assert work() != before
    table_of(table, [b"x", b"longer"])
    paths[0].write_bytes(b"longer")
    os.utime(path, ns=(0, written))
    assert work() != before


@pytest.mark.parametrize(
    ("backend", "device", "given", "wanted", "there"),
    [
        (None, None, None, default_threads(), "CPU"),
        ("auto", "cpu", 2, 2, "CPU"),
        (None, "cuda", None, None, "GPU"),
        (None, "cuda", 2, 2, "GPU"),
        ("tensorrt", None, None, None, "GPU"),
        ("onnxruntime-tensorrt", "cuda:0", None, None, "GPU"),
    ],
)
def test_backends_on_a_gpu_get_no_number_of_threads(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    backend: str | None, device: str | None, given: int | None, wanted: int | None, there: str,
) -> None:  # fmt: skip
    """`load` refuses one for TensorRT; Ray shows a worker a GPU only if it asked for one."""
    pytest.importorskip("ray")
    paint(tmp_path / "pictures", 1)
    asked: dict[str, Any] = {}

    def remote(**resources: Any) -> Any:
        asked.update(resources)

        def start(options: WorkerOptions) -> None:
            asked["threads"] = options.threads
            raise Stopped

        return lambda kind: SimpleNamespace(remote=start)

    ray = SimpleNamespace(cluster_resources=lambda: {there: 8}, remote=remote)
    monkeypatch.setattr("mlpdeploy.distributed.predict.cluster", lambda *arguments: contextlib.nullcontext(ray))
    with pytest.raises(Stopped):
        predict_on_ray(
            exported,
            [tmp_path / "pictures"],
            tmp_path / "out",
            RayOptions(),
            backend=backend,
            device=device,
            threads=given,
        )
    assert (asked["threads"], "num_gpus" in asked) == (wanted, there == "GPU")


def test_what_is_asked_for(exported: Path, tmp_path: Path) -> None:
    paint(tmp_path / "pictures", 1)
    arguments = ["predict", str(exported), str(tmp_path / "pictures")]
    for more, text in (
        (["--engine", "rya"], "did you mean ray"),
        (["--engine", "ray"], "add -o FOLDER"),
        (["-o", str(tmp_path / "out")], "without --engine ray"),
        (["--column", "image"], "without --engine ray"),
        (["--engine", "ray", "-o", str(tmp_path / "out"), "--workers", "0"], "workers is 0"),
    ):
        done = CliRunner().invoke(main, [*arguments, *more])
        assert (done.exit_code, text in done.output) == (2, True), done.output
    assert not (tmp_path / "out").exists()


def test_prediction_needs_no_ray() -> None:
    code = "import sys, mlpdeploy.commands.predict, mlpdeploy.prediction; print({'ray', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# On a local Ray cluster.


def workers_with(mark: str) -> list[int]:
    """Return the worker processes of the cluster that was started with `mark` in its environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::Worker" in (folder / "cmdline").read_bytes() and mark in (folder / "environ").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_killed_workers_and_a_killed_run(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are killed after the first chunk, the run after the sixth: the next one does only the rest."""
    pytest.importorskip("ray")
    mark = f"mark-{uuid.uuid4()}"
    monkeypatch.setenv("MLPDEPLOY_TEST_MARK", mark)
    paths, output = paint(tmp_path / "pictures", 40), tmp_path / "out"
    killed: list[int] = []
    options = RayOptions(chunk_rows=4)

    def run(progress: Any = None, skip_bad: bool = False) -> Summary:
        more = {"progress": progress, "skip_bad": skip_bad}
        return predict_on_ray(exported, [tmp_path / "pictures"], output, options, top=3, threads=1, **more)

    def disturb(done: int, total: int) -> None:
        assert total == 40
        if not killed:
            killed.extend(workers_with(mark))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        elif done >= 24:
            raise Stopped

    with cluster(None, 100 << 20):
        with pytest.raises(Stopped):
            run(disturb)
        assert killed
        first = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
        assert 6 <= len(first) < 10
        summary = run()
        assert (summary.rows, summary.bad) == (40, 0)
        assert 24 <= summary.rows_before < 40
        assert {path: path.stat().st_mtime_ns for path in first} == first
        same(rows_in(output), predict(exported, paths, top=3, threads=1))
        assert run() == Summary(str(output), 40, 40, 0, 0)
        # Another picture under the same name is another run; the worker's error is this process's error.
        paths[0].write_bytes(b"no picture")
        with pytest.raises(UsageError, match="another run"):
            run()
        shutil.rmtree(output)
        with pytest.raises(ImageError, match=r"000\.png"):
            run()
        # It can be passed over then, and what was done is not done again.
        summary = run(skip_bad=True)
        assert (summary.rows, summary.bad) == (40, 1)
