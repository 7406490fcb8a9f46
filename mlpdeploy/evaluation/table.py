"""The report in words: the rows of its table and a sentence per comparison, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator

from mlpdeploy.evaluation.report import EvaluationReport, Result
from mlpdeploy.evaluation.statistics import Pair, Rate


def titles(report: EvaluationReport) -> tuple[str, ...]:
    """Return the columns' titles; the first three are texts, the others numbers."""
    numbers = (f"top-{report.results[0].quality.k} %", "ECE %", "as PyTorch %", "SQNR dB", "MB", "images/s")
    return ("artifact", "precision", "backend", "top-1 %", "95 %", *numbers)


def cells(result: Result) -> tuple[str, ...]:
    """Return a result's row of the table."""
    quality, agreement = result.quality, result.agreement
    return (
        result.name,
        result.precision,
        "PyTorch" if result.backend == "torch" else result.backend,
        percent(quality.top1),
        interval(quality.top1),
        percent(quality.top_k),
        f"{100 * quality.ece:.2f}",
        "" if agreement is None else percent(agreement.top1),
        "" if agreement is None else "exact" if agreement.sqnr_db is None else f"{agreement.sqnr_db:.1f}",
        "" if result.file_bytes is None else f"{result.file_bytes / 1e6:.2f}",
        "" if result.images_per_s is None else digits(result.images_per_s),
    )


def percent(share: Rate) -> str:
    """Return a share in percent; 100.00 and 0.00 mean all and none."""
    if share.value is None:
        return ""
    text = f"{100 * share.value:.2f}"
    if text == "100.00" and share.hits < share.total:
        return "99.99+"
    return "<0.01" if text == "0.00" and share.hits else text


def interval(share: Rate) -> str:
    """Return a share's interval in percent."""
    return "" if share.low is None or share.high is None else f"{100 * share.low:.1f}-{100 * share.high:.1f}"


def digits(value: float) -> str:
    """Return a number with three digits at least and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def comparisons(report: EvaluationReport) -> Iterator[str]:
    """Yield one sentence per result on how it differs from its reference, or from the first result without one."""
    pairs = {(pair.first, pair.second): pair for pair in report.pairs}
    for index, result in enumerate(report.results):
        baseline = 0 if result.reference is None else result.reference
        if baseline != index:
            yield sentence(pairs[report.label(report.results[baseline]), report.label(result)])


def sentence(pair: Pair) -> str:
    """Return a comparison in words."""
    start = f"{pair.second} against {pair.first}: {100 * pair.difference:+.2f} points"
    if not pair.only_first and not pair.only_second:
        return f"{start}, right and wrong on the same images"
    return (
        f"{start}; {pair.only_second} images only right in the one, {pair.only_first} only in the other "
        f"(p = {pair.p_value:.2g}, exact McNemar test)"
    )


def images_used(report: EvaluationReport) -> str:
    """Return how many images of which data count."""
    used = f"{report.results[0].quality.top1.total} images of {report.data['source']}"
    return f"{used}, the limit of {report.data['limit']} spread over the classes" if report.data["limit"] else used
