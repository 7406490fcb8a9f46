"""The names that TensorRT's versions have, as far as this project uses them."""

from __future__ import annotations

from fakes.trt.network import KINDS

# What the versions do not share; all other names of the stand-in are in all three.
MEMBERS = {
    "NetworkDefinitionCreationFlag": {
        8: ("EXPLICIT_BATCH",),
        10: ("EXPLICIT_BATCH", "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"),
        11: ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"),
    },
    "BuilderFlag": {
        8: ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32", "REFIT", "VERSION_COMPATIBLE"),
        10: ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "TF32", "REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN"),
        11: ("TF32", "REFIT", "VERSION_COMPATIBLE", "STRIP_PLAN"),
    },
    "DataType": {
        8: ("FLOAT", "HALF", "INT8", "INT32", "BOOL"),
        10: ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "BF16", "INT64"),
        11: ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "BF16", "INT64"),
    },
    "LayerType": {
        major: (*dict.fromkeys(KINDS.values()), "ELEMENTWISE", "PLUGIN_V2", *(("PLUGIN_V3",) if major > 8 else ()))
        for major in (8, 10, 11)
    },
    "HardwareCompatibilityLevel": {
        8: ("NONE", "AMPERE_PLUS"),
        10: ("NONE", "AMPERE_PLUS"),
        11: ("NONE", "AMPERE_PLUS"),
    },
    "QuickPluginCreationRequest": dict.fromkeys((10, 11), ("UNKNOWN", "PREFER_AOT", "STRICT_AOT")),
    "TensorFormat": dict.fromkeys((8, 10, 11), ("LINEAR", "HWC", "HWC8", "HWC16", "CHW32")),
    "MemoryPoolType": dict.fromkeys((8, 10, 11), ("WORKSPACE",)),
    "ProfilingVerbosity": dict.fromkeys((8, 10, 11), ("LAYER_NAMES_ONLY", "DETAILED")),
    "LayerInformationFormat": dict.fromkeys((8, 10, 11), ("ONELINE", "JSON")),
    "TensorIOMode": dict.fromkeys((8, 10, 11), ("NONE", "INPUT", "OUTPUT")),
    "PreviewFeature": {8: ("PROFILE_SHARING_0806",), 10: ("PROFILE_SHARING_0806",), 11: ()},
    "ExecutionContextAllocationStrategy": dict.fromkeys((10, 11), ("STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED")),
}


# What TensorRT-RTX has beside what 11 has.
RTX_MEMBERS = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
}
