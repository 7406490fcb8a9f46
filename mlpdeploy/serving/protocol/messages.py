"""The protocol's gRPC messages, made at run time from their field numbers.

Names, numbers and types are those of the Open Inference Protocol, with the extensions that tritonclient calls. On the
wire nothing else counts, so that no generated code is needed, and any version of protobuf from 4 on will do. The
messages live in a pool of their own: a client in the same process may register its own under the same names.
"""

from __future__ import annotations

import functools
import re
from typing import Any

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# Message -> fields: `name type number`, with `*` behind the type of a repeated field, `{}` behind that of the values of
# a map from strings, and `|` behind that of the members of one oneof.
_MESSAGES = {
    "Empty": "",
    "Settings": "settings bytes* 1",
    "Named": "name string 1, version string 2",
    "ServerLiveResponse": "live bool 1",
    "ServerReadyResponse": "ready bool 1",
    "ModelReadyResponse": "ready bool 1",
    "ServerMetadataResponse": "name string 1, version string 2, extensions string* 3",
    "TensorMetadata": "name string 1, datatype string 2, shape int64* 3",
    "ModelMetadataResponse": "name string 1, versions string* 2, platform string 3, "
    "inputs TensorMetadata* 4, outputs TensorMetadata* 5",
    "InferParameter": "bool_param bool| 1, int64_param int64| 2, string_param string| 3, double_param double| 4, "
    "uint64_param uint64| 5",
    "InferTensorContents": "bool_contents bool* 1, int_contents int32* 2, int64_contents int64* 3, "
    "uint_contents uint32* 4, uint64_contents uint64* 5, fp32_contents float* 6, fp64_contents double* 7, "
    "bytes_contents bytes* 8",
    "InferTensor": "name string 1, datatype string 2, shape int64* 3, parameters InferParameter{} 4, "
    "contents InferTensorContents 5",
    "InferRequestedOutputTensor": "name string 1, parameters InferParameter{} 2",
    "ModelInferRequest": "model_name string 1, model_version string 2, id string 3, parameters InferParameter{} 4, "
    "inputs InferTensor* 5, outputs InferRequestedOutputTensor* 6, raw_input_contents bytes* 7",
    "ModelInferResponse": "model_name string 1, model_version string 2, id string 3, parameters InferParameter{} 4, "
    "outputs InferTensor* 5, raw_output_contents bytes* 6",
    "ModelStreamInferResponse": "error_message string 1, infer_response ModelInferResponse 2",
    "ModelInput": "name string 1, data_type int32 2, format int32 3, dims int64* 4",
    "ModelOutput": "name string 1, data_type int32 2, dims int64* 3",
    "ModelDynamicBatching": "preferred_batch_size int32* 1, max_queue_delay_microseconds uint64 2",
    "ModelInstanceGroup": "name string 1, count int32 2",
    "ModelConfig": "name string 1, platform string 2, max_batch_size int32 4, input ModelInput* 5, "
    "output ModelOutput* 6, instance_group ModelInstanceGroup* 7, dynamic_batching ModelDynamicBatching 11, "
    "backend string 17",
    "ModelConfigResponse": "config ModelConfig 1",
    "StatisticDuration": "count uint64 1, ns uint64 2",
    "InferStatistics": "success StatisticDuration 1, fail StatisticDuration 2, queue StatisticDuration 3, "
    "compute_input StatisticDuration 4, compute_infer StatisticDuration 5, compute_output StatisticDuration 6, "
    "cache_hit StatisticDuration 7, cache_miss StatisticDuration 8",
    "InferBatchStatistics": "batch_size uint64 1, compute_input StatisticDuration 2, "
    "compute_infer StatisticDuration 3, compute_output StatisticDuration 4",
    "ModelStatistics": "name string 1, version string 2, last_inference uint64 3, inference_count uint64 4, "
    "execution_count uint64 5, inference_stats InferStatistics 6, batch_stats InferBatchStatistics* 7",
    "ModelStatisticsResponse": "model_stats ModelStatistics* 1",
    "RepositoryIndexRequest": "repository_name string 1, ready bool 2",
    "ModelIndex": "name string 1, version string 2, state string 3, reason string 4",
    "RepositoryIndexResponse": "models ModelIndex* 1",
    "SystemSharedMemoryRegisterRequest": "name string 1, key string 2, offset uint64 3, byte_size uint64 4",
    "RegionStatus": "name string 1, key string 2, offset uint64 3, byte_size uint64 4",
    "SystemSharedMemoryStatusResponse": "regions RegionStatus{} 1",
}
_FIELD = re.compile(r"(\w+) (\w+)(\*|\{\}|\||) (\d+)")
# Enumerations are written as their numbers, which is what the wire has.
DATA_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)


@functools.cache
def message_classes() -> dict[str, Any]:
    """Return {name: class} of all messages."""
    from google.protobuf import descriptor_pool, message_factory
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in _FIELD.finditer(fields):
            _add_field(message, *field.groups())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


def _add_field(message: Any, name: str, kind: str, mark: str, number: str) -> None:
    """Add one field to a message's description."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if mark in ("*", "{}") else field.LABEL_OPTIONAL
    if mark == "{}":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", "string", "", "1")
        _add_field(entry, "value", kind, "", "2")
        kind = f"{message.name}.{entry.name}"
    if mark == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    scalar = f"TYPE_{kind.upper()}"
    if scalar in FieldDescriptorProto.Type.keys():  # noqa: SIM118 - an enumeration, not a dict
        field.type = FieldDescriptorProto.Type.Value(scalar)
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
