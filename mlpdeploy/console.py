"""What every command prints with: tables and JSON on stdout, steps and progress bars on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

RANDOM_NOTE = "random weights: the classes mean nothing, the speed and the equality with PyTorch do"


def input_lines(preprocessing: Mapping[str, Any] | None, labels: Sequence[str]) -> list[str]:
    """Return what an artifact assumes of its pictures and classes, a line each.

    Args:
        preprocessing: the manifest's, as a dict; None where it has none.
        labels: the manifest's.
    """
    lines = []
    if preprocessing is not None:
        p = preprocessing
        height, width = p["height_width"]
        whole = " x ".join(dict.fromkeys(str(int(side / p["crop_pct"])) for side in (height, width)))
        mean, std = (", ".join(f"{value:g}" for value in p[key]) for key in ("mean", "std"))
        lines.append(f"pictures: {p['color_order']}, {p['interpolation']} to {whole}, crop {height}x{width}")
        lines.append(f"pixels in 0..1: minus {mean}, over {std}")
    if labels:
        shown = [*labels[:2], "..."] if len(labels) > 3 else [*labels[:-1]]
        lines.append(f"{len(labels)} labels: {', '.join([*shown, labels[-1]])}")
    return lines


def show(table: Table) -> None:
    """Print a table to stdout, at its own width where stdout is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(table) if console.is_terminal else Console(width=160, highlight=False).print(table)


def plain_table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """Return a table without frames; columns whose index is in `right` are flush right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    return table


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that draws a progress bar on stderr, where that is a terminal.

    What is printed meanwhile goes to stdout as ever, which then should not be a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    options: dict[str, Any] = {"transient": True, "redirect_stdout": False, "disable": not console.is_terminal}
    with Progress(*columns, console=console, **options) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def phase_bar(label: str) -> Iterator[Callable[[float, str], None]]:
    """Yield a function (share between 0 and 1, what is going on) that draws a bar with both on stderr's terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda done, text: progress.update(task, completed=done, description=text)


def megabytes(count: int) -> str:
    """Return a number of bytes in MB."""
    return f"{count / 1e6:.1f} MB"


def print_json(data: Any) -> None:
    """Write JSON to stdout, in ASCII: a name of a file may be no text, and stdout may take no other."""
    click.echo(json.dumps(data, indent=1))


def print_and_write(data: Any, as_json: bool, text: Callable[[], None], write: Callable[[], None]) -> None:
    """Print `data` as JSON, or `text`, and then write files: neither a closed pipe nor a full disk costs both."""
    try:
        if as_json:
            print_json(data)
        else:
            text()
    finally:
        write()


def steps() -> Callable[[str], None]:
    """Return a function that tells on stderr which step begins, and when."""
    start = time.monotonic()
    return lambda text: click.echo(f"{time.monotonic() - start:6.1f} s  {text}", err=True)
