"""config.pbtxt, through Triton's own protobuf definition: a field that Triton does not have cannot be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlpdeploy.classification import LOGITS
from mlpdeploy.env import require
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import Manifest, TensorSpec, usual_size
from mlpdeploy.triton.options import (
    DEFAULT_MAX_DELAY_MS,
    DEFAULT_QUEUE_LIMIT,
    DEFAULT_TIMEOUT_MS,
    TritonOptions,
)
from mlpdeploy.triton.source import Source

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

LABELS_NAME = "labels.txt"
IMAGE = "image"  # the ensemble's input: encoded pictures
_TYPES = {"bool": "TYPE_BOOL", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}


def definitions() -> Any:
    """Return Triton's protobuf module.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    require("tritonclient")
    require("grpc")
    return require("tritonclient.grpc.model_config_pb2")


def text_of(config: ModelConfig) -> str:
    """Return a config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def model_config(name: str, manifest: Manifest, source: Source, options: TritonOptions) -> ModelConfig:
    """Return the configuration of the model itself."""
    pb = definitions()
    config: ModelConfig = pb.ModelConfig(
        name=name,
        backend=options.backend,
        default_model_filename=source.model_file,
        max_batch_size=source.max_batch,
        version_policy=_policy(pb, options),
    )
    for spec in manifest.inputs:
        config.input.add(name=spec.name, data_type=_type(pb, spec), dims=_dims(spec, source.max_batch))
    _add_outputs(pb, config, manifest, source.max_batch)
    if source.max_batch:
        _set_batching(config, source, options)
    on_gpu = options.backend == "tensorrt" or options.device == "cuda"
    group = config.instance_group.add(kind=_kind(pb, on_gpu), count=options.instances)
    # Without names Triton takes the first profile only.
    group.profile.extend(str(index) for index in range(source.profiles if source.profiles > 1 else 0))
    if options.threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(options.threads)
    if options.warmup:
        for rows in sorted({1, source.max_batch}) if source.max_batch else (0,):
            _add_warmup(pb, config, manifest.inputs, rows, source.fastest)
    return config


def preprocess_config(name: str, manifest: Manifest, source: Source, options: TritonOptions) -> ModelConfig:
    """Return the configuration of the model that decodes and prepares photographs, in the Python backend."""
    pb = definitions()
    config: ModelConfig = pb.ModelConfig(
        name=name, backend="python", max_batch_size=source.max_batch, version_policy=_policy(pb, options)
    )
    config.input.add(name=IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    spec = manifest.inputs[0]
    config.output.add(name=spec.name, data_type=_type(pb, spec), dims=_prepared_dims(manifest))
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=options.instances)
    return config


def ensemble_config(
    name: str, steps: tuple[str, str], manifest: Manifest, source: Source, options: TritonOptions
) -> ModelConfig:
    """Return the configuration of the pipeline from encoded pictures to logits.

    Args:
        steps: names of the model that prepares and of the model itself.
    """
    pb = definitions()
    config: ModelConfig = pb.ModelConfig(
        name=name, platform="ensemble", max_batch_size=source.max_batch, version_policy=_policy(pb, options)
    )
    config.input.add(name=IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    _add_outputs(pb, config, manifest, source.max_batch)
    tensor, prepared = manifest.inputs[0].name, "prepared"
    first = config.ensemble_scheduling.step.add(model_name=steps[0], model_version=-1)
    first.input_map[IMAGE], first.output_map[tensor] = IMAGE, prepared
    second = config.ensemble_scheduling.step.add(model_name=steps[1], model_version=-1)
    second.input_map[tensor] = prepared
    for spec in manifest.outputs:
        second.output_map[spec.name] = spec.name
    return config


def _policy(pb: Any, options: TritonOptions) -> Any:
    return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=options.keep_versions))


def _kind(pb: Any, on_gpu: bool) -> Any:
    return pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU


def _type(pb: Any, spec: TensorSpec) -> Any:
    return getattr(pb, _TYPES.get(spec.dtype) or f"TYPE_{spec.dtype.upper()}")


def _dims(spec: TensorSpec, max_batch: int) -> list[int]:
    """Return sizes with -1 for open ones; Triton keeps the batch axis to itself where it batches."""
    return [size if isinstance(size, int) else -1 for size in (spec.shape[1:] if max_batch else spec.shape)]


def _prepared_dims(manifest: Manifest) -> list[int]:
    """Return the size of a prepared photograph: the crop's, whatever else the model would take."""
    assert manifest.preprocessing is not None
    channels = manifest.inputs[0].shape[1]
    assert isinstance(channels, int)
    return [channels, *manifest.preprocessing.height_width]


def _add_outputs(pb: Any, config: ModelConfig, manifest: Manifest, max_batch: int) -> None:
    for spec in manifest.outputs:
        output = config.output.add(name=spec.name, data_type=_type(pb, spec), dims=_dims(spec, max_batch))
        if manifest.labels and spec.layout == LOGITS:
            output.label_filename = LABELS_NAME


def _set_batching(config: ModelConfig, source: Source, options: TritonOptions) -> None:
    if max(options.preferred, default=0) > source.max_batch:
        raise UsageError(f"--preferred {max(options.preferred)}", f"at most the largest batch, {source.max_batch}")
    batching = config.dynamic_batching
    batching.preferred_batch_size.extend(sorted(set(options.preferred)) or source.preferred)
    delay_ms = DEFAULT_MAX_DELAY_MS if options.max_delay_ms is None else options.max_delay_ms
    timeout_ms = DEFAULT_TIMEOUT_MS if options.timeout_ms is None else options.timeout_ms
    batching.max_queue_delay_microseconds = round(1e3 * delay_ms)
    policy = batching.default_queue_policy
    policy.max_queue_size = DEFAULT_QUEUE_LIMIT if options.queue_limit is None else options.queue_limit
    policy.default_timeout_microseconds = round(1e3 * timeout_ms)
    policy.allow_timeout_override = True
    policy.timeout_action = policy.REJECT


def _add_warmup(
    pb: Any, config: ModelConfig, inputs: Sequence[TensorSpec], rows: int, fastest: Mapping[str, Sequence[int]]
) -> None:
    """Let Triton run random rows before the model is ready; 0 rows where the shape holds the batch."""
    sample = config.model_warmup.add(name=f"{rows or 'fixed'} rows", batch_size=rows)
    for spec in inputs:
        opened = fastest.get(spec.name, [usual_size(size) for size in spec.shape])
        sizes = [size if isinstance(size, int) else other for size, other in zip(spec.shape, opened, strict=True)]
        dims = sizes[1:] if rows else sizes
        sample.inputs[spec.name].data_type = _type(pb, spec)
        sample.inputs[spec.name].dims.extend(dims)
        sample.inputs[spec.name].random_data = True
