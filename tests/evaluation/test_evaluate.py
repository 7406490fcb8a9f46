"""Evaluations end to end, with accuracies that are known by construction."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_asmlp, tiny_vip

import mlpdeploy
import mlpdeploy.evaluation.run as module
from mlpdeploy.artifact import write_manifest
from mlpdeploy.errors import ArtifactError, ImageError, UsageError, VerificationError
from mlpdeploy.evaluation.report import EvaluationReport
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import read_manifest
from mlpdeploy.runtime.session import Session

Labelled = Callable[[int], Path]

evaluate = functools.partial(mlpdeploy.evaluate_artifacts, threads=1)


def figures(report: EvaluationReport) -> list[object]:
    """Return everything that must not depend on how an evaluation was run."""
    return [(dataclasses.replace(r, images_per_s=None, name=""), report.data["sha256"]) for r in report.results]


@pytest.mark.parametrize("wrong", [0, 1, 13, 60])
def test_the_accuracy_is_exactly_what_the_labels_say(exported: Path, labelled: Labelled, wrong: int) -> None:
    report = evaluate([exported], labelled(wrong))
    torch, ours = report.results
    assert (torch.backend, ours.backend) == ("torch", "onnxruntime")
    for result in report.results:
        assert (result.quality.top1.hits, result.quality.top1.total) == (60 - wrong, 60)
        assert sum(n for t, p, n in result.quality.confusion if t == p) == 60 - wrong
        assert result.images_per_s is not None and result.images_per_s > 0
    assert (torch.reference, ours.reference) == (None, 0)
    assert ours.agreement is not None and ours.errors is not None and torch.agreement is None
    assert ours.agreement.top1.value == 1.0
    assert ours.agreement.max_error < 1e-4
    assert ours.agreement.sqnr_db is not None and ours.agreement.sqnr_db > 90
    assert sum(ours.errors.images) + ours.errors.equal == 60
    (pair,) = report.pairs
    assert (pair.images, pair.only_first, pair.only_second, pair.difference, pair.p_value) == (60, 0, 0, 0.0, 1.0)
    entry = read_manifest(exported).files
    assert ours.file_bytes == entry["model.cpu.onnx"].bytes + entry["model.cpu.weights"].bytes
    assert torch.file == "model.onnx"


def test_folders_give_the_same_as_arrays(
    exported: Path, labelled: Labelled, tmp_path: Path, pictures: np.ndarray, said: np.ndarray
) -> None:
    from_arrays = evaluate([exported], labelled(0), torch=False)
    for number, (picture, label) in enumerate(zip(pictures, said, strict=True)):
        (tmp_path / "data" / f"class {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "data" / f"class {label}" / f"{number}.png")
    from_files = evaluate([exported], tmp_path / "data", torch=False, batch=7)
    assert from_files.results[0].quality.top1 == from_arrays.results[0].quality.top1
    assert from_files.results[0].quality.nll == pytest.approx(from_arrays.results[0].quality.nll, rel=1e-5)
    assert from_files.class_names[said[0]] == f"class {said[0]}"


def test_artifacts_of_two_models_have_a_reference_each(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    export_model(tiny_vip(), tmp_path / "vip", verify=False)
    report = evaluate([exported, tmp_path / "vip"], labelled(5))
    assert [(r.name, r.backend, r.reference) for r in report.results] == [
        ("tiny", "torch", None),
        ("tiny", "onnxruntime", 0),
        ("vip", "torch", None),
        ("vip", "onnxruntime", 2),
    ]
    assert report.results[3].agreement is not None and report.results[3].agreement.top1.value == 1.0
    assert len(report.pairs) == 6
    tiny, vip = report.results[0].quality.top1.hits, report.results[2].quality.top1.hits
    pair = next(p for p in report.pairs if (p.first, p.second) == ("tiny, PyTorch", "vip, PyTorch"))
    assert pair.only_first - pair.only_second == tiny - vip == 55 - vip


def test_copies_share_a_reference_and_get_names_that_differ(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "other" / "tiny")
    report = evaluate([exported, tmp_path / "other" / "tiny"], labelled(0), backends=["onnxruntime", "torch"])
    assert [(r.backend, r.reference) for r in report.results] == [
        ("torch", None),
        ("onnxruntime", 0),
        ("onnxruntime", 0),
        ("torch", 0),
    ]
    assert len({r.name for r in report.results}) == 2
    assert report.results[3].agreement is not None and report.results[3].agreement.sqnr_db is None
    assert report.results[3].errors is not None and report.results[3].errors.equal == 60


def test_a_backend_that_auto_chooses_stands_there_once(
    exported: Path, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpdeploy.runtime.auto.fastest_backend", lambda *_: "onnxruntime")
    report = evaluate([exported], labelled(0), backends=["auto", "onnxruntime"])
    assert [(r.backend, r.precision) for r in report.results] == [("torch", "fp32"), ("onnxruntime", "fp32")]


def test_a_second_call_computes_nothing_again(
    exported: Path, labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = evaluate([exported], labelled(3), resume=tmp_path / "state")
    monkeypatch.setattr(Session, "run", lambda *_: pytest.fail("the model ran again"))
    again = evaluate([exported], labelled(3), resume=tmp_path / "state")
    assert once.results == again.results


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_stopped_and_continued_equals_one_go(
    exported: Path, labelled: Labelled, tmp_path: Path, stop_after: int
) -> None:
    whole = evaluate([exported], labelled(3), batch=16)
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        assert total == 120
        calls.append(done)
        if len(calls) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([exported], labelled(3), batch=16, resume=tmp_path / "state", progress=stop)
    said: list[str] = []
    rest = evaluate([exported], labelled(3), batch=16, resume=tmp_path / "state", say=said.append)
    assert "of them there already" in said[0]
    assert figures(rest) == figures(whole)


def test_another_model_under_the_same_name_is_refused(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    artifact = tmp_path / "tiny"
    shutil.copytree(exported, artifact)
    evaluate([artifact], labelled(0), torch=False, resume=tmp_path / "state")
    export_model(tiny_asmlp(embed_dim=24), artifact, force=True, verify=False)
    with pytest.raises(UsageError, match="results of tiny on onnxruntime with manifest_sha256"):
        evaluate([artifact], labelled(0), torch=False, resume=tmp_path / "state")


def test_other_data_is_refused(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    evaluate([exported], labelled(0), torch=False, resume=tmp_path / "state")
    for options in ({"data": labelled(1)}, {"data": labelled(0), "limit": 10}):
        with pytest.raises(UsageError, match="has results on other data"):
            evaluate([exported], torch=False, resume=tmp_path / "state", **options)


def folder_with_a_bad_file(root: Path, pictures: np.ndarray) -> Path:
    for number, picture in enumerate(pictures[:21]):
        (root / f"c{number % 7}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / f"c{number % 7}" / f"{number:02}.png")
    (root / "c3" / "10.png").write_bytes(b"\x89PNG no more")
    return root


def test_a_bad_image_stops_and_is_named_and_can_be_left_out(
    exported: Path, tmp_path: Path, pictures: np.ndarray
) -> None:
    data, state = folder_with_a_bad_file(tmp_path / "data", pictures), tmp_path / "state"
    with pytest.raises(ImageError, match=r"10\.png is not an image"):
        evaluate([exported], data, batch=4, resume=state)
    assert (state / "0.rows").stat().st_size == 8 * 33  # it stopped in the third batch, at once
    report = evaluate([exported], data, batch=4, resume=state, skip_bad=True)
    assert [Path(name).name for name in report.bad] == ["10.png"]
    assert "is not an image" in next(iter(report.bad.values()))
    for result in report.results:
        assert result.quality.top1.total == 20
        assert result.quality.per_class[3].total == 2
    with pytest.raises(ImageError, match="pass --skip-bad again"):
        evaluate([exported], data, batch=4, resume=state)
    again = evaluate([exported], data, batch=4, resume=state, skip_bad=True)
    assert figures(again) == figures(report)


def test_only_bad_images(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "class 0").mkdir(parents=True)
    (tmp_path / "data" / "class 0" / "a.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="none of the 1 images"):
        evaluate([exported], tmp_path / "data", skip_bad=True, torch=False)


def test_scores_that_are_not_finite_are_refused(exported: Path, tmp_path: Path) -> None:
    images = np.zeros((5, 3, 32, 32), np.float32)
    images[3, 0, 0, 0] = np.nan
    np.savez(tmp_path / "x.npz", images=images, labels=np.zeros(5, int))
    with pytest.raises(VerificationError, match=r"image 3 of .*not finite"):
        evaluate([exported], tmp_path / "x.npz", torch=False)


def test_tensors_of_another_size_are_refused(exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((5, 3, 16, 16), np.float32), labels=np.zeros(5, int))
    with pytest.raises(UsageError, match=r"\(5, 3, 16, 16\)"):
        evaluate([exported], tmp_path / "x.npz", torch=False)


def test_a_limit_takes_evenly(exported: Path, tmp_path: Path, pictures: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", images=pictures, labels=np.arange(60) // 10)
    report = evaluate([exported], tmp_path / "x.npz", limit=12, torch=False)
    assert report.data["images_of_class"] == [2, 2, 2, 2, 2, 2, 0]
    assert report.data["limit"] == report.results[0].quality.top1.total == 12


@pytest.mark.parametrize("option", [{"batch": 0}, {"limit": 0}, {"backends": ["onnxrutime"]}, {"resume": __file__}])
def test_impossible_options(exported: Path, labelled: Labelled, option: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        evaluate([exported], labelled(0), torch=False, **option)


def test_artifacts_that_do_not_go_together(exported: Path, labelled: Labelled, tmp_path: Path) -> None:
    export_model(tiny_asmlp(num_classes=3), tmp_path / "three", verify=False)
    with pytest.raises(UsageError, match=r"has 7 classes and .*three 3"):
        evaluate([exported, tmp_path / "three"], labelled(0))
    export_model(tiny_asmlp(), tmp_path / "names", labels=list("abcdefg"), verify=False)
    with pytest.raises(UsageError, match=r"tiny and .*names have different labels"):
        evaluate([exported, tmp_path / "names"], labelled(0))
    with pytest.raises(UsageError, match="is given twice"):
        evaluate([exported, exported.parent / "." / "tiny"], labelled(0))
    with pytest.raises(UsageError, match="no artifact is given"):
        evaluate([], labelled(0))
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        evaluate([tmp_path], labelled(0))


def test_feature_maps_are_refused(labelled: Labelled, tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "backbone", verify=False)
    with pytest.raises(UsageError, match="gives feature maps"):
        evaluate([tmp_path / "backbone"], labelled(0))


def test_without_torch_there_is_a_note(exported: Path, labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    report = evaluate([exported], labelled(0))
    assert [result.backend for result in report.results] == ["onnxruntime"]
    assert report.notes == ("PyTorch is not installed: no reference to agree with",)


def test_an_artifact_of_lower_precision_without_pytorchs_weights(
    artifact: Path, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dataclasses.replace(read_manifest(artifact), precision="int8")
    write_manifest(artifact, manifest)
    load = module.load

    def without_torch(directory, backend, *rest, **options):
        if backend == "torch":
            raise ArtifactError("the canonical model lacks the weight head.weight")
        return load(directory, backend, *rest, **options)

    monkeypatch.setattr(module, "load", without_torch)
    report = evaluate([artifact], labelled(0))
    assert [(r.precision, r.agreement) for r in report.results] == [("int8", None)]
    assert "no reference from tiny: the canonical model lacks" in report.notes[0]
    with pytest.raises(ArtifactError, match="lacks the weight"):
        evaluate([artifact], labelled(0), torch=True)
