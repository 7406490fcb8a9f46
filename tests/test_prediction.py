"""Prediction on a fake model whose logits are the mean red, green and blue of the picture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlpdeploy.classification as classification_module
import mlpdeploy.prediction as predict_module
from mlpdeploy.errors import ArtifactError, ImageError, UsageError, VerificationError
from mlpdeploy.manifest import Manifest, Preprocessing, TensorSpec
from mlpdeploy.prediction import ClassScore, Prediction, predict
from mlpdeploy.runtime.feeds import Arrays
from mlpdeploy.runtime.session import Session

SIDE = 8
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PREPROCESSING = Preprocessing((SIDE, SIDE), 1.0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "RGB")


class FakeSession(Session):
    """Gives `model(pixels)`, (N, K), and notes the rows of each run."""

    backend = "fake"

    def __init__(self, manifest: Manifest, max_batch: int | None, model: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(manifest, "cpu", max_batch)
        self.model = model
        self.rows: list[int] = []
        self.closed = False

    def _execute(self, feeds: Arrays, into: Arrays | None) -> Arrays:
        pixels = feeds["image"]
        self.rows.append(len(pixels))
        return {"logits": self.model(pixels)}

    def native_interface(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return list(self.inputs), list(self.outputs)

    def _release(self) -> None:
        self.closed = True


@dataclass
class Loader:
    """Stands in for `load`; change its fields before calling predict."""

    labels: tuple[str, ...] = tuple(COLORS)
    rows: int | str = "batch"
    dtype: str = "float32"
    layout: str = "NK"
    preprocessing: Preprocessing | None = PREPROCESSING
    more_inputs: tuple[TensorSpec, ...] = ()
    model: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels.mean(axis=(2, 3))
    calls: list[tuple[object, ...]] = field(default_factory=list)
    sessions: list[FakeSession] = field(default_factory=list)

    def __call__(
        self, directory, backend=None, device=None, *, threads=None, max_batch=None, precision=None
    ) -> FakeSession:
        self.calls.append((directory, backend, device, threads, max_batch, precision))
        image = TensorSpec("image", (self.rows, 3, SIDE, SIDE), self.dtype, "NCHW")
        logits = TensorSpec("logits", (self.rows, 3), self.dtype, self.layout)
        manifest = Manifest(
            model={"name": "fake"},
            inputs=(image, *self.more_inputs),
            outputs=(logits,),
            opset=20,
            precision="fp32",
            preprocessing=self.preprocessing,
            labels=self.labels,
        )
        self.sessions.append(FakeSession(manifest, max_batch, self.model))
        return self.sessions[-1]


@pytest.fixture
def loader(monkeypatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(predict_module, "load", loader)
    return loader


def paint(folder: Path, *names: str) -> list[Path]:
    """Write one-colored PNGs; a name starts with its color: `red_1`."""
    paths = [folder / f"{name}.png" for name in names]
    for path in paths:
        Image.new("RGB", (12, 10), COLORS[path.stem.partition("_")[0]]).save(path)
    return paths


def test_predictions(loader, tmp_path):
    (path,) = paint(tmp_path, "green")
    (got,) = predict("artifact", [path])
    e = np.exp(1.0)
    assert got.path == str(path)
    assert got.error is None
    assert [(score.index, score.label) for score in got.top] == [(1, "green"), (0, "red"), (2, "blue")]
    assert [score.probability for score in got.top] == pytest.approx([e / (e + 2), 1 / (e + 2), 1 / (e + 2)], rel=1e-6)


def test_order_is_that_of_the_files(loader, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    paint(folder, "blue_1", "green_2", "red_3")
    (single,) = paint(tmp_path, "red_0")
    got = predict("artifact", [single, folder], top=1, batch=2)
    assert [Path(prediction.path).stem for prediction in got] == ["red_0", "blue_1", "green_2", "red_3"]
    assert [prediction.top[0].label for prediction in got] == ["red", "blue", "green", "red"]


@pytest.mark.parametrize(
    ("fixed", "batch", "rows"), [("batch", 2, [2, 2, 1]), ("batch", 8, [5]), (4, 2, [4, 4]), (1, 8, [1] * 5)]
)
def test_batches(loader, tmp_path, fixed, batch, rows):
    loader.rows = fixed
    paths = paint(tmp_path, "red_0", "green_1", "blue_2", "blue_3", "green_4")
    got = predict("artifact", paths, batch=batch)
    assert loader.sessions[0].rows == rows
    assert [prediction.top[0].label for prediction in got] == ["red", "green", "blue", "blue", "green"]


def test_the_result_does_not_depend_on_the_batch(loader, tmp_path):
    generator = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(generator.integers(0, 256, (20, 31, 3), np.uint8)).save(tmp_path / f"{number}.png")
    expected = predict("artifact", [tmp_path], batch=1)
    for batch in (2, 3, 7, 8):
        assert predict("artifact", [tmp_path], batch=batch) == expected


def test_arguments_go_to_load(loader, tmp_path):
    predict("artifact", paint(tmp_path, "red"), backend="torch", device="cpu", threads=3, batch=5, precision="fp32")
    assert loader.calls == [("artifact", "torch", "cpu", 3, 5, "fp32")]


def test_top(loader, tmp_path):
    paths = paint(tmp_path, "blue")
    assert [len(predict("artifact", paths, top=top)[0].top) for top in (1, 2, 3, 1000)] == [1, 2, 3, 3]


def test_equal_scores_come_in_the_order_of_the_classes(loader, tmp_path):
    loader.model = lambda pixels: np.zeros((len(pixels), 3), np.float32)
    (got,) = predict("artifact", paint(tmp_path, "blue"))
    assert [score.index for score in got.top] == [0, 1, 2]


def test_large_logits_do_not_overflow(loader, tmp_path):
    loader.model = lambda pixels: np.tile(np.float32([1e4, 10_001, 1e4]), (len(pixels), 1))
    (got,) = predict("artifact", paint(tmp_path, "blue"))
    e = np.exp(1.0)
    assert got.top[0] == ClassScore(1, "green", pytest.approx(e / (e + 2)))


def test_without_labels(loader, tmp_path):
    loader.labels = ()
    (got,) = predict("artifact", paint(tmp_path, "blue"), top=1)
    assert got.top == (ClassScore(2, "", pytest.approx(0.576, abs=1e-3)),)


def test_half_precision_input(loader, tmp_path):
    loader.dtype = "float16"
    (got,) = predict("artifact", paint(tmp_path, "blue"), top=1)
    assert got.top[0].label == "blue"


def test_progress(loader, tmp_path):
    calls = []
    predict("artifact", paint(tmp_path, "red", "green", "blue"), batch=2, progress=lambda *call: calls.append(call))
    assert calls == [(2, 3), (3, 3)]


# Bad pictures.


def spoil(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:40])
    return str(path)


def test_the_first_bad_picture_stops_and_is_named(loader, tmp_path):
    paths = paint(tmp_path, "red_0", "red_1", "green_2", "blue_3")
    named, _ = spoil(paths[2]), spoil(paths[3])
    with pytest.raises(ImageError, match=r"green_2.*--skip-bad") as caught:
        predict("artifact", paths, batch=4)
    assert named in str(caught.value)
    assert loader.sessions[0].closed


def test_one_logit_is_told_by_its_sigmoid():
    logits = np.array([[0.0], [3.0], [-800.0], [800.0]], np.float32)
    found = [scores[0].probability for scores in classification_module.top_classes(logits, ["cat"], 5)]
    np.testing.assert_allclose(found, [0.5, 1 / (1 + np.exp(-3)), 0, 1], rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_skip_bad_reports_them_in_place(loader, tmp_path, batch):
    paths = paint(tmp_path, "red_0", "red_1", "green_2", "blue_3", "blue_4")
    spoil(paths[0])
    spoil(paths[3])
    got = predict("artifact", paths, top=1, batch=batch, skip_bad=True)
    assert [prediction.path for prediction in got] == list(map(str, paths))
    labels = [prediction.top[0].label if prediction.top else None for prediction in got]
    assert labels == [None, "red", "green", None, "blue"]
    for prediction in got:
        assert (prediction.error is None) == bool(prediction.top)
    assert str(paths[3]) in (got[3].error or "")
    assert loader.sessions[0].closed


def test_only_bad_pictures(loader, tmp_path):
    paths = paint(tmp_path, "red_0", "red_1")
    for path in paths:
        spoil(path)
    got = predict("artifact", paths, skip_bad=True)
    assert all(prediction.error for prediction in got)
    assert loader.sessions[0].rows == []


def test_a_picture_that_cannot_be_prepared_is_named(loader, tmp_path):
    path = tmp_path / "thin.png"
    Image.new("L", (1, 9_000_000)).save(path)
    with pytest.raises(ImageError, match=r"thin\.png: .*too elongated") as caught:
        predict("artifact", [path])
    said = str(caught.value).removesuffix(", or pass --skip-bad")
    assert predict("artifact", [path], skip_bad=True) == [Prediction(str(path), (), said)]


def test_a_path_that_does_not_exist_is_a_wrong_request_even_with_skip_bad(loader, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.jpg does not exist"):
        predict("artifact", [tmp_path / "nowhere.jpg"], skip_bad=True)
    assert loader.calls == []


# Wrong requests and wrong artifacts.


@pytest.mark.parametrize("option", ["top", "batch"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_below_one(loader, tmp_path, option, value):
    with pytest.raises(UsageError, match=f"{option} is {value}"):
        predict("artifact", paint(tmp_path, "red"), **{option: value})
    assert loader.calls == []


def test_feature_maps_are_refused(loader, tmp_path):
    loader.layout = "NCHW"
    with pytest.raises(UsageError, match=r"artifact gives feature maps \(NCHW"):
        predict("artifact", paint(tmp_path, "red"))
    assert loader.sessions[0].closed


def test_no_preprocessing_is_refused(loader, tmp_path):
    loader.preprocessing = None
    with pytest.raises(UsageError, match="does not say how a photograph becomes its input"):
        predict("artifact", paint(tmp_path, "red"))


def test_two_inputs_are_refused(loader, tmp_path):
    loader.more_inputs = (TensorSpec("mask", ("batch", 1), "float32", "NK"),)
    with pytest.raises(UsageError, match="one input"):
        predict("artifact", paint(tmp_path, "red"))


def test_labels_that_do_not_fit(loader, tmp_path):
    loader.labels = ("red", "green")
    with pytest.raises(ArtifactError, match=r"2 labels.*wanted 3"):
        predict("artifact", paint(tmp_path, "red"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(loader, tmp_path, value):
    def model(pixels: np.ndarray) -> np.ndarray:
        logits = pixels.mean(axis=(2, 3))
        logits[logits[:, 2] > 0.5, 0] = value
        return logits

    loader.model = model
    with pytest.raises(VerificationError, match=r"blue_2\.png"):
        predict("artifact", paint(tmp_path, "red_0", "green_1", "blue_2", "red_3"))


# Memory.


def test_pictures_are_decoded_at_most_one_batch_ahead(loader, tmp_path, monkeypatch):
    batch, total = 3, 20
    paths = paint(tmp_path, *(f"red_{number}" for number in range(total)))
    decoded, lock, ahead = [], threading.Lock(), []
    read_image = classification_module.read_image

    def counting(path):
        image = read_image(path)
        with lock:
            decoded.append(path)
        return image

    def model(pixels: np.ndarray) -> np.ndarray:
        done = batch * len(ahead)
        threading.Event().wait(0.02)  # time for the decoders to run too far
        ahead.append(len(decoded) - done)
        return pixels.mean(axis=(2, 3))

    monkeypatch.setattr(classification_module, "read_image", counting)
    loader.model = model
    predict("artifact", paths, batch=batch)
    assert len(decoded) == total
    assert max(ahead) <= 2 * batch
