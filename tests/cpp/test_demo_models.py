"""The trained demo models in C++: Python's bits, and its classes on pieces of real photographs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from native import ROOT, NativeSession
from PIL import Image

from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs
from mlpdeploy.prediction import predict
from mlpdeploy.runtime.loading import load

DEMOS = ("asmlp_digits", "vip_digits", "cyclemlp_digits")
BATCHES = (1, 2, 3, 8, 33)


@pytest.fixture(scope="module", params=DEMOS)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / request.param
    weights = ROOT / "examples" / "digits" / f"{request.param}.safetensors"
    export_model(request.param, folder, checkpoint=weights, verify=False)
    return folder


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_those_of_python(build: Path, demo: Path, threads: int) -> None:
    native = NativeSession(build, demo, threads=threads, max_batch=8)
    with load(demo, threads=threads, max_batch=8) as session:
        for batch in BATCHES:
            feeds = session.random_feeds(batch, seed=batch)
            wanted, got = session.run(feeds), native.run_like(feeds, session.outputs)
            assert all(array.tobytes() == got[name].tobytes() for name, array in wanted.items()), batch
    native.close()


def test_the_classes_of_photographs_are_those_of_python(build: Path, demo: Path, tmp_path: Path) -> None:
    pieces = list(sample_photographs())
    for photograph in sample_photographs():
        with Image.open(photograph) as picture:
            for index in range(20):
                left, top, side = 23 * index, 11 * index, 60 + 9 * index
                pieces.append(tmp_path / f"{photograph.stem}{index:02}.{'png' if index % 2 else 'jpg'}")
                picture.crop((left, top, left + side, top + side)).save(pieces[-1])
    command = [build / "mlpdeploy-infer", "classify", demo, *pieces, "--json", "--top", "10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images, seen = json.loads(done.stdout)["images"], set()
    for image, wanted in zip(images, predict(demo, pieces, top=10), strict=True):
        order = tuple(score["index"] for score in image["top"])
        assert order == tuple(score.index for score in wanted.top), image["path"]
        seen.add(order)
    assert len(seen) > 5  # otherwise equal orders would say little
