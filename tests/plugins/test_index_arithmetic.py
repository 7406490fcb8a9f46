"""The kernel's index arithmetic, compiled for the host from the same header, against ops/axial_shift.py."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpdeploy.errors import UsageError
from mlpdeploy.ops.axial_shift import PADDINGS, ShiftSpec, axial_shift_ref
from mlpdeploy.plugins.toolchain import CSRC

NATIVE = Path(__file__).parent / "native"
NARROW_LIMIT = 1 << 30
CASES = 2000

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def compile_host(source: str, program: Path, *options: str) -> None:
    """Compile a program of tests/plugins/native against the op's headers, with every warning an error."""
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wno-unknown-pragmas", "-Werror"]
    command = ["g++", "-std=c++17", *warnings, *options, f"-I{CSRC / 'axial_shift'}", str(NATIVE / source)]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Case:
    """One call of the kernel: `limit` is what counts as too large for one launch of 32-bit indices."""

    shape: tuple[int, int, int, int]
    block: int
    spec: ShiftSpec
    bytes: int
    offset: int
    limit: int

    @property
    def memory_shape(self) -> tuple[int, ...]:
        n, c, h, w = self.shape
        return n, -(-c // self.block), h, w, self.block

    def fields(self) -> np.ndarray:
        spec = (self.spec.shift_size, self.spec.dilation, PADDINGS.index(self.spec.padding))
        return np.array([*self.shape, self.block, *spec, self.bytes, self.offset, self.limit], np.int64)

    def expected(self, memory: np.ndarray) -> list[np.ndarray]:
        """Return what the kernel must write, from the torch reference on element numbers (0 is "a zero comes in")."""
        n, c, h, w = self.shape
        numbers = np.arange(1, memory.size + 1, dtype=np.float64).reshape(self.memory_shape)
        planar = numbers.transpose(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]
        values = np.concatenate([np.zeros(1, memory.dtype), memory.ravel()])
        results = []
        for moved in axial_shift_ref(torch.from_numpy(planar.copy()), self.spec):
            filled = np.zeros((n, self.memory_shape[1] * self.block, h, w), np.int64)
            filled[:, :c] = moved.numpy().astype(np.int64)
            back = filled.reshape(n, -1, self.block, h, w).transpose(0, 1, 3, 4, 2)
            results.append(values[back])
        return results


def random_case(rng: np.random.Generator) -> Case:
    while True:
        spec = ShiftSpec(int(rng.choice([1, 3, 5, 7, 9])), int(rng.choice([1, 1, 2, 3])), str(rng.choice(PADDINGS)))
        sizes = [1, 2, 3, 5, 7, 8, 14, 16, 17, 28, 33, 56]
        shape = (int(rng.integers(1, 6)), int(rng.integers(1, 70)), int(rng.choice(sizes)), int(rng.choice(sizes)))
        if np.prod(shape) > 40_000:
            continue
        try:
            spec.check_size(*shape[2:])
        except UsageError:
            continue
        channels = shape[1]
        block = int(rng.choice([1, 1, 1, channels, -(-channels // 8) * 8, -(-channels // 16) * 16, 32, 4]))
        limit = int(rng.choice([NARROW_LIMIT, NARROW_LIMIT, 0, np.prod(shape) // 2, np.prod(shape[1:]) * 3]))
        return Case(shape, block, spec, int(rng.choice([1, 2, 4])), int(rng.choice([0, 0, 0, 1, 3])), limit)


def run_cases(program: Path, cases: list[Case], folder: Path, rng: np.random.Generator) -> list[str]:
    """Run all cases in one process; return a line for each that differs from the reference."""
    memories = []
    with (folder / "cases").open("wb") as file:
        for case in cases:
            dtype = np.dtype(f"u{case.bytes}")
            memories.append(rng.integers(1, np.iinfo(dtype).max, case.memory_shape, dtype, endpoint=True))
            file.write(case.fields().tobytes() + memories[-1].tobytes())
    command = [program, folder / "cases", folder / "results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    data, at, wrong = (folder / "results").read_bytes(), 0, []
    for case, memory in zip(cases, memories, strict=True):
        assert data[at] == 0, f"refused: {case}"
        at += 1
        for name, wanted in zip(("Y_w", "Y_h"), case.expected(memory), strict=True):
            got = np.frombuffer(data, memory.dtype, memory.size, at).reshape(memory.shape)
            at += memory.nbytes
            if not np.array_equal(got, wanted):
                wrong.append(f"{name} of {case}: {np.count_nonzero(got != wanted)} elements")
    assert at == len(data)
    return wrong


@pytest.fixture(scope="module")
def host_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("native") / "host_shift"
    compile_host("host_shift.cpp", program, "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    return program


def test_equals_the_reference_on_random_shapes_types_layouts_and_options(host_shift: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(20261122)
    wrong = run_cases(host_shift, [random_case(rng) for _ in range(CASES)], tmp_path, rng)
    assert not wrong, f"{len(wrong)} of {CASES}\n" + "\n".join(wrong[:10])


def test_equals_the_reference_where_a_chunk_holds_several_planes(host_shift: Path, tmp_path: Path) -> None:
    """Images smaller than 16 bytes: a chunk can begin and end in one group with others in between."""
    rng = np.random.default_rng(4)
    cases = []
    for _ in range(600):
        shape = (int(rng.integers(8, 40)), int(rng.integers(1, 8)), int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        spec = ShiftSpec(int(rng.choice([3, 5])), 1, str(rng.choice(["zero", "replicate"])))
        cases.append(Case(shape, 1, spec, int(rng.choice([1, 2, 4])), 0, NARROW_LIMIT))
    wrong = run_cases(host_shift, cases, tmp_path, rng)
    assert not wrong, "\n".join(wrong[:10])


def test_equals_the_reference_on_the_models_shapes(host_shift: Path, tmp_path: Path) -> None:
    """AS-MLP's four stages in every padding, and in the types and layouts that a TensorRT engine would choose."""
    cases = []
    for channels, size in ((96, 56), (192, 28), (384, 14), (768, 7)):
        for padding in PADDINGS:
            for width, block in ((4, 1), (2, 1), (1, 1), (2, channels), (1, 32)):
                cases.append(Case((1, channels, size, size), block, ShiftSpec(5, 1, padding), width, 0, NARROW_LIMIT))
    wrong = run_cases(host_shift, cases, tmp_path, np.random.default_rng(1))
    assert not wrong, "\n".join(wrong)


Parameters = tuple[int, int, int, int, int, int, int, int]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[tuple]], list[str]]:
    """Return a function that puts questions to host_index.cpp: (verb, parameters..., index) -> a line each."""
    program = tmp_path_factory.mktemp("native") / "host_index"
    compile_host("host_index.cpp", program, "-O1", "-fsanitize=undefined", "-fno-sanitize-recover")

    def answers(questions: list[tuple]) -> list[str]:
        text = "".join(" ".join(map(str, question)) + "\n" for question in questions)
        done = subprocess.run([program], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return answers


def by_contract(parameters: Parameters, index: int) -> tuple[int, int]:
    """Return the two sources of one element in Python's unbounded integers; zero padding only."""
    _, c, h, w, block, shift_size, dilation, _ = parameters
    rest, inner = divmod(index, block)
    rest, at_w = divmod(rest, w)
    rest, at_h = divmod(rest, h)
    channel = rest % -(-c // block) * block + inner
    move = (channel // -(-c // shift_size) - shift_size // 2) * dilation
    if channel >= c:
        return -1, -1
    from_w, from_h = at_w - move, at_h - move
    return (
        index - move * block if 0 <= from_w < w else -1,
        index - move * block * w if 0 <= from_h < h else -1,
    )


def test_more_elements_than_31_and_32_bits_count(ask: Callable[[list[tuple]], list[str]]) -> None:
    rng = np.random.default_rng(2)
    questions, wanted = [], []
    for parameters in (
        (1, 96, 70_000, 1000, 1, 5, 1, 0),
        (3, 100, 90_001, 701, 100, 7, 3, 0),
        (1 << 30, 96, 14, 14, 1, 5, 1, 0),
        (1, 17, 1 << 20, 1 << 19, 32, 5, 1_000_003, 0),
    ):
        n, c, h, w, block = parameters[:5]
        total = n * -(-c // block) * block * h * w
        assert total > 1 << 32
        for index in [0, total - 1, (1 << 31) - 1, 1 << 31, 1 << 32, *rng.integers(0, total, 500).tolist()]:
            questions.append(("source", *parameters, index))
            wanted.append(by_contract(parameters, index))
    got = [tuple(map(int, line.split())) for line in ask(questions)]
    assert got == wanted


def test_a_product_with_the_reciprocal_is_the_quotient(tmp_path: Path) -> None:
    """Every number to 5000, powers of two and their neighbours, random ones of each length; up to 2^31 - 1."""
    compile_host("host_division.cpp", tmp_path / "host_division", "-O2")
    done = subprocess.run([tmp_path / "host_division"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok\n")


def test_places_of_the_largest_tensors_that_32_bits_index(ask: Callable[[list[tuple]], list[str]]) -> None:
    rng = np.random.default_rng(5)
    questions, wanted = [], []
    for n, c, h, w, block in (
        (3566, 96, 56, 56, 1),
        (1, 1, 1 << 15, 1 << 15, 1),
        (1, 1, 1, 1 << 30, 1),
        (1 << 30, 1, 1, 1, 1),
        (1, 1 << 30, 1, 1, 1),
        (1, 3, 32_749, 10_923, 1),
        (5461, 1001, 14, 14, 1001),
        (7, 100, 1021, 1024, 32),
        (1, 1 << 30, 1, 1, 1 << 30),
    ):
        blocks = -(-c // block)
        total = n * blocks * block * h * w
        assert (1 << 30) * 0.8 < total <= NARROW_LIMIT
        for index in [0, total - 1, *rng.integers(0, total, 500).tolist()]:
            questions.append(("place", n, c, h, w, block, 5, 1, 0, index))
            outer, within = divmod(index, block * h * w)
            pixel, inner = divmod(within, block)
            wanted.append((within, outer % blocks * block + inner, *divmod(pixel, w)))
    got = [tuple(map(int, line.split())) for line in ask(questions)]
    assert got == wanted


def test_large_tensors_are_cut_along_n_so_that_32_bits_count_each_launch(
    ask: Callable[[list[tuple]], list[str]],
) -> None:
    image = 96 * 56 * 56
    (line,) = ask([("launches", 9000, 96, 56, 56, 1, 5, 1, 0)])
    launches = np.array(line.split(), np.int64).reshape(-1, 4)
    assert launches[:, 0].sum() == 9000 and len(launches) == 3
    assert (launches[:, 0] * image <= NARROW_LIMIT).all()
    np.testing.assert_array_equal(launches[:, 1], np.cumsum([0, *launches[:-1, 0]]) * image)
    assert (launches[:, 2:] == (8, 4)).all()
    # An odd image: each launch but the last is a multiple of 16 images, so that all of them begin aligned.
    (line,) = ask([("launches", 40_000_000, 9, 3, 3, 1, 5, 1, 0)])
    launches = np.array(line.split(), np.int64).reshape(-1, 4)
    assert len(launches) > 2 and (launches[:-1, 0] % 16 == 0).all() and (launches[:, 2] == 8).all()
    # One image that is too large by itself.
    (line,) = ask([("launches", 3, 96, 70_000, 1000, 1, 5, 1, 0)])
    assert line.split() == ["3", "0", "1", "8"]


def test_refuses_what_the_reference_refuses(ask: Callable[[list[tuple]], list[str]]) -> None:
    rng = np.random.default_rng(3)
    questions, wanted = [], []
    for _ in range(2000):
        size, dilation, padding = int(rng.integers(-2, 8)), int(rng.integers(-1, 4)), int(rng.integers(0, 4))
        height, width = rng.integers(0, 9, 2).tolist()
        questions.append(("refusal", 1, 5, height, width, 1, size, dilation, padding))
        try:
            ShiftSpec(size, dilation, PADDINGS[padding]).check_size(height, width)  # type: ignore[arg-type]
            # The reference takes an empty image where it has nothing to pad; no kernel does.
            wanted.append(min(height, width) < 1)
        except UsageError:
            wanted.append(True)
    got = [bool(line) for line in ask(questions)]
    assert 200 < sum(wanted) < 1900
    assert got == wanted
    assert all(ask([("refusal", 1, 5, 4, 4, 1, 5, 1, 9), ("refusal", 1 << 40, 1 << 20, 9, 9, 1, 5, 1, 0)]))
