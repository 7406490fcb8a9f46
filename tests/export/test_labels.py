"""The names of the classes, in the order of the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.export.labels import in_order, read_labels


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "élan"],
        ("cat", "dog", "élan"),
        {0: "cat", 1: "dog", 2: "élan"},
        {"2": "élan", "0": "cat", "1": "dog"},
        {"élan": 2, "cat": 0, "dog": 1},
    ],
)
def test_lists_and_both_kinds_of_dicts(labels: Any, tmp_path: Path) -> None:
    assert in_order(labels) == ["cat", "dog", "élan"]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    assert read_labels(path) == ["cat", "dog", "élan"]


def test_digits_as_labels_are_told_from_indices() -> None:
    assert in_order({"1": 0, "0": 1}) == ["1", "0"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"cat", "dog"}, "labels as a set"),
        ("cat", "labels as a str"),
        (7, "labels as a int"),
        ([1, 2], "the label 1; wanted a text"),
        (["a\nb"], "one line"),
        (["a\x1b[31m"], "one line"),
        (["\ud800"], "one line"),
        (["cat", " "], "one line"),
        ({"cat": 0, "dog": 2}, "indices 0, 2; wanted 0 to 1"),
        ({"cat": 0, "dog": 0}, "indices 0, 0"),
        ({"cat": "x"}, "a dict of other things"),
    ],
)
def test_what_has_no_order_or_is_no_line_is_refused(labels: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        in_order(labels)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for name in ("dog", "cat", ".cache"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / "notes.txt").write_text("x")
    assert read_labels(tmp_path / "train") == ["cat", "dog"]
    with pytest.raises(UsageError, match="has no folder inside"):
        read_labels(tmp_path / "train" / "cat")
