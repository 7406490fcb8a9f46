"""Which class a folder means: by map, by label, by order; never by guess."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.evaluation.classes import class_indices, read_class_map

NUMBERED = ("class 0", "class 1", "class 2")


def test_as_many_folders_as_classes_are_taken_in_order() -> None:
    assert class_indices(["cat", "dog", "fish"], NUMBERED, 3) == {"cat": 0, "dog": 1, "fish": 2}
    assert class_indices(["0", "1", "2"], (), 3) == {"0": 0, "1": 1, "2": 2}


def test_labels_win_over_the_order() -> None:
    assert class_indices(["cat", "dog", "fish"], ("fish", "dog", "cat"), 3) == {"cat": 2, "dog": 1, "fish": 0}
    assert class_indices(["dog"], ("fish", "dog", "cat"), 3) == {"dog": 1}


def test_the_map_wins_over_everything() -> None:
    assert class_indices(["cat"], ("cat", "dog"), 2, {"cat": 1, "more": 0}) == {"cat": 1}


@pytest.mark.parametrize(
    ("folders", "labels", "classes", "class_map", "message"),
    [
        (["a", "b"], NUMBERED, 3, None, "2 class folders for 3 classes, and 'a' is no label"),
        (["cat", "x"], ("cat", "dog"), 2, None, "'cat' is a label of the model and 'x' is none"),
        (["crane"], ("crane", "dog", "crane"), 3, None, "2 classes of the model have the label 'crane'"),
        ([str(n) for n in sorted(map(str, range(11)))], (), 11, None, "as text '10' is before '2'"),
        (["a"], (), 2, {"b": 0}, "does not name the folder 'a'"),
        (["a"], (), 2, {"a": 2}, "has 2 for 'a'; wanted 0 to 1"),
        (["a", "b"], (), 2, {"a": 1, "b": 1}, "has 1 for 'a' and for 'b'"),
    ],
)
def test_what_is_not_certain_is_refused(folders, labels, classes, class_map, message) -> None:
    with pytest.raises(UsageError, match=message):
        class_indices(folders, labels, classes, class_map)


def test_read_class_map(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"cat": 3}))
    assert read_class_map(path) == {"cat": 3}
    for text in ('["cat"]', '{"cat": "3"}', '{"cat": true}', "{"):
        path.write_text(text)
        with pytest.raises(UsageError, match="class map"):
            read_class_map(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_class_map(tmp_path / "missing.json")
