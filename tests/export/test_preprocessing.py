"""What the manifest says about preprocessing: the registry's, an average for other channels, or the user's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny import named, tiny_asmlp, tiny_vip

from mlpdeploy.cli import main
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.export.preprocessing import preprocessing_for
from mlpdeploy.manifest import Preprocessing, read_manifest
from mlpdeploy.models.registry import MODELS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_the_default_is_the_registrys_at_the_models_size() -> None:
    assert preprocessing_for(tiny_asmlp()) == Preprocessing((32, 32), 0.875, "bicubic", MEAN, STD, "RGB")
    assert preprocessing_for(named(tiny_vip(), "vip_l7")).crop_pct == 0.875


@pytest.mark.parametrize("name", [entry.name for entry in MODELS if entry.family != "vip"] + ["asmlp_custom"])
@pytest.mark.parametrize("side", [224, 256, 320, 384])
def test_the_published_evaluation_of_asmlp_and_cyclemlp_resizes_to_256_of_224(name: str, side: int) -> None:
    model = named(tiny_asmlp(image_size=(side, side)), name)
    preprocessing = preprocessing_for(model)
    assert preprocessing is not None
    assert math.floor(side / preprocessing.crop_pct) == int((256 / 224) * side)


def test_another_number_of_channels_takes_the_average() -> None:
    grey = preprocessing_for(tiny_asmlp(in_chans=1))
    assert grey == Preprocessing((32, 32), 0.875, "bicubic", (0.449,), (0.226,), "L")
    colour = preprocessing_for(named(tiny_asmlp(), "asmlp_digits"))
    assert (colour.mean, colour.std, colour.color_order) == ((0.131,) * 3, (0.308,) * 3, "RGB")
    assert preprocessing_for(tiny_asmlp(in_chans=5)) is None


def test_given_values_take_the_defaults_place() -> None:
    changed = preprocessing_for(
        tiny_asmlp(), mean=(0.0, 0.1, 0.2), std=(0.5, 0.5, 0.5), crop_pct=1.0, interpolation="bilinear"
    )
    assert changed == Preprocessing((32, 32), 1.0, "bilinear", (0.0, 0.1, 0.2), (0.5, 0.5, 0.5), "RGB")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5,)}, "3 numbers each"),
        ({"std": (0.5, 0.5, 0.0)}, "above zero"),
        ({"mean": (0.5, math.nan, 0.5)}, "finite"),
        ({"crop_pct": -1.0}, "crop_pct -1"),
        ({"interpolation": "lanczos"}, "one of bicubic, bilinear"),
    ],
)
def test_impossible_values(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preprocessing_for(tiny_asmlp(), **changes)


def test_values_for_images_that_are_no_pictures() -> None:
    with pytest.raises(UsageError, match=r"std for a model of 5 channels; wanted 1 \(grey\) or 3"):
        preprocessing_for(tiny_asmlp(in_chans=5), std=(1.0,) * 5)


@pytest.mark.parametrize("changes", [{"height_width": (64, 64)}, {"color_order": "L", "mean": (0.5,), "std": (0.5,)}])
def test_export_refuses_preprocessing_of_another_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    other = dataclasses.replace(preprocessing_for(tiny_asmlp()), **changes)
    with pytest.raises(UsageError, match="as the model takes"):
        export_model(tiny_asmlp(), tmp_path / "out", preprocessing=other)
    assert not (tmp_path / "out").exists()


def run(directory: Path, *options: str) -> Any:
    fast = ["--model", "asmlp_digits", "--no-verify", "-o", str(directory)]
    return CliRunner().invoke(main, ["export", *fast, *options])


def test_the_command_line_writes_them_into_the_manifest(tmp_path: Path) -> None:
    options = ["--mean", "0.25", "--std", "0.5", "--crop-pct", "0.875", "--interpolation", "bilinear"]
    assert run(tmp_path / "out", *options).exit_code == 0
    wanted = Preprocessing((28, 28), 0.875, "bilinear", (0.25,), (0.5,), "L")
    assert read_manifest(tmp_path / "out").preprocessing == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mean", "0.5,0.5"], "wanted 1 numbers each"),
        (["--mean", "0.5,x"], "'0.5,x' is not numbers with commas"),
        (["--std", "0"], "std above zero"),
        (["--crop-pct", "0"], "crop_pct 0"),
        (["--interpolation", "nearest"], "one of bicubic, bilinear"),
    ],
)
def test_the_command_line_refuses(tmp_path: Path, options: list[str], words: str) -> None:
    result = run(tmp_path / "out", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
