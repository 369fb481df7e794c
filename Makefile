# make build   .venv, dependencies, compiled extension
# make score   the main job: train on the KuaiRand slice, rank its catalog for 512 users
# make test    the tests
# make check   ruff, mypy, clang-format
# make gpu     on a machine with an NVIDIA GPU: build, tests, sanitizer and benchmarks within 9 minutes, without network;
#              PYTHON needs torch (a CUDA build) and NumPy, PATH nvcc and CMake: bench/results/gpu-<name>.md,
#              and with OUT=folder the report and the logs there too
# make bench   compare with PyTorch, ONNX Runtime and OpenVINO: bench/results/<machine>.md (bench-quick: 3 minutes)
#
# PYTHON=python3.12        the interpreter to build with
# TORCH=torch==2.11.0      another torch (2.10 or newer); TORCH=installed uses the one PYTHON has
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EXAMPLE := out

NATIVE := $(shell find csrc python cmake -type f) CMakeLists.txt setup.py pyproject.toml resflow_kernels/contract/ops.def \
  resflow_kernels/contract/enums.def resflow_kernels/contract/errors.def resflow_kernels/contract/plan.def

.PHONY: build score test check bench bench-quick gpu format clean

build: $(VENV)/built

$(VENV)/torch:
	@echo "== .venv with $(TORCH)"
ifeq ($(TORCH),installed)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	$(BIN)/python -c "import torch; v = tuple(map(int, torch.__version__.split('.')[:2])); assert v >= (2, 10), f'torch must be 2.10 or newer, got {torch.__version__}'"
else
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$(TORCH)"
endif
	$(PIP) install "setuptools>=77" wheel "cmake>=3.25" "pybind11>=2.13"
	@touch $@

$(VENV)/built: $(VENV)/torch $(NATIVE)
	@echo "== compiling"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation -e ".[dev]"
	@touch $@

score: build
	$(BIN)/python -m examples.kuairand.train -o $(EXAMPLE)/kuairand.safetensors
	$(BIN)/resflow score $(EXAMPLE)/kuairand.safetensors $(EXAMPLE)/requests.parquet --catalog $(EXAMPLE)/videos.parquet \
	  --labels $(EXAMPLE)/labels.parquet --top-k 100 -o $(EXAMPLE)/scores.parquet --compare-eager

test: build
	$(BIN)/ctest --test-dir build/$$($(BIN)/python -c "import sys; print(sys.implementation.cache_tag)")-editable --output-on-failure
	$(BIN)/python -m pytest -n auto --dist worksteal -q

CPP := $(shell find csrc python tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu')

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# The baselines are not part of a development install, so that it stays small.
$(VENV)/baselines: $(VENV)/built
	@echo "== baselines"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install --no-build-isolation -e ".[bench]"
	@touch $@

bench: $(VENV)/baselines
	$(BIN)/python -m bench.run

bench-quick: $(VENV)/baselines
	$(BIN)/python -m bench.run --quick

# Not through .venv: what the machine's Python has is all there is.
gpu:
	$(PYTHON) -m bench.gpu.run

clean:
	rm -rf build $(EXAMPLE) resflow_kernels/*.so resflow_kernels/_build.json $(VENV)/built $(VENV)/baselines
