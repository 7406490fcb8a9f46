"""`mlpdeploy quantize` and `mlpdeploy sensitivity`, as typed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from calibration_inputs import IMAGES
from click.testing import CliRunner, Result
from PIL import Image

from mlpdeploy.artifact import write_manifest
from mlpdeploy.cli import main
from mlpdeploy.manifest import read_manifest


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, IMAGES)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_goal_is_reached_by_keeping_blocks(exported: Path, images: Path, tmp_path: Path) -> None:
    plain = run("sensitivity", exported, "--calibration-data", images, "--json", "--plot", tmp_path / "blocks.png")
    assert plain.exit_code == 0, plain.output
    report = json.loads(plain.stdout)
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")
    assert (report["labelled"], report["images"]) == (False, len(IMAGES))
    harm = [block["alone"]["sqnr_db"] for block in report["blocks"]]
    assert harm == sorted(harm)
    assert min(harm) > report["int8"]["sqnr_db"]  # one block alone does less harm than all of them
    wanted = report["int8"]["sqnr_db"] + 3
    command = ("quantize", exported, "--precision", "int8", "--calibration-data", images, "-o", tmp_path / "mixed")
    mixed = run(*command, "--min-sqnr", wanted, "--json")
    assert mixed.exit_code == 0, mixed.output
    manifest = json.loads(mixed.stdout)
    kept = manifest["quantization"]["recipe"]["keep"]
    assert kept
    assert kept == manifest["quantization"]["search"]["found"]["keep"]
    assert manifest["quantization"]["search"]["found"]["cost"]["sqnr_db"] >= wanted


def test_the_drop_on_labelled_images(exported: Path, images: Path, tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.npz"
    np.savez(labelled, images=IMAGES, labels=np.zeros(len(IMAGES), np.int64))
    command = ("sensitivity", exported, "--calibration-data", images, "--data", labelled, "--limit", 8, "--json")
    done = run(*command)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["labelled"], report["images"]) == (True, 8)


def test_what_fills_up_a_batch_does_not_count(exported: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "nine.npy", IMAGES[:9])
    np.savez(tmp_path / "labelled.npz", images=IMAGES[:9], labels=np.zeros(9, np.int64))
    command = ("sensitivity", exported, "--calibration-data", tmp_path / "nine.npy", "--json")
    counted, labelled = (
        json.loads(run(*command, *more).stdout) for more in ((), ("--data", tmp_path / "labelled.npz"))
    )
    assert counted["images"] == labelled["images"] == 9
    assert counted["int8"]["sqnr_db"] == pytest.approx(labelled["int8"]["sqnr_db"], abs=1e-3)


@pytest.mark.parametrize(
    ("images_of", "message"),
    [
        (IMAGES[:, :, :16], r"has the shape (3, 16, 32) (C, H, W)"),
        (np.full_like(IMAGES, np.nan), "has NaN or infinite values"),
        (None, "does not say how a photograph becomes its input"),
    ],
)
def test_labelled_images_that_do_not_fit_are_told_before_the_work(
    artifact: Path, tmp_path: Path, images_of: np.ndarray | None, message: str
) -> None:
    labelled = tmp_path / "labelled.npz"
    if images_of is None:
        write_manifest(artifact, dataclasses.replace(read_manifest(artifact), preprocessing=None))
        images_of = np.zeros((16, 40, 40, 3), np.uint8)
    np.savez(labelled, images=images_of, labels=np.zeros(16, np.int64))
    done = run("sensitivity", artifact, "--calibration-data", tmp_path / "nowhere.npy", "--data", labelled)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_without_labels_no_loss_is_claimed(exported: Path, images: Path, tmp_path: Path) -> None:
    command = ("quantize", exported, "--precision", "int8", "--calibration-data", images, "-o", tmp_path / "mixed")
    done = run(*command, "--max-drop", "100", "--no-verify")
    assert done.exit_code == 0, done.output
    assert "% of the classes changed" in done.stdout
    assert "points lost" not in done.stdout


def test_the_summary_tells_size_share_and_what_was_kept(exported: Path, images: Path, tmp_path: Path) -> None:
    done = run("quantize", exported, "--precision", "int8", "--calibration-data", images, "-o", tmp_path / "int8")
    assert done.exit_code == 0, done.output
    assert "% of the multiply-adds in INT8" in done.stdout
    assert "of the float32 file" in done.stdout


def test_a_bad_picture_stops_it_or_is_left_out(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(3)
    for index in range(9):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    (folder / "half.png").write_bytes((folder / "0.png").read_bytes()[:500])
    command = ("quantize", exported, "--precision", "int8", "--calibration-data", folder, "--no-verify")
    refused = run(*command, "-o", tmp_path / "int8")
    assert refused.exit_code == 1
    assert "half.png" in refused.stderr
    assert not (tmp_path / "int8").exists()
    done = run(*command, "--skip-bad", "-o", tmp_path / "int8", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["quantization"]["images"] == 9
    assert "left out" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "fb16"), "did you mean bf16"),
        (("--precision", "fp16", "--calibrator", "entropy"), "a calibrator for precision fp16"),
        (("--precision", "int8", "--io", "fp16"), "inputs and outputs in fp16 for precision int8"),
        (("--precision", "int8"), "int8 without calibration images"),
        (("--precision", "int8", "--calibration-data", "nowhere"), "nowhere does not exist"),
        (("--precision", "fp16", "--max-drop", "1"), "a sensitivity analysis for fp16"),
        (("--precision", "bf16", "--target", "openvino", "--keep", "head"), "blocks to keep in float32 in bf16"),
        (("--precision", "int8", "--calibration-data", "IMAGES", "--keep", "layers.0.block.0"), "layers.0.blocks.0"),
        (("--precision", "int8", "--calibration-data", "IMAGES", "--data", "x"), "--data without --max-drop"),
        (("--precision", "int8", "--calibration-data", "IMAGES", "--max-drop", "-1"), "max-drop is -1"),
        # What a search would be in vain for is told before it.
        (
            ("--precision", "int8", "--calibration-data", "nowhere", "--max-drop", "1", "--rest", "fp16"),
            "fp16 beside int8",
        ),
        (
            ("--precision", "int8", "--calibration-data", "nowhere", "--max-drop", "1", "--target", "x"),
            "unknown target",
        ),
        (("--precision", "int8", "--calibration-data", "FEW"), "3 calibration images; wanted at least 8"),
        (("--precision", "int8", "--calibration-data", "CONSTANT"), "constant"),
        (("--precision", "int8", "--calibration-data", "SMALL"), "wanted"),
    ],
)
def test_wrong_requests(options: tuple[str, ...], message: str, exported: Path, images: Path, tmp_path: Path) -> None:
    arrays = {"FEW": IMAGES[:3], "CONSTANT": np.zeros_like(IMAGES), "SMALL": IMAGES[:, :, :16, :16]}
    paths = {"IMAGES": str(images)}
    for name, array in arrays.items():
        paths[name] = str(tmp_path / f"{name}.npy")
        np.save(paths[name], array)
    done = run("quantize", exported, "-o", tmp_path / "output", *(paths.get(option, option) for option in options))
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("command", ["sensitivity", "quantize"])
def test_class_folders_in_doubt_are_told_by_a_map(command: str, exported: Path, images: Path, tmp_path: Path) -> None:
    for index, letter in enumerate("zyxwvu"):  # of seven classes
        folder = tmp_path / "labelled" / letter
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "0.png")
    (tmp_path / "map.json").write_text(json.dumps({letter: index for index, letter in enumerate("zyxwvu")}))
    words = [command, exported, "--calibration-data", images, "--data", tmp_path / "labelled"]
    if command == "quantize":
        words += ["--precision", "int8", "--max-drop", "100", "--no-verify", "-o", tmp_path / "out"]
    refused = run(*words)
    assert refused.exit_code == 2 and "--class-map" in refused.stderr
    done = run(*words, "--class-map", tmp_path / "map.json")
    assert done.exit_code == 0, done.output
