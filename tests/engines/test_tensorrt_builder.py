"""What the builder is told of the graph's types where TensorRT takes none from the graph itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from fakes.fake_tensorrt import make_tensorrt
from fakes.trt.network import ILayer

from mlpdeploy.engines.tensorrt_builder import set_precision
from mlpdeploy.errors import UsageError
from mlpdeploy.runtime.tensorrt_api import TensorRt


def test_precision_flags_where_there_are_no_types() -> None:
    api = TensorRt(make_tensorrt("8.6.1"), "tensorrt", "8.6.1")
    config = api.module.Builder(api.logger(lambda severity, text: None)).create_builder_config()
    config._trt = api.module
    kinds = api.module.DataType
    outputs = [SimpleNamespace(dtype=kind, name="") for kind in (kinds.HALF, kinds.FLOAT, kinds.INT32)]
    layers = [ILayer("", None, [output, output]) for output in outputs]
    network = SimpleNamespace(num_layers=3, get_layer=layers.__getitem__)
    set_precision(api, config, network, {"FLOAT", "HALF", "INT8"})
    assert not any(layer.precision for layer in layers)  # what quantizes decides there
    set_precision(api, config, network, {"FLOAT", "HALF"})
    assert [layer.precision for layer in layers] == [kinds.HALF, kinds.FLOAT, None]
    assert [layer._asked for layer in layers] == [
        dict.fromkeys((0, 1), kinds.HALF),
        dict.fromkeys((0, 1), kinds.FLOAT),
        {},
    ]
    assert {flag.name for flag in config._flags} == {"TF32", "FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}
    with pytest.raises(UsageError, match="bfloat16"):
        set_precision(api, config, network, {"BF16"})
