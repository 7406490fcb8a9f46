"""What a session takes and gives, for every backend: kinds of arrays, and a sentence for each that is wrong."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu_runs import CPU_BACKENDS, TOLERANCE, images, reference
from tiny import tiny_asmlp

from mlpdeploy.env import installed_version
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.manifest import TensorSpec
from mlpdeploy.runtime.feeds import check_feeds
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of feature maps with open sizes; do not change it."""
    path = tmp_path_factory.mktemp("maps") / "out"
    export_model(tiny_asmlp(features=True), path, image_size="dynamic", target=("cpu", "openvino"), verify=False)
    return path


def test_a_torch_tensor_goes_in_without_numpy(session: Session) -> None:
    array = images(2)
    np.testing.assert_array_equal(
        session.run({"input": torch.from_numpy(array)})["logits"], session.run({"input": array})["logits"]
    )


def test_strided_input(session: Session) -> None:
    nhwc = np.ascontiguousarray(images(2).transpose(0, 2, 3, 1))
    result = session.run({"input": nhwc.transpose(0, 3, 1, 2)})["logits"]
    np.testing.assert_allclose(result, reference(images(2)), atol=TOLERANCE)


def test_an_array_that_cannot_be_written_is_read_without_a_warning(session: Session) -> None:
    array = images(2)
    array.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = session.run({"input": array})["logits"]
    finally:
        torch.set_warn_always(always)
    np.testing.assert_allclose(result, reference(images(2)), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({}, "input 'input' is missing"),
        ({"inputs": images(1)}, "unknown input 'inputs'; did you mean input"),
        ({"input": images(1).astype(np.float64)}, "convert it: x.astype"),
        ({"input": images(1)[0]}, "add the batch axis"),
        ({"input": images(1)[:, :, :31]}, "input 'input' is float32"),
        ({"input": images(1)[:0]}, "axis 0"),
        ({"input": [[1.0]]}, "is a list"),
        (images(1), "inputs are a ndarray; wanted a dict: {'input': array}"),
    ],
)
def test_wrong_inputs_say_what_came_and_what_was_wanted(session: Session, feeds: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        session.run(feeds)


def test_inputs_with_different_numbers_of_rows_are_refused() -> None:
    specs = tuple(TensorSpec(name, ("batch", 2), "float32", "NC") for name in "ab")
    feeds = {name: np.zeros((rows, 2), np.float32) for name, rows in (("a", 3), ("b", 2))}
    with pytest.raises(UsageError, match=r"input 'b'.*wanted 3 on axis 0, as another input has"):
        check_feeds(specs, feeds)


def test_dynamic_sizes_take_multiples_only(tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "out", image_size="dynamic", verify=False)
    with load(tmp_path / "out", max_batch=2) as session:
        maps = session.run({"input": np.zeros((3, 3, 16, 40), np.float32)})
        assert [m.shape for m in maps.values()] == [(3, 21, 4, 10), (3, 42, 2, 5)]
        with pytest.raises(UsageError, match="axis 3 must be a multiple of 8"):
            session.run({"input": np.zeros((1, 3, 16, 41), np.float32)})


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 7), np.float64),
        np.zeros((3, 7), np.float32),
        np.zeros((7, 2), np.float32).T,
        torch.zeros(2, 7),
        [[0.0] * 7] * 2,
    ],
)
def test_wrong_output_arrays(session: Session, array: Any) -> None:
    with pytest.raises(UsageError, match="output array 'logits'"):
        session.run({"input": images(2)}, {"logits": array})


def test_an_output_array_of_the_right_shape_is_told_what_is_wrong(session: Session) -> None:
    with pytest.raises(UsageError, match=r"is float32 \(2, 7\), and read-only or not contiguous"):
        session.run({"input": images(2)}, {"logits": np.zeros((7, 2), np.float32).T})


def test_an_output_array_that_cannot_be_written_is_refused(session: Session) -> None:
    into = np.zeros((2, 7), np.float32)
    into.flags.writeable = False
    with pytest.raises(UsageError, match="wanted a writable, contiguous float32"):
        session.run({"input": images(2)}, {"logits": into})
    assert not into.any()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_open_sizes_of_output_arrays_are_compared(maps: Path, backend: str) -> None:
    """OpenVINO would fill an array of another size from its beginning."""
    if installed_version(backend) is None:
        pytest.skip(f"{backend} is not installed")
    with load(maps, backend, "cpu") as session:
        wanted = session.run({"input": images(2)})
        for shape in ((2, 21, 8, 9), (2, 21, 16, 4), (2, 21, 16, 16), (2, 21, 1, 1)):
            outputs = {"stage0": np.zeros(shape, np.float32), "stage1": np.zeros((2, 42, 4, 4), np.float32)}
            with pytest.raises(UsageError, match=r"wanted a writable, contiguous float32 \(2, 21, 8, 8\)"):
                session.run({"input": images(2)}, outputs)
        outputs = {name: np.zeros_like(array) for name, array in wanted.items()}
        session.run({"input": images(2)}, outputs)
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, wanted[name])
