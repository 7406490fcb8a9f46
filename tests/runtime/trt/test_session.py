"""The whole path on a simulated GPU: build, load, run; every result is compared with ONNX Runtime's, row by row."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_cuda import DeviceTensor
from fakes.machine import L4, PROVIDERS, RTX, VERSIONS, Machine
from tiny import tiny_asmlp
from tiny_engine import PROFILES, close, options_for

from mlpdeploy.engines.build import build_artifact
from mlpdeploy.engines.options import BuildOptions
from mlpdeploy.engines.sidecar import engines_of
from mlpdeploy.errors import UsageError
from mlpdeploy.export.export import export_model
from mlpdeploy.runtime.gpu import Gpu
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.tensorrt_api import EngineError
from mlpdeploy.verify.verify import verify_artifact


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_every_version_and_provider(
    version: str, provider: str, exported: Path, tmp_path: Path, images: Any, wanted: Any, monkeypatch: Any
) -> None:
    machine = Machine(monkeypatch, provider)
    machine.use(version)
    directory = machine.built(exported, tmp_path / "a", options_for(version))
    with load(directory, backend="tensorrt") as session:
        assert (session.backend, session.device, session.max_batch) == ("tensorrt", "cuda:0", 8)
        assert session.file.endswith(".engine" if version == RTX else ".plan")
        assert session.file.startswith("engines/") and session.precision == "fp32"
        for rows in (1, 1, 9, 40, 40, 7, 7):
            assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows]), rows
        session.warmup(1)
        for rows in (7, 8):
            session.warmup(rows)
        (note,) = set(session.graphs().values())  # type: ignore[attr-defined]
        assert note == "CUDA graph" if provider == "cuda-python" else note.startswith("pycuda has no CUDA graphs")
        assert ("launch" in machine.device.log) == (provider == "cuda-python")
    assert machine.nothing_is_left()


def test_tensorrt_rtx_on_the_gpu(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    """What differs there: engines for named GPUs, kernels that are compiled here, no plugins."""
    machine.use(RTX)
    directory = machine.built(exported, tmp_path / "a", options_for(RTX))
    x, y = DeviceTensor(machine.device, images[:8]), DeviceTensor(machine.device, np.zeros((8, 7), np.float32))
    with load(directory, backend="tensorrt") as session:
        session.run({"input": x}, {"logits": y})
        assert close(y.numpy(), wanted[:8])
        assert len(session.gpu_ms(8, 2)) == 2  # type: ignore[attr-defined]
        assert close(session.run_async({"input": images}).result()["logits"], wanted)
    assert verify_artifact(directory, backend="tensorrt").passed
    machine.use_gpu(Gpu("NVIDIA GeForce RTX 5090", "12.0", "580.65.06", "13.0"))
    with pytest.raises(EngineError, match=r"compute capability 8\.9, .* has 12\.0; run: .* --compute-capability 12\.0"):
        load(directory, backend="tensorrt")


def test_the_same_rows_whatever_their_neighbours(machine: Machine, built: Path, images: Any) -> None:
    """Bit for bit: the simulated engine computes row by row, so only rows that were mixed up could differ."""
    with load(built, backend="tensorrt") as session:
        alone = np.concatenate([session.run({"input": images[i : i + 1]})["logits"] for i in range(40)])
        assert len({row.tobytes() for row in alone}) == 40
        for rows in (2, 9, 23, 40):
            assert np.array_equal(session.run({"input": images[:rows]})["logits"], alone[:rows])
        into = np.full((23, 7), np.nan, np.float32)
        assert session.run({"input": images[:23]}, {"logits": into})["logits"] is into
        assert np.array_equal(into, alone[:23])


def test_padding_never_shows(machine: Machine, exported: Path, tmp_path: Path, images: Any, wanted: Any) -> None:
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
    with load(directory, backend="tensorrt") as session:
        for rows in (4, 3, 1, 5, 6, 3):
            assert close(session.run({"input": images[:rows]})["logits"], wanted[:rows])


def test_rows_that_are_added_are_zero(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, monkeypatch: Any
) -> None:
    """Not the rows of an earlier caller."""
    directory = machine.built(exported, tmp_path / "a", BuildOptions(batches=((4, 4, 4),)))
    seen: list[np.ndarray] = []
    kind = machine.module._inner["ICudaEngine"]
    run = kind._run
    monkeypatch.setattr(kind, "_run", lambda self, feeds: seen.append(feeds["input"]) or run(self, feeds))
    with load(directory, backend="tensorrt") as session:
        for feed in (images[:3], DeviceTensor(machine.device, images[:3])):
            session.run({"input": images[:4]})
            session.run({"input": feed})
    assert [bool(feed[3].any()) for feed in seen] == [True, False, True, False]


def test_a_fixed_batch(machine: Machine, tmp_path: Path, images: Any) -> None:
    export_model(tiny_asmlp(), tmp_path / "fixed", batch=4, verify=False)
    build_artifact(tmp_path / "fixed", BuildOptions())
    with load(tmp_path / "fixed", device="cpu") as session:
        wanted = session.run({"input": images[:10]})["logits"]
    with load(tmp_path / "fixed", backend="tensorrt") as session:
        assert session.max_batch == 4
        assert close(session.run({"input": images[:10]})["logits"], wanted)


def test_open_image_sizes(machine: Machine, tmp_path: Path) -> None:
    export_model(tiny_asmlp(features=True), tmp_path / "maps", image_size="dynamic", verify=False)
    build_artifact(tmp_path / "maps", BuildOptions(batches=((1, 2, 2),), image_sizes=((32, 32), (64, 64), (96, 96))))
    generator = np.random.default_rng(0)
    with load(tmp_path / "maps", backend="tensorrt") as session, load(tmp_path / "maps", device="cpu") as other:
        for height, width in ((32, 32), (64, 96), (96, 64)):
            feeds = {"input": generator.standard_normal((3, 3, height, width)).astype(np.float32)}
            for name, array in other.run(feeds).items():
                assert close(session.run(feeds)[name], array)
        with pytest.raises(UsageError, match=r"128x128; wanted 3x32x32 to 3x96x96"):
            session.run({"input": np.zeros((1, 3, 128, 128), np.float32)})


def test_max_batch_is_a_limit(machine: Machine, own: Path, images: Any, wanted: Any) -> None:
    for asked, used in ((64, 8), (3, 3)):
        with load(own, backend="tensorrt", max_batch=asked) as session:
            assert session.max_batch == used
            assert close(session.run({"input": images[:10]})["logits"], wanted[:10])


def test_run_async(machine: Machine, built: Path, images: Any, wanted: Any) -> None:
    with load(built, backend="tensorrt") as session:
        futures = [session.run_async({"input": images[i : i + 9]}) for i in range(0, 30, 3)]
        for start, future in zip(range(0, 30, 3), futures, strict=True):
            assert close(future.result(60)["logits"], wanted[start : start + 9])
        with pytest.raises(UsageError, match="missing"):
            session.run_async({}).result(60)
        waiting = [session.run_async({"input": images}) for _ in range(4)]
    assert all(close(future.result(0)["logits"], wanted) for future in waiting)  # close waited for them
    with pytest.raises(UsageError, match="closed"):
        session.run_async({"input": images[:1]})


def test_the_time_of_the_gpu_alone(machine: Machine, built: Path) -> None:
    with load(built, backend="tensorrt") as session:
        assert len(session.gpu_ms(5, runs=4)) == 4  # type: ignore[attr-defined]
        with pytest.raises(UsageError, match="a batch of 9 in one run; wanted at most 8"):
            session.gpu_ms(9, runs=1)  # type: ignore[attr-defined]


def test_options_that_make_no_sense(machine: Machine, own: Path) -> None:
    for options, text in (
        ({"device": "cpu"}, "device cpu on the backend tensorrt; wanted cuda"),
        ({"device": "cuda:x"}, "cuda:1 for the second GPU"),
        ({"threads": 2}, "threads on the backend tensorrt"),
    ):
        with pytest.raises(UsageError, match=text):
            load(own, backend="tensorrt", **options)  # type: ignore[arg-type]
    assert len(engines_of(own)) == 1 and L4.name == engines_of(own)[0].fingerprint.gpu


def test_a_session_that_outlives_the_first_one(
    machine: Machine, exported: Path, tmp_path: Path, images: Any, monkeypatch: Any
) -> None:
    """TensorRT keeps the first session's logger: it must be there, and hand on what concerns the second."""
    directory = machine.built(exported, tmp_path / "a", PROFILES)
    first, second = (load(directory, backend="tensorrt") for _ in range(2))
    first.close()
    gc.collect()
    load(directory, backend="tensorrt").close()

    def fail(self: Any, handle: int) -> bool:
        logger = machine.module._first_logger()
        logger.log(machine.module.ILogger.Severity.ERROR, "an illegal memory access")
        return False

    monkeypatch.setattr(machine.module._inner["IExecutionContext"], "execute_async_v3", fail)
    with second, pytest.raises(EngineError, match="could not run the engine: an illegal memory access"):
        second.run({"input": images[:1]})


def test_closed(machine: Machine, own: Path, images: Any) -> None:
    session = load(own, backend="tensorrt")
    session.run({"input": images[:1]})
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"input": images[:1]})
    assert machine.nothing_is_left()


def test_a_session_that_nobody_closes(machine: Machine, built: Path, images: Any) -> None:
    session = load(built, backend="tensorrt")
    session.run({"input": images[:1]})
    del session
    assert machine.nothing_is_left()
