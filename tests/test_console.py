"""What commands print of an artifact's assumptions."""

from __future__ import annotations

from mlpdeploy.console import input_lines

PREPARED = {
    "height_width": [224, 224],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "color_order": "RGB",
}


def test_pictures_and_classes() -> None:
    assert input_lines(PREPARED, ["cat", "dog", "élan", "zebra"]) == [
        "pictures: RGB, bicubic to 256, crop 224x224",
        "pixels in 0..1: minus 0.485, 0.456, 0.406, over 0.229, 0.224, 0.225",
        "4 labels: cat, dog, ..., zebra",
    ]
    oblong = PREPARED | {"height_width": [224, 320]}
    assert input_lines(oblong, [])[0] == "pictures: RGB, bicubic to 256 x 365, crop 224x320"
    assert input_lines(None, ["cat", "dog"]) == ["2 labels: cat, dog"]
    assert input_lines(None, ["cat"]) == ["1 labels: cat"]
    assert input_lines(None, []) == []
