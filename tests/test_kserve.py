"""The InferenceService: what YAML reads back, and what the server's command line makes of the command in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mlpdeploy.cli import main
from mlpdeploy.commands.serve import serve
from mlpdeploy.errors import UsageError
from mlpdeploy.kserve import KServeOptions, inference_service, yaml_of

OPTIONS = KServeOptions("asmlp-t", "s3://models/asmlp_t", image="registry/mlpdeploy:1", max_replicas=3, gpus=1)


def test_yaml_is_the_manifest() -> None:
    manifest = inference_service(OPTIONS)
    assert yaml.safe_load(yaml_of(manifest)) == manifest
    strange = {"a": [{"b": ['x: "y"\n', "- ü", "no"], "c": {"d": "1"}}, {"e": True}], "f": 0}
    assert yaml.safe_load(yaml_of(strange)) == strange


def test_container() -> None:
    (container,) = inference_service(OPTIONS)["spec"]["predictor"]["containers"]
    assert container["env"] == [{"name": "STORAGE_URI", "value": "s3://models/asmlp_t"}]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    program, command, *arguments = [*container["command"], *container["args"]]
    assert (program, command) == ("mlpdeploy", "serve")
    with serve.make_context(command, arguments) as context:  # the options are the server's own
        assert context.params["directories"] == ("asmlp-t=/mnt/models",)
        assert context.params["http_port"] == container["ports"][0]["containerPort"]
        assert context.params["host"] == "0.0.0.0"


def test_triton() -> None:
    options = dataclasses.replace(OPTIONS, runtime="triton", image="", model_format="tensorrt")
    predictor = inference_service(options)["spec"]["predictor"]
    assert "containers" not in predictor
    assert predictor["model"]["modelFormat"] == {"name": "tensorrt"}
    assert predictor["model"]["storageUri"] == "s3://models/asmlp_t"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "asmlp_t"}, "small letters"),
        ({"name": "a" * 64}, "small letters"),
        ({"storage_uri": "models/asmlp_t"}, "storage URI"),
        ({"storage_uri": "s4://models"}, "storage URI"),
        ({"runtime": "tritn"}, "did you mean triton"),
        ({"image": ""}, "add --image"),
        ({"runtime": "triton"}, "leave it out"),
        ({"model_format": "pytorch", "runtime": "triton", "image": ""}, "onnx or tensorrt"),
        ({"model_format": "onnx"}, "add --runtime triton"),
        ({"min_replicas": 4}, "4 to 3 replicas"),
        ({"memory": "lots"}, "quantity"),
        ({"gpus": -1}, "-1 GPUs"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        inference_service(dataclasses.replace(OPTIONS, **changes))


def test_command(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "isvc.yaml"
    arguments = ["kserve", str(exported), "--storage-uri", "pvc://disk/tiny", "--image", "a/b:1"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.stdout)["metadata"]["name"] == "asmlp-t"
    done = CliRunner().invoke(main, [*arguments, "-o", str(output), "--name", "other"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert yaml.safe_load(output.read_text())["metadata"]["name"] == "other"
