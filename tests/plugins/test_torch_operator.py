"""The torch operator: equal to the reference, whole under opcheck and torch.compile; its way into the library.

The kernel itself runs on a GPU only. Here the library's C function is called through the operator's own code: in the
real library, which refuses without a driver, and in one whose launcher computes on the host.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_asmlp

from mlpdeploy import torch_operator
from mlpdeploy.errors import PluginError, UsageError
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec, axial_shift_ref
from mlpdeploy.plugins.find import PluginLibrary
from mlpdeploy.plugins.toolchain import CSRC, Toolchain
from mlpdeploy.torch_operator import ELEMENT_TYPES, axial_shift, launch, launcher_of, operator, use_operator

NATIVE = Path(__file__).parent / "native"
SPECS = [ShiftSpec(5, 1, padding) for padding in PADDINGS] + [ShiftSpec(3, 2), ShiftSpec(1)]


def sample(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> torch.Tensor:
    """Return whole numbers that every type holds."""
    x = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_equal_to_the_reference(spec: ShiftSpec, last: bool) -> None:
    x = sample(2, 20, 7, 9, last=last)
    for got, wanted in zip(axial_shift(x, spec), axial_shift_ref(x, spec), strict=True):
        assert torch.equal(got, wanted)
        assert got.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert got.data_ptr() != x.data_ptr()  # an operator's output is never its input, also where nothing moves


@pytest.mark.parametrize("padding", torch_operator.DIFFERENTIABLE)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(padding: str, last: bool) -> None:
    """Schema, fake kernel, autograd registration and what torch.compile makes of it, by torch's own test."""
    x = sample(2, 6, 5, 7, last=last).requires_grad_()
    found = torch.library.opcheck(operator, (x, 3, 1, padding))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("padding", torch_operator.DIFFERENTIABLE)
def test_gradient_is_that_of_the_reference(padding: str) -> None:
    spec = ShiftSpec(5, 1, padding)  # type: ignore[arg-type]
    grads = []
    for function in (axial_shift, axial_shift_ref):
        x = sample(2, 11, 7, 9, dtype=torch.float64).requires_grad_()
        along_w, along_h = function(x, spec)
        (along_w * sample(2, 11, 7, 9) + along_h.pow(2)).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_a_gradient_that_is_not_known_is_refused() -> None:
    x = sample(1, 5, 4, 4).requires_grad_()
    with pytest.raises(UsageError, match="gradient through axial_shift with reflect padding"):
        axial_shift(x, ShiftSpec(3, 1, "reflect"))[0].sum().backward()


@pytest.mark.parametrize("branches", ["parallel", "serial"])
def test_a_whole_model_in_torch_compile(branches: str) -> None:
    model = tiny_asmlp(branches=branches)
    x = torch.randn(2, 3, *model.config.image_size)
    with torch.no_grad():
        wanted = model(x)
        # One graph, the operator in it: a break would raise. Code generation is not what is tested here.
        graphs: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(use_operator(model), fullgraph=True, backend=backend)
        assert torch.equal(compiled(x), wanted)
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    blocks = sum(model.config.depths)
    calls = {"parallel": 1, "serial": 2}[branches]
    assert sum("mlpdeploy.axial_shift" in target for target in targets) == blocks * calls
    assert len(graphs) == 1


def test_use_operator_refuses_a_model_without_a_shift() -> None:
    with pytest.raises(UsageError, match="has no axial shift"):
        use_operator(torch.nn.Linear(1, 1))


def test_bad_options_are_refused() -> None:
    x = sample(1, 5, 4, 4)
    for arguments in ((4, 1, "zero"), (3, 0, "zero"), (3, 1, "mirror"), (9, 1, "reflect")):
        with pytest.raises(UsageError):
            operator(x, *arguments)


