"""The other runtimes take the quantized files: OpenVINO computes them, TensorRT-RTX parses and builds them."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest
from calibration_inputs import IMAGES, run, sqnr_db

from mlpdeploy.quant.calibration import Calibration
from mlpdeploy.quant.qdq import INT8_FORMS, insert_qdq
from mlpdeploy.quant.recipe import Recipe

Lowered = Callable[..., ir.Model]


def quantized_bytes(model: ir.Model, target: str, calibration: Calibration) -> bytes:
    insert_qdq(model, INT8_FORMS[target], calibration, Recipe("int8"))
    return bytes(ir.to_proto(model).SerializeToString())


@pytest.mark.parametrize("family", ["asmlp", "vip"])
def test_openvino(lowered: Lowered, calibrations: dict[str, Calibration], family: str) -> None:
    ov = pytest.importorskip("openvino")
    wanted = run(lowered(family))
    core = ov.Core()
    model = core.read_model(quantized_bytes(lowered(family, "openvino"), "openvino", calibrations[family]))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    assert sqnr_db(wanted, compiled(IMAGES)[0]) > 22
    operations = {op.get_rt_info()["runtimePrecision"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert operations & {"u8", "i8"}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "shift"), [("asmlp", "conv"), ("asmlp", "slice"), ("vip", None)])
def test_tensorrt_rtx(lowered: Lowered, calibrations: dict[str, Calibration], family: str, shift: str | None) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    data = quantized_bytes(lowered(family, "tensorrt", shift), "tensorrt", calibrations[family])
    assert parser.parse(data), [str(parser.get_error(index)) for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3, 32, 32), (4, 3, 32, 32), (4, 3, 32, 32))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
