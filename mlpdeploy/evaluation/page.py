"""The report as one HTML file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mlpdeploy.artifact import disk_errors, write_file
from mlpdeploy.evaluation import charts
from mlpdeploy.evaluation.report import EvaluationReport, Result
from mlpdeploy.evaluation.table import cells, comparisons, images_used, percent, titles
from mlpdeploy.webpage import html_table, page

MAX_CLASSES = 24  # of a matrix or a chart that can be read


def write_report(report: EvaluationReport, json_path: Path | None, html_path: Path | None) -> None:
    """Write the results file and the page, each whole or not at all.

    Raises:
        ArtifactError: the place cannot be written.
    """
    for path, make in ((json_path, report.to_json), (html_path, lambda: html_page(report))):
        if path is not None:
            path = Path(os.path.abspath(path))
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            # A file name that is no UTF-8 stays readable.
            write_file(path, make().encode("utf-8", "backslashreplace"))


def html_page(report: EvaluationReport) -> str:
    """Return the page; every text that comes from a file or a user is escaped."""
    models = ", ".join(dict.fromkeys(str(result.model["name"]) for result in report.results))
    names = [report.label(result) for result in report.results]
    body = [
        f"<h1>Accuracy of {escape(models)}</h1>",
        f"<p>{escape(images_used(report))}</p>",
        _random_note(report),
        _table(report),
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in comparisons(report)) + "</ul>",
        _legend(names),
        "<h2>Accuracy</h2>",
        _accuracy(report, names),
        "<h2>Calibration</h2>",
        '<p class="note">Of the images in a bar so many are right; on the diagonal confidence and accuracy are equal. '
        "The mark is the mean confidence. ECE is the mean distance, weighted by images.</p>",
        _cards(
            (
                f"{name}: ECE {100 * result.quality.ece:.2f} %, NLL {result.quality.nll:.4f}",
                charts.reliability(result.quality.reliability, index, f"reliability of {name}"),
            )
            for index, (name, result) in enumerate(zip(names, report.results, strict=True))
        ),
        _agreement(report, names),
        "<h2>Confusions</h2>",
        _confusions(report, names),
        "<h2>Size and speed</h2>",
        '<p class="note">Images/s as observed while the accuracy was measured, without decoding: a side note and no '
        "benchmark.</p>",
        _cards(_size_and_speed(report, names)),
        _details(report),
    ]
    return page(f"Accuracy of {models}", body)


def _random_note(report: EvaluationReport) -> str:
    if not any(result.model["random_weights"] for result in report.results):
        return ""
    return "<p><strong>Random weights: the classes mean nothing, the equality with PyTorch does.</strong></p>"


def _table(report: EvaluationReport) -> str:
    return html_table(titles(report), [cells(result) for result in report.results], texts=3)


def _legend(names: Sequence[str]) -> str:
    signs = [charts.svg(12, "", [charts.marker(index, 6, 6)], 12) for index in range(len(names))]
    items = "".join(f"<li>{sign} {escape(name)}</li>" for sign, name in zip(signs, names, strict=True))
    return f'<ul class="legend">{items}</ul>'


def _cards(items: Iterable[tuple[str, str]]) -> str:
    """Return cards side by side where there is room; each item is a title and markup."""
    cards = "".join(f'<section class="card"><h3>{escape(title)}</h3>{chart}</section>' for title, chart in items)
    return f'<div class="cards">{cards}</div>'


def _accuracy(report: EvaluationReport, names: Sequence[str]) -> str:
    values = []
    for result in report.results:
        top1 = result.quality.top1
        assert top1.low is not None and top1.value is not None and top1.high is not None
        values.append((top1.low, top1.value, top1.high))
    chart = charts.intervals(names, values, "top-1 accuracy with 95 % intervals")
    present = list(report.results[0].quality.per_class)
    shares = {index: [_share(result, index) for result in report.results] for index in present}
    title = "Per class, %"
    if len(present) > MAX_CLASSES:
        present = sorted(present, key=lambda index: (min(shares[index]), index))[:MAX_CLASSES]
        title = f"Per class, %: the {MAX_CLASSES} hardest of {len(shares)} classes"
    labels = [report.class_names[index] for index in present]
    classes = charts.per_class(labels, [shares[index] for index in present], "accuracy per class")
    return _cards([("Top-1, %, with 95 % intervals", chart), (title, classes)])


def _share(result: Result, index: int) -> float:
    value = result.quality.per_class[index].value
    assert value is not None  # a class stands there only with images
    return value


def _agreement(report: EvaluationReport, names: Sequence[str]) -> str:
    compared = [(index, result) for index, result in enumerate(report.results) if result.agreement is not None]
    if not compared:
        return ""
    head = ("candidate", "same top-1 %", "largest error", "mean error", "median of images", "p99 of images", "SQNR dB")
    rows, cards = [], []
    for index, result in compared:
        agreement, errors = result.agreement, result.errors
        assert agreement is not None and errors is not None
        figures = (agreement.max_error, agreement.mean_error, errors.p50, errors.p99)
        sqnr = "exact" if agreement.sqnr_db is None else f"{agreement.sqnr_db:.1f}"
        rows.append((names[index], percent(agreement.top1), *(f"{figure:.1e}" for figure in figures), sqnr))
        equal = f" ({errors.equal} images without any)" if errors.equal else ""
        cards.append((f"{names[index]}{equal}", charts.error_histogram(errors, index, f"errors of {names[index]}")))
    note = (
        '<p class="note">Errors are differences of logits over the standard deviation of all of PyTorch\'s logits. The '
        "charts count images by their largest error.</p>"
    )
    return "<h2>Agreement with PyTorch</h2>" + note + html_table(head, rows, texts=1) + _cards(cards)


def _confusions(report: EvaluationReport, names: Sequence[str]) -> str:
    """Return matrices for few classes, and the most frequent confusions of each candidate for many."""
    classes = len(report.class_names)
    cards = []
    for index, (name, result) in enumerate(zip(names, report.results, strict=True)):
        if classes <= MAX_CLASSES:
            counts = [[0] * classes for _ in range(classes)]
            for true, predicted, count in result.quality.confusion:
                counts[true][predicted] = count
            cards.append((name, charts.confusion(report.class_names, counts, index, f"confusion matrix of {name}")))
            continue
        wrong = sorted((row for row in result.quality.confusion if row[0] != row[1]), key=lambda row: -row[2])
        rows = [(report.class_names[t], report.class_names[p], str(count)) for t, p, count in wrong[:MAX_CLASSES]]
        cards.append((name, html_table(("true", "taken for", "images"), rows, texts=2)))
    return _cards(cards)


def _size_and_speed(report: EvaluationReport, names: Sequence[str]) -> list[tuple[str, str]]:
    sizes = [None if result.file_bytes is None else result.file_bytes / 1e6 for result in report.results]
    speeds = [result.images_per_s for result in report.results]
    return [
        ("MB on disk of the file that runs", charts.bars(names, sizes, "MB", "size on disk")),
        ("Images/s, observed", charts.bars(names, speeds, "images/s", "speed")),
    ]


def _details(report: EvaluationReport) -> str:
    """Return what was left out, what to know, and what one needs to repeat it."""
    bad = "".join(f"<li>{escape(reason)}</li>" for reason in report.bad.values())
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    models = "".join(
        f"<li>{escape(report.label(result))}: {escape(result.file or 'file not known')}, manifest "
        f"{result.manifest_sha256[:12]}, weights: {escape(str(result.model['source']))}</li>"
        for result in report.results
    )
    tools = ", ".join(f"{name} {version}" for name, version in report.tools.items())
    return (
        (f"<h2>Left out: {len(report.bad)} images</h2><ul>{bad}</ul>" if bad else "")
        + (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
        + "<h2>How it was measured</h2>"
        + f"<ul><li>{escape(report.date_utc)}, {escape(str(report.machine['cpu']))}, "
        f"{report.options['threads']} threads, batch {report.options['batch']}</li><li>{escape(tools)}</li>"
        f"<li>data {escape(report.data['source'])}, checksum {report.data['sha256'][:12]}</li>{models}</ul>"
    )