@pytest.fixture(scope="module")
def host_launcher(tools: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The C function over a launcher that computes on the host; c_launcher.cpp is the library's own."""
    library = tmp_path_factory.mktemp("launcher") / "libhost.so"
    op = CSRC / "axial_shift"
    command = [str(tools.nvcc), "-std=c++17", "-O2", "-shared", "-cudart", "none", f"-I{op}"]
    command += ["-Xcompiler", "-fPIC,-Wall,-Wextra,-Wno-unknown-pragmas,-Werror"]
    sources = [NATIVE / "host_launcher.cpp", op / "c_launcher.cpp"]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    return launcher_of(library)


@pytest.mark.parametrize("dtype", ELEMENT_TYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_every_argument_reaches_the_launcher(host_launcher: Any, dtype: torch.dtype, last: bool) -> None:
    for spec in SPECS:
        x = sample(2, 20, 7, 9, dtype=dtype, last=last)
        outputs = torch_operator._outputs(x)
        launch(host_launcher, x, spec, outputs, stream=1)
        wanted = axial_shift_ref(x.double(), spec)
        for got, want in zip(outputs, wanted, strict=True):
            assert torch.equal(got.double(), want), (spec, dtype)


def test_other_strides_are_copied_first(host_launcher: Any) -> None:
    x = sample(2, 20, 18, 7).permute(0, 1, 3, 2)[:, :, :, ::2]
    outputs = torch_operator._outputs(x)
    launch(host_launcher, x, ShiftSpec(5), outputs, stream=1)
    assert torch.equal(outputs[0], axial_shift_ref(x, ShiftSpec(5))[0])


def test_the_launcher_is_asked_for_nothing_that_it_refuses(host_launcher: Any) -> None:
    x = sample(1, 5, 4, 4, dtype=torch.float64)
    with pytest.raises(UsageError, match=r"axial_shift of torch\.float64 on cpu; wanted float32"):
        launch(host_launcher, x, ShiftSpec(3), (x, x), 1)
    x = sample(1, 5, 4, 4)
    with pytest.raises(UsageError, match="reflect padding by 4"):
        launch(host_launcher, x, ShiftSpec(9, 1, "reflect"), (x, x), 1)
    with pytest.raises(PluginError, match="CUDA error 1"):
        launch(host_launcher, x, ShiftSpec(3), torch_operator._outputs(x), 0)


def test_the_real_library_has_the_function(plugin_library: PluginLibrary) -> None:
    """It checks its arguments before it asks CUDA, and says what CUDA says: without a driver, an error."""
    function = launcher_of(plugin_library.path)
    x = sample(1, 5, 4, 4)
    pointers = [tensor.data_ptr() for tensor in (x, *torch_operator._outputs(x))]
    assert function(1, 5, 4, 4, 1, 2, 1, 0, 0, *pointers, 0) == 1  # an even shift size: cudaErrorInvalidValue
    assert function(0, 5, 4, 4, 1, 3, 1, 0, 0, *pointers, 0) == 0  # no rows, nothing to launch
    if not torch.cuda.is_available():
        with pytest.raises(PluginError, match=r"was not launched \(CUDA error \d+\)"):
            launch(function, x, ShiftSpec(3), torch_operator._outputs(x), 0)


def test_without_a_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_operator.launcher.cache_clear()
    with pytest.raises(PluginError, match=r"axial_shift on a GPU: the CUDA plugin is not built.*plugin build"):
        torch_operator.launcher()
    (tmp_path / "no.so").write_bytes(b"no library")
    with pytest.raises(PluginError, match="has no mlpdeploy_axial_shift"):
        launcher_of(tmp_path / "no.so")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use")
    for dtype in ELEMENT_TYPES:
        for spec in SPECS:
            for last in (False, True):
                x = sample(2, 20, 7, 9, dtype=dtype, last=last)
                for got, want in zip(axial_shift(x.cuda(), spec), axial_shift_ref(x.double(), spec), strict=True):
                    assert torch.equal(got.cpu().double(), want), (spec, dtype, last)
