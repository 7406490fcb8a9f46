# Every target sets up what it needs. VENV=... chooses another virtual environment, PYTHON=... another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE = $(shell find mlpdeploy/plugins tests/plugins benchmarks/gpu -name "*.h" -o -name "*.cpp" -o -name "*.cu")

# The Python bindings of each major version of TensorRT, without TensorRT: a test compares what we use with them.
BINDINGS := $(VENV)/tensorrt-bindings

.PHONY: setup bindings demo test lint format bench cpp clean help

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/'

setup: $(READY)  ## make the virtual environment with everything in it

$(READY): pyproject.toml constraints.txt tests/plugins/requirements.txt tests/serving/requirements.txt
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "python3 lacks venv: on Debian and Ubuntu run: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --no-deps --requirement tests/plugins/requirements.txt || \
	  echo "no TensorRT headers or registry for this platform: the tests of the CUDA plugin will be skipped"
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/serving/requirements.txt
	touch $(READY)

bindings: $(BINDINGS)/.ready  ## install what the tests look up TensorRT's names in, and TensorRT 10's plugin registry (6 MB)

$(BINDINGS)/.ready: $(READY)
	for package in 8:tensorrt-bindings==8.6.1 10:tensorrt-cu13-bindings==10.16.1.11 11:tensorrt-cu13-bindings==11.4.0.106; do \
	  $(BIN)/python -m pip install --quiet --no-deps --target $(BINDINGS)/$${package%%:*} $${package#*:} || \
	  echo "no bindings of TensorRT $${package%%:*} for this platform: the test that compares them will be skipped"; done
	@$(BIN)/python -m pip install --quiet --no-deps --target $(BINDINGS)/registry-10 \
	  tensorrt-dispatch-cu13-libs==10.16.1.11 tensorrt-dispatch-cu13-bindings==10.16.1.11 || \
	  echo "no plugin registry of TensorRT 10 for this platform: its tests will be skipped"
	@mkdir -p $(BINDINGS)
	touch $@

demo: setup  ## export AS-MLP-S, prove it equal to PyTorch, classify two photographs, compare the speed
	$(BIN)/python examples/demo.py

test: setup bindings  ## run all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: setup  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

bench: setup  ## measure AS-MLP-T and ViP-S/7 against their peers into benchmarks/results (about ten minutes)
	$(BIN)/python benchmarks/cpu.py

cpp: export MLPDEPLOY_TEST_WARNINGS := 1
cpp: setup  ## build the C++ library and program into build/, and test them (docs/how-to/cpp.md)
	@command -v cmake >/dev/null && command -v g++ >/dev/null || { \
	  echo "cmake or g++ is missing: on Debian and Ubuntu run: sudo apt install cmake g++"; exit 1; }
	$(BIN)/python cpp/get_onnxruntime.py build/onnxruntime
	cd cpp && cmake --preset release $$($(abspath $(BIN))/python ../tests/cpp/native.py) && \
	  cmake --build --preset release --parallel $$(nproc)
	$(BIN)/python tests/cpp/artifacts.py build/cpp-artifacts
	cd cpp && MLPDEPLOY_TEST_ARTIFACTS=$(CURDIR)/build/cpp-artifacts ctest --preset release
	$(BIN)/python -m pytest tests/cpp

clean:  ## remove what the other targets made
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
