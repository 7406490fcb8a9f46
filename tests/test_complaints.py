"""What users of such toolkits complain about, and the test that keeps each of it from happening here.

| complaint | what prevents it |
|---|---|
| a new major version of TensorRT breaks the tool | every name is looked up in the real bindings of 8.6, 10 and 11 |
| "fp16" gives an fp32 engine in silence | the engine is read back; a tensor in fp32 is told with the layer's name |
| rows of a batch get other rows' results | rows alone and in batches, bit by bit; `verify` checks it on every engine |
| INT8 is no faster than FP16, and nobody looked | INT8 is never measured on a GPU without FP16 beside it |
| INT8 is right in ONNX Runtime and wrong in TensorRT | `verify --backend tensorrt` compares the engine itself |
| FP16 overflows in norms | statistics stay in float32, and overflow is looked for on calibration images |
| engines with a header that nothing else can load | an engine is exactly what TensorRT gave |
| "IPluginCreator not found" | the library is loaded by itself; where it is missing, the error says what to type |
| a version mismatch ends in "'NoneType' has no attribute" | everything is compared before TensorRT is asked |
| "trtexec is faster than my code" | the GPU's own time and that from host to host are told apart |
| a build that says nothing for half an hour | a progress bar, and a timing cache that is kept |
| no example in C++ | a C++ library and program, tested on the same engines |
| a calibration cache that is taken for another model | it names model and images, and is refused for others |
| a deformable convolution that OpenVINO refuses | CycleMLP's only moves channels, and is an operator of ours |
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# In the table's order: a test, or several, as file and function.
PREVENTED_BY = (
    ("runtime/test_tensorrt_api.py::test_what_the_code_uses_is_there",),
    (
        "engines/test_tensorrt_build.py::test_half_that_became_fp32_names_the_layer",
        "engines/test_rtx.py::test_a_promised_precision_is_checked",
    ),
    ("runtime/trt/test_session.py::test_the_same_rows_whatever_their_neighbours",),
    ("test_gpu_script.py::test_everything_runs",),
    ("runtime/test_tensorrt_users.py::test_verify_sees_an_engine_that_computes_something_else",),
    (
        "quant/test_half.py::test_statistics_are_in_float32",
        "quant/test_half.py::test_overflow_is_found_before_it_happens",
    ),
    ("engines/test_tensorrt_build.py::test_an_engine_is_exactly_what_tensorrt_gave",),
    (
        "engines/test_tensorrt_build.py::test_a_plugin_that_is_not_there",
        "runtime/trt/test_plugins.py::test_the_plugin_library",
    ),
    ("runtime/trt/test_choice.py::test_another_version",),
    ("runtime/trt/test_session.py::test_the_time_of_the_gpu_alone",),
    (
        "engines/test_tensorrt_build.py::test_native_layers",
        "engines/test_tensorrt_build.py::test_the_timing_cache_grows_and_is_keyed",
    ),
    ("cpp/test_tensorrt.py::test_an_engine_that_python_describes_is_run",),
    ("quant/test_calibration.py::test_caches_that_are_refused",),
    (
        "export/test_export.py::test_cyclemlp_exports_and_equals_pytorch",
        "models/test_golden.py::test_feature_maps_of_any_size_equal_the_official_backbone_in_float64",
    ),
)
COMPLAINTS = re.findall(r"^\| (?!complaint|---)(.*?) \|", __doc__ or "", re.MULTILINE)


@pytest.mark.parametrize(("complaint", "tests"), list(zip(COMPLAINTS, PREVENTED_BY, strict=True)))
def test_there_is_a_test(complaint: str, tests: tuple[str, ...]) -> None:
    for test in tests:
        file, _, name = test.partition("::")
        functions = (
            node for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)
        )
        assert name in {function.name for function in functions}, (complaint, test)
