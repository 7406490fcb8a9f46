"""A KServe InferenceService as YAML: Kubernetes runs the server, this says with what.

What the fields mean: https://kserve.github.io/website/docs/reference/crd-api (serving.kserve.io/v1beta1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlpdeploy.env import closest
from mlpdeploy.errors import UsageError

Runtime = Literal["mlpdeploy", "triton"]
MODELS_PATH = "/mnt/models"  # where KServe puts what the storage URI names
HTTP_PORT, GRPC_PORT = 8080, 8081
SCHEMES = ("s3", "gs", "hf", "pvc", "https", "http", "hdfs", "webhdfs", "azure", "oci")


@dataclass(frozen=True)
class KServeOptions:
    """What an InferenceService is asked to be.

    Attributes:
        name: of the service and of the model.
        storage_uri: where the artifact is, or the Triton repository.
        runtime: `mlpdeploy`: a container that runs `mlpdeploy serve`; `triton`: KServe's own runtime.
        image: of the container, for `mlpdeploy`; it must have mlpdeploy[serve] and a backend installed.
        model_format: for `triton`, what is in the repository: `onnx` or `tensorrt`; None means `onnx`.
        min_replicas, max_replicas: between which KServe scales.
        cpu, memory: Kubernetes quantities that a replica asks for, and is limited to.
        gpus: of a replica.
    """

    name: str
    storage_uri: str
    runtime: Runtime = "mlpdeploy"
    image: str = ""
    model_format: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    cpu: str = "4"
    memory: str = "4Gi"
    gpus: int = 0

    def check(self) -> None:
        """Raise UsageError for what cannot be."""
        if self.runtime not in get_args(Runtime):
            raise UsageError(f"unknown runtime {self.runtime!r}", fix=closest(self.runtime, get_args(Runtime)))
        if len(self.name) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name):
            raise UsageError(
                f"the service name {self.name!r}",
                "small letters, digits and -",
                "give another with --name",
            )
        scheme, mark, rest = self.storage_uri.partition("://")
        if not mark or not rest or scheme not in SCHEMES:
            raise UsageError(f"the storage URI {self.storage_uri!r}", f"one that begins with {', '.join(SCHEMES)}")
        if (self.runtime == "mlpdeploy") != bool(self.image):
            raise UsageError(
                "no --image for the container" if not self.image else "--image for Triton, which KServe brings",
                fix="add --image REGISTRY/NAME:TAG" if not self.image else "leave it out",
            )
        if self.model_format is not None and self.runtime != "triton":
            raise UsageError(
                f"--model-format for the runtime {self.runtime}", fix="add --runtime triton, or leave it out"
            )
        if self.model_format not in (None, "onnx", "tensorrt"):
            raise UsageError(f"model format {self.model_format!r}", "onnx or tensorrt")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise UsageError(f"{self.min_replicas} to {self.max_replicas} replicas", "0 <= min <= max, max at least 1")
        for name, value in (("cpu", self.cpu), ("memory", self.memory)):
            if not re.fullmatch(r"[0-9]+(\.[0-9]+)?([mkMGTP]|[KMGTP]i)?", value):
                raise UsageError(f"{name} {value!r}", "a Kubernetes quantity, for example 4, 500m or 4Gi")
        if self.gpus < 0:
            raise UsageError(f"{self.gpus} GPUs", "0 or more")


def inference_service(options: KServeOptions) -> dict[str, Any]:
    """Return the manifest as data.

    Raises:
        UsageError: the options contradict each other, or Kubernetes would not take them.
    """
    options.check()
    amounts = {"cpu": options.cpu, "memory": options.memory}
    if options.gpus:
        amounts["nvidia.com/gpu"] = str(options.gpus)
    resources = {"requests": amounts, "limits": amounts}
    predictor: dict[str, Any] = {"minReplicas": options.min_replicas, "maxReplicas": options.max_replicas}
    if options.runtime == "triton":
        predictor["model"] = {
            "modelFormat": {"name": options.model_format or "onnx"},
            "runtime": "kserve-tritonserver",
            "protocolVersion": "v2",
            "storageUri": options.storage_uri,
            "resources": resources,
        }
    else:
        predictor["containers"] = [_container(options, resources)]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": options.name},
        "spec": {"predictor": predictor},
    }


def _container(options: KServeOptions, resources: dict[str, Any]) -> dict[str, Any]:
    """Return the container; KServe fills /mnt/models when it sees STORAGE_URI."""

    def probe(path: str, **more: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": HTTP_PORT}, "periodSeconds": 5, **more}

    return {
        "name": "kserve-container",
        "image": options.image,
        "command": ["mlpdeploy", "serve", f"{options.name}={MODELS_PATH}"],
        "args": ["--host", "0.0.0.0", "--http-port", str(HTTP_PORT), "--grpc-port", str(GRPC_PORT)],
        "env": [{"name": "STORAGE_URI", "value": options.storage_uri}],
        "ports": [{"name": "http1", "containerPort": HTTP_PORT, "protocol": "TCP"}],
        "readinessProbe": probe("/v2/health/ready"),
        "livenessProbe": probe("/v2/health/live", failureThreshold=6),
        "resources": resources,
    }


def yaml_of(manifest: dict[str, Any]) -> str:
    """Return a manifest as YAML; texts are quoted as in JSON, which YAML reads as they are."""
    return "\n".join(_lines(manifest, "")) + "\n"


def _lines(value: dict[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and isinstance(item[0], dict):
            yield f"{indent}{key}:"
            for entry in item:
                first, *others = _lines(entry, indent + "    ")
                yield f"{indent}  - {first.strip()}"
                yield from others
        else:
            yield f"{indent}{key}: {json.dumps(item)}"
