"""The shipped weights: what they reach, before and after the export, and on a picture file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train
from click.testing import CliRunner
from PIL import Image

import mlpdeploy
from mlpdeploy.cli import main
from mlpdeploy.images import preprocess
from mlpdeploy.manifest import read_manifest
from mlpdeploy.models.create import create_model

DIGITS = Path(train.__file__).parent
WANTED_PERCENT = 98.0


@pytest.fixture(scope="module")
def in_pytorch(digits: tuple[Any, Any], shipped: tuple[str, Path]) -> np.ndarray:
    """The class of each test digit by PyTorch, (1000,) int64."""
    name, _ = shipped
    return train.predict(create_model(name, checkpoint=DIGITS / f"{name}.safetensors"), digits[1])


def test_the_weights_are_small(shipped: tuple[str, Path]) -> None:
    assert (DIGITS / f"{shipped[0]}.safetensors").stat().st_size < 1.2e6


def test_accuracy_in_pytorch(digits: tuple[Any, Any], in_pytorch: np.ndarray) -> None:
    assert 100 * (in_pytorch == digits[1].labels).mean() >= WANTED_PERCENT


def test_onnx_runtime_names_every_digit_as_pytorch_does(
    digits: tuple[Any, Any], shipped: tuple[str, Path], in_pytorch: np.ndarray
) -> None:
    manifest = read_manifest(shipped[1])
    assert manifest.preprocessing is not None
    images = np.stack([preprocess(Image.fromarray(image), manifest.preprocessing) for image in digits[1].images])
    with mlpdeploy.load(shipped[1]) as session:
        logits = session.run({"input": images})["logits"]
    classes = logits.argmax(1)
    for label in range(10):
        rows = digits[1].labels == label
        np.testing.assert_array_equal(classes[rows], in_pytorch[rows], err_msg=f"digit {label}")
    assert 100 * (classes == digits[1].labels).mean() >= WANTED_PERCENT


def test_the_manifest_says_what_the_digits_need(shipped: tuple[str, Path]) -> None:
    manifest = read_manifest(shipped[1])
    assert manifest.labels == tuple("0123456789")
    assert not manifest.model["random_weights"]
    p = manifest.preprocessing
    assert p is not None
    assert (p.height_width, p.crop_pct, p.color_order) == ((28, 28), 1.0, "L")


def test_the_registered_mean_and_std_are_those_of_the_training_digits(
    digits: tuple[Any, Any], shipped: tuple[str, Path]
) -> None:
    p = mlpdeploy.models.resolve_model(shipped[0]).preprocessing
    pixels = digits[0].images / 255
    assert (p.mean, p.std) == ((round(pixels.mean(), 4),), (round(pixels.std(), 4),))


def test_predict_names_the_digit_of_a_picture(
    digits: tuple[Any, Any], shipped: tuple[str, Path], in_pytorch: np.ndarray, tmp_path: Path
) -> None:
    row = int(np.flatnonzero(in_pytorch == digits[1].labels)[0])
    Image.fromarray(digits[1].images[row]).save(tmp_path / "digit.png")
    result = CliRunner().invoke(main, ["predict", str(shipped[1]), str(tmp_path / "digit.png"), "--top", "1"])
    assert result.exit_code == 0
    assert f"%  {digits[1].labels[row]} " in result.stdout
    assert "random" not in result.output


def test_the_readme_says_what_the_results_file_says(shipped: tuple[str, Path]) -> None:
    name, directory = shipped
    result = json.loads((DIGITS.parent.parent / "benchmarks" / "results" / "digits_training.json").read_text())[name]
    (row,) = [line for line in (DIGITS / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`")]
    assert f"| {result['accuracy_percent']:.1f} % |" in row
    assert f"| {read_manifest(directory).model['parameters']:,} |" in row
    assert result["judged_by"] == "1000 test digits"


def test_the_results_file_is_of_the_shipped_weights(
    digits: tuple[Any, Any], in_pytorch: np.ndarray, shipped: tuple[str, Path]
) -> None:
    result = json.loads((DIGITS.parent.parent / "benchmarks" / "results" / "digits_training.json").read_text())
    # Another machine may round a digit or two at the border differently.
    measured = 100 * (in_pytorch == digits[1].labels).mean()
    assert result[shipped[0]]["accuracy_percent"] == pytest.approx(measured, abs=0.2)
