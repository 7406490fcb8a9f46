"""The page: complete, self-contained, and harmless whatever the labels are."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_asmlp

import mlpdeploy
from mlpdeploy.evaluation.page import MAX_CLASSES, html_page, write_report
from mlpdeploy.export.export import export_model

evaluate = functools.partial(mlpdeploy.evaluate_artifacts, threads=1)

HOSTILE = ("<script>alert(1)<", '"><img src=x onerror=alert(1)>', "a&b", "'c'", "]]>", "--><b>", "plain")


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    VOID = ("meta", "line", "rect", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_folders(root: Path, pictures: np.ndarray) -> Path:
    for number, picture in enumerate(pictures[:28]):
        # A slash cannot be in a folder's name.
        folder = root / HOSTILE[number % 7].replace("/", "")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return root


def test_hostile_labels_are_only_text(exported: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    data = hostile_folders(tmp_path / "<b>data", pictures)
    (data / HOSTILE[0] / "<i>bad.png").write_bytes(b"no picture")
    report = evaluate([exported], data, skip_bad=True)
    text = html_page(report)
    page = Page(text)
    assert not {"script", "img", "b", "i", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE[0] in "".join(page.texts)
    assert "<i>bad.png" in "".join(page.texts)


def test_nothing_comes_from_elsewhere(exported: Path, labelled: Callable[[int], Path]) -> None:
    text = html_page(evaluate([exported], labelled(4)))
    page = Page(text)
    assert not [pair for pair in page.attributes if pair[0] in ("src", "href", "xlink:href", "srcset", "data")]
    assert "url(" not in text and "@import" not in text
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in text
    assert ("name", "viewport") in page.attributes


def test_it_shows_what_was_found(exported: Path, labelled: Callable[[int], Path]) -> None:
    text = html_page(evaluate([exported], labelled(6)))
    page = Page(text)
    shown = "".join(page.texts)
    assert page.texts.count("90.00") == 2  # top-1 of both
    assert "right and wrong on the same images" in shown
    assert "Random weights" in shown
    labels = [value for name, value in page.attributes if name == "aria-label"]
    for kind in ("top-1 accuracy", "accuracy per class", "reliability of", "errors of", "confusion matrix", "size"):
        assert any(label.startswith(kind) for label in labels), kind
    # Six of the labels are wrong, so the matrix has 54 images on its diagonal; the tooltips say so.
    told = [re.match(r"(\d+) of \d+ of (.+) taken for (.+)", value) for value in page.texts]
    right = [int(match[1]) for match in told if match and match[2] == match[3]]
    assert sum(right) == 2 * 54


def test_without_a_reference_there_is_no_agreement(exported: Path, labelled: Callable[[int], Path]) -> None:
    assert "Agreement with PyTorch" not in html_page(evaluate([exported], labelled(4), torch=False))


def test_many_classes_become_lists(tmp_path: Path, pictures: np.ndarray) -> None:
    export_model(tiny_asmlp(num_classes=60), tmp_path / "many", verify=False)
    np.savez(tmp_path / "x.npz", images=pictures, labels=np.arange(60))
    report = evaluate([tmp_path / "many"], tmp_path / "x.npz", torch=False)
    text = html_page(report)
    Page(text)
    assert f"the {MAX_CLASSES} hardest of 60 classes" in text
    assert "taken for" in text and "confusion matrix" not in text
    assert len(text) < 200_000


@pytest.mark.parametrize("wrong", [0, 60])
def test_all_right_and_all_wrong_can_be_drawn(exported: Path, labelled: Callable[[int], Path], wrong: int) -> None:
    text = html_page(evaluate([exported], labelled(wrong), backends=["torch"]))
    Page(text)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_a_path_that_is_no_utf8_is_written(exported: Path, labelled: Callable[[int], Path], tmp_path: Path) -> None:
    report = evaluate([exported], labelled(0), torch=False)
    report = dataclasses.replace(report, data={**report.data, "source": "photos\udcff"})
    write_report(report, tmp_path / "r.json", tmp_path / "r.html")
    assert "photos\\udcff" in (tmp_path / "r.html").read_text(encoding="utf-8")
