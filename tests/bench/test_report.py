"""The report as data, JSON, table and picture."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from mlpdeploy.bench.candidates import LABELS, OURS
from mlpdeploy.bench.measure import Timing
from mlpdeploy.bench.memory import MemoryUse
from mlpdeploy.bench.plot import plot_png
from mlpdeploy.bench.report import BenchReport, Result, print_report, read_report
from mlpdeploy.bench.run import write_report
from mlpdeploy.errors import ArtifactError, InternalError, MissingDependencyError, UsageError


def timed(name: str, batch: int, p50_ms: float) -> Result:
    """Return a measured result; ours takes 10 ms a row."""
    timing = Timing(
        name,
        batch,
        12,
        p50_ms,
        1.1 * p50_ms,
        1.2 * p50_ms,
        0.9 * p50_ms,
        p50_ms,
        batch * 1000 / p50_ms,
        p50_ms / (10 * batch),
    )
    return Result(name, batch, "measured", output_error=0.0 if name == OURS else 2e-6, timing=timing)


def a_report(**changes: object) -> BenchReport:
    """Return a report with a result of every kind."""
    results = []
    for batch in (1, 8):
        results += [
            timed(OURS, batch, 10.0 * batch),
            timed("torch-eager", batch, 25.0 * batch),
            Result("torch-compile", batch, "unavailable", "no C++ compiler"),
            Result("naive-legacy", batch, "mismatch", "its outputs differ", 0.4),
        ]
    report = BenchReport(
        date_utc="2030-01-02T03:04:05+00:00",
        git_commit="abc",
        machine={"cpu": "a [red] processor"},
        tools={"numpy": "2"},
        model={"name": "asmlp_t", "source": "random weights, seed 0"},
        artifact={"precision": "fp32"},
        options={"batches": [1, 8], "threads": 2, "height_width": [224, 224]},
        results=tuple(results),
        memory=(
            MemoryUse(OURS, 1, 120.0, 30.0, 60_000_000, 210_000_000),
            MemoryUse(OURS, 8, reason="the process ended with -9"),
        ),
    )
    return dataclasses.replace(report, **changes)


def printed(report: BenchReport) -> str:
    target = io.StringIO()
    print_report(report, Console(file=target, width=200))
    return target.getvalue()


def test_a_results_file_comes_back_as_it_was(tmp_path: Path) -> None:
    report = a_report()
    write_report(report, tmp_path / "new" / "bench.json")
    assert read_report(tmp_path / "new" / "bench.json") == report
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["bench.json"]


def test_the_document_says_what_it_is() -> None:
    document = a_report().to_dict()
    assert (document["format"], document["version"], document["baseline"]) == ("mlpdeploy-bench", 1, "mlpdeploy")
    assert document["labels"] == LABELS
    assert set(document) >= {"date_utc", "git_commit", "machine", "tools", "model", "artifact", "options", "memory"}
    eager = document["results"][1]
    assert eager["timing"]["time_over_baseline"] == 2.5
    assert json.loads(a_report().to_json()) == document


def test_what_the_gpu_computes_has_a_column_where_it_is_known() -> None:
    report = a_report()
    assert "GPU ms" not in printed(report)
    ours, *others = report.results
    report = dataclasses.replace(report, results=(dataclasses.replace(ours, gpu_ms=4.321), *others))
    assert "GPU ms" in printed(report) and printed(report).count("4.32") == 1
    assert report.to_dict()["results"][0]["gpu_ms"] == 4.321


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    result = Result("naive-legacy", 1, "mismatch", "", float("inf"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(a_report(results=(result,)), tmp_path / "bench.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no results file"),
        ({"version": 2}, "has version 2; wanted version 1"),
        ({"options": ...}, "is incomplete"),
        ({"results": [{"name": "x"}]}, "is incomplete"),
        ({"results": None}, "is incomplete"),
        ({"memory": [{"name": "x", "unknown": 1}]}, "is incomplete"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    document = {**a_report().to_dict(), **change}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))
    with pytest.raises(ArtifactError, match=message):
        read_report(path)


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_report(path)
    path.write_text(a_report().to_json()[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_report(path)


def test_a_result_has_a_timing_if_and_only_if_it_was_measured() -> None:
    with pytest.raises(InternalError):
        Result("torch-eager", 1, "measured")
    with pytest.raises(InternalError):
        dataclasses.replace(timed("torch-eager", 1, 10), status="mismatch")


def test_the_table_has_every_figure_and_every_reason() -> None:
    text = printed(a_report())
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "mlpdeploy", "100.0", "10.0", "11.0", "12.0", "12", "120", "210"] in rows
    assert "8  PyTorch eager" in text
    assert "2.50x as fast" in text
    assert "a [red] processor" in text
    assert "torch.compile at batch 1, 8: unavailable: no C++ compiler" in text
    assert "at batch 1, 8: mismatch: its outputs differ" in text
    assert "memory of mlpdeploy, batch 8: the process ended with -9" in text


def test_the_table_without_memory_has_no_columns_for_it() -> None:
    assert "peak MB" in printed(a_report())
    assert "peak MB" not in printed(a_report(memory=()))


def test_the_plot_is_a_picture_with_our_bar_in_it(tmp_path: Path) -> None:
    write_report(a_report(), None, tmp_path / "bench.png")
    picture = Image.open(tmp_path / "bench.png").convert("RGB")
    assert picture.width > 1000
    assert picture.height > 400
    colors = {color: count for count, color in picture.getcolors(1 << 24) or []}
    ours = colors[(0x1F, 0x6F, 0xB4)]
    others = colors[(0xB9, 0xC0, 0xC8)]
    assert ours > others > 5000  # ours is 2.5 times as fast, so its bars are longer


def test_names_that_are_no_text_or_formulas(tmp_path: Path) -> None:
    results = [*a_report().results, Result("canonical", 8, "unavailable", "$x_{$ of \udcff")]
    report = a_report(model={"name": "a$x_{$", "source": "checkpoint $x_{$.pth"}, results=tuple(results))
    write_report(report, tmp_path / "bench.json", tmp_path / "bench.png")
    assert read_report(tmp_path / "bench.json") == report


def test_the_plot_grows_with_the_batches() -> None:
    def height(report: BenchReport) -> int:
        return Image.open(io.BytesIO(plot_png(report))).height

    one = a_report(options={**a_report().options, "batches": [1]})
    assert height(a_report()) > height(one) + 100


def test_nothing_measured_is_no_plot() -> None:
    results = tuple(result for result in a_report().results if result.timing is None)
    with pytest.raises(UsageError, match="nothing was measured"):
        plot_png(a_report(results=results))


def test_without_matplotlib_the_results_file_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpdeploy.env.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mlpdeploy\[bench\]"):
        write_report(a_report(), tmp_path / "bench.json", tmp_path / "bench.png")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
