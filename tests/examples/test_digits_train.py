"""The training script: a few steps of it, its determinism, its files and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train
from data import Digits
from safetensors.torch import load_file

SHORT = train.Recipe(epochs=3, batch=16)
DEMOS = tuple(entry.name for entry in train.DEMO_MODELS)


@pytest.fixture
def few(digits: tuple[Any, Any]) -> Digits:
    return digits[0].take(np.arange(0, 4000, 50))


@pytest.fixture
def small_split(few: Digits, digits: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "digits_split", lambda: (few, digits[1].take(np.arange(0, 1000, 10))))


@pytest.mark.parametrize("name", DEMOS)
def test_steps_move_every_weight_and_depend_on_the_seed_alone(few: Digits, name: str) -> None:
    one, same, other = (train.fit(name, few, SHORT, seed, 3).state_dict() for seed in (0, 0, 1))
    start = train.create_model(name, seed=0).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
    assert not any(torch.equal(one[key], start[key]) for key in one)


def test_training_lowers_the_loss(few: Digits, capsys: pytest.CaptureFixture[str]) -> None:
    train.fit("asmlp_digits", few, train.Recipe(epochs=8, batch=16, warmup=0.3), 0)
    lines = capsys.readouterr().err.splitlines()
    losses = [float(line.partition("loss ")[2].partition(",")[0]) for line in lines]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.3


def test_augmentation_moves_ink_but_keeps_it(digits: tuple[Any, Any]) -> None:
    images = train.as_tensor(digits[0])[::40]
    changed = train.augment(images, train.Recipe(), torch.Generator().manual_seed(0))
    assert (changed.shape, changed.dtype) == (images.shape, torch.float32)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert 0.9 < float(changed.sum() / images.sum()) < 1.1
    assert not torch.equal(changed[0], images[0])


def test_no_distortion_is_no_change(digits: tuple[Any, Any]) -> None:
    images = train.as_tensor(digits[0])[::400]
    still = train.Recipe(degrees=0, scale=0, shear=0, shift_pixels=0, elastic_pixels=0)
    torch.testing.assert_close(
        train.augment(images, still, torch.Generator().manual_seed(0)), images, rtol=0, atol=1e-4
    )


def test_a_shift_is_of_so_many_pixels(digits: tuple[Any, Any]) -> None:
    # Twice the centre of mass's largest distance from where it was, over many digits: just under shift_pixels.
    images = train.as_tensor(digits[0])[:400]
    only = train.Recipe(degrees=0, scale=0, shear=0, shift_pixels=2, elastic_pixels=0)
    changed = train.augment(images, only, torch.Generator().manual_seed(0))
    columns = torch.arange(28.0)
    centres = [(part.sum((1, 2)) * columns).sum(1) / part.sum((1, 2, 3)) for part in (images, changed)]
    assert 1.8 < float((centres[1] - centres[0]).abs().max()) < 2.05


@pytest.mark.usefixtures("small_split")
def test_the_script_writes_weights_and_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"another": {}}')
    train.main(["-o", str(tmp_path / "out"), "--results", str(tmp_path / "results.json"), "--max-steps", "1"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert sorted(results) == sorted(["another", *DEMOS])
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(DEMOS, lines, strict=True):
        assert (results[name]["judged_by"], results[name]["trained_on"]) == ("100 test digits", 80)
        assert f"{results[name]['accuracy_percent']:.1f} % of 100 test digits" in line
        model = train.create_model(name)
        model.load_state_dict(load_file(tmp_path / "out" / f"{name}.safetensors"))


@pytest.mark.usefixtures("small_split")
def test_a_holdout_never_touches_the_test_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--model", "vip_digits", "-o", str(tmp_path), "--holdout", "2", "--max-steps", "1"])
    assert "of 20 held-out training digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "asmlp_s"], "invalid choice"),
        (["--epochs", "0"], "not a whole number of at least 1"),
        (["--holdout", "400"], "400 of the 400"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main([*arguments, "-o", str(tmp_path)])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
