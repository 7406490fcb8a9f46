"""Which class of the model a folder of images means; what is not certain is refused."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlpdeploy.errors import UsageError

_MAP_FIX = 'say it with --class-map FILE, a JSON object such as {"cat": 0, "dog": 1}'


def class_indices(
    folders: Sequence[str], labels: Sequence[str], classes: int, class_map: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return {folder name: class index}.

    The map decides where there is one. Otherwise folders that are all named like labels of the model mean these; and as
    many folders as classes mean the classes in the order of their sorted names, as torchvision's ImageFolder has it.

    Args:
        folders: names, sorted.
        labels: of the model, in the order of its logits; empty where it has none.
        classes: of the model.
        class_map: {folder name: class index} as the user gave it; it may name more folders than there are.

    Raises:
        UsageError: the mapping is impossible or not certain.
    """
    if class_map is not None:
        return _by_map(folders, classes, class_map)
    matching = [name for name in folders if name in labels]
    if matching and len(matching) == len(folders):
        return _by_label(folders, labels)
    if len(folders) != classes:
        unknown = next(name for name in folders if name not in labels)
        raise UsageError(
            f"{len(folders)} class folders for {classes} classes, and {unknown!r} is no label of the model",
            "one folder for each class, or folders named like labels",
            _MAP_FIX,
        )
    if matching:
        unknown = next(name for name in folders if name not in matching)
        raise UsageError(f"{matching[0]!r} is a label of the model and {unknown!r} is none", "all or none", _MAP_FIX)
    if all(name.isdecimal() for name in folders):
        for name, following in itertools.pairwise(folders):
            if int(name) > int(following):
                raise UsageError(
                    f"the class folders are numbers whose order is not clear: as text {name!r} is before {following!r}",
                    "names that sort as their numbers do (00, 01, ...)",
                    _MAP_FIX,
                )
    return {name: index for index, name in enumerate(folders)}


def _by_map(folders: Sequence[str], classes: int, class_map: Mapping[str, int]) -> dict[str, int]:
    for name in folders:
        if name not in class_map:
            raise UsageError(f"the class map does not name the folder {name!r}", "an index for each class folder")
        if not 0 <= class_map[name] < classes:
            raise UsageError(f"the class map has {class_map[name]} for {name!r}", f"0 to {classes - 1}")
    (index, count), *_ = Counter(class_map[name] for name in folders).most_common(1)
    if count > 1:
        same = [name for name in folders if class_map[name] == index]
        raise UsageError(f"the class map has {index} for {same[0]!r} and for {same[1]!r}", "one folder for a class")
    return {name: class_map[name] for name in folders}


def _by_label(folders: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    counts = Counter(labels)
    for name in folders:
        if counts[name] > 1:
            raise UsageError(f"{counts[name]} classes of the model have the label {name!r}", "one", _MAP_FIX)
    return {name: list(labels).index(name) for name in folders}


def read_class_map(path: str | Path) -> dict[str, int]:
    """Return {folder name: class index} of a JSON file.

    Raises:
        UsageError: the file cannot be read, or is no JSON object of whole numbers.
    """
    wanted = 'a JSON object such as {"cat": 0, "dog": 1}'
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"the class map {path} cannot be read ({error})", wanted) from error
    if not isinstance(values, dict) or not all(type(value) is int for value in values.values()):
        raise UsageError(f"{path} is no class map", wanted)
    return values
