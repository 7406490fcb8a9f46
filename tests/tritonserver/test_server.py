"""A repository on a real Triton server, where there is one: MLPDEPLOY_TRITONSERVER is the command that starts it."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpdeploy
from mlpdeploy.images import preprocess, read_image
from mlpdeploy.triton.options import TritonOptions
from mlpdeploy.triton.repository import write_repository

COMMAND = os.environ.get("MLPDEPLOY_TRITONSERVER", "")
START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(not COMMAND, reason="no Triton: set MLPDEPLOY_TRITONSERVER to the command that starts it")
def test_the_repository_on_triton(exported: Path, tmp_path: Path) -> None:
    import tritonclient.grpc as client

    write_repository({"tiny": exported}, tmp_path / "repository", TritonOptions(ensemble=True, max_delay_ms=5.0))
    port = free_port()
    ports = [f"--grpc-port={port}", f"--http-port={free_port()}", "--allow-metrics=false"]
    command = [*shlex.split(COMMAND), f"--model-repository={tmp_path / 'repository'}", *ports]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            triton = client.InferenceServerClient(f"127.0.0.1:{port}")
            wait_until_ready(triton, server, tmp_path / "log")
            compare(client, triton, exported, tmp_path)
        finally:
            server.terminate()
            server.wait(30)


def wait_until_ready(triton: Any, server: subprocess.Popen[bytes], log: Path) -> None:
    from tritonclient.utils import InferenceServerException

    for _ in range(START_SECONDS * 4):
        assert server.poll() is None, log.read_text()
        try:
            if triton.is_server_ready():
                return
        except InferenceServerException:
            pass
        time.sleep(0.25)
    pytest.fail(log.read_text())


def compare(client: Any, triton: Any, exported: Path, tmp_path: Path) -> None:
    """Logits of tensors and of pictures are the Session's; a bad picture is an error and ends nothing."""
    from tritonclient.utils import InferenceServerException

    pixels = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    tensor = client.InferInput("input", pixels.shape, "FP32")
    tensor.set_data_from_numpy(pixels)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    pictures = client.InferInput("image", [2, 1], "BYTES")
    pictures.set_data_from_numpy(np.array([[path.read_bytes()] for path in paths], np.object_))
    with mlpdeploy.load(exported) as session:
        preprocessing = session.manifest.preprocessing
        assert preprocessing is not None
        prepared = np.stack([preprocess(read_image(path), preprocessing) for path in paths])
        expected, expected_pictures = (session.run({"input": rows})["logits"] for rows in (pixels, prepared))
    np.testing.assert_allclose(triton.infer("tiny", [tensor]).as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)
    got = triton.infer("tiny_photos", [pictures]).as_numpy("logits")
    np.testing.assert_allclose(got, expected_pictures, rtol=1e-4, atol=1e-5)
    broken = client.InferInput("image", [1, 1], "BYTES")
    broken.set_data_from_numpy(np.array([[paths[0].read_bytes()[:60]]], np.object_))
    with pytest.raises(InferenceServerException, match="picture"):
        triton.infer("tiny_photos", [broken])
    assert triton.is_server_ready()
