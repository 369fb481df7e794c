# make build        .venv with everything needed, and the compiled extension (same as `make`)
# make score        the main example: train on the KuaiRand slice, rank its catalog for 512 users
# make test         run the tests
# make check        ruff, mypy, clang-format
# make format       let these tools fix what they can
# make arm          cross-compile the CPU kernels for 64-bit Arm and run their C++ tests in QEMU; needs the packages
#                   g++-aarch64-linux-gnu and qemu-user (Debian, Ubuntu)
# make bench        compare with PyTorch, ONNX Runtime and OpenVINO: bench/results/<machine>.md (bench-quick: 3 minutes)
# make bench-models what fuse does to the models of four recommender packages, installed into .venv:
#                   bench/results/models-<machine>.md
# make gpu          on a machine with an NVIDIA GPU: build, tests, sanitizer and benchmarks within 9 minutes, without
#                   network; PYTHON needs torch (a CUDA build) and NumPy, PATH needs nvcc and CMake:
#                   bench/results/gpu-<name>.md; OUT=folder also copies the report and the logs there
# make test-matrix  test the wheel, built once, with the oldest torch, the usual one and the newest that pip finds:
#                   gigabytes of downloads
# make clean        delete compiled files and the example's output; keeps .venv
# make help         print this list
#
# PYTHON=python3.12        the interpreter to build with
# TORCH=torch==2.11.0      another torch (2.10 or newer); TORCH=installed uses the one that PYTHON has
#                          Both are remembered with .venv; other values make it anew.
# RESFLOW_CUDA=OFF         no GPU kernels even if there is an nvcc; ON: an error if there is none
# MATRIX="2.10.0 2.15.0"   for test-matrix: other versions of torch
# MATRIX_FOLDER=folder     for test-matrix: the folder of the environments, by default build/matrix
.DEFAULT_GOAL := build

VENV := .venv
BIN := $(VENV)/bin
EXAMPLE := out

# Settings that are not given are those with which .venv was made, if it was made with any.
given = $(or $($1),$(shell cat $(VENV)/settings $(VENV)/options 2>/dev/null | sed -n 's/^$1=//p'))
GIVEN_PYTHON := $(call given,PYTHON)
GIVEN_TORCH := $(call given,TORCH)
PYTHON := $(or $(GIVEN_PYTHON),python3)
USUAL := 2.13.0
TORCH := $(or $(GIVEN_TORCH),torch==$(USUAL))
export RESFLOW_CUDA := $(or $(call given,RESFLOW_CUDA),AUTO)
# For a torch that does not bring Triton.
TRITON := triton==3.6.0
# The packages whose models `make bench-models` fuses. They ask for an old NumPy, an old torchmetrics and libraries of text
# and images: what their models of tables import is the extra `models`.
MODELS := deepctr-torch==0.3.0 torch-rechub==0.9.0 pytorch-widedeep==1.7.0 torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Later installations may not replace torch: a package that needs another one is an error.
INSTALL := $(PIP) install -c $(VENV)/constraints.txt
NATIVE := $(shell find csrc python cmake tests resflow_kernels -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cmake' \
  -o -name '*.def') CMakeLists.txt setup.py

.PHONY: build score test check arm bench bench-quick bench-models gpu format clean help test-matrix always

build: $(VENV)/built $(VENV)/packages

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

define SETTINGS
PYTHON=$(GIVEN_PYTHON)
TORCH=$(GIVEN_TORCH)
made with PYTHON=$(PYTHON) TORCH=$(TORCH)
endef
export SETTINGS

# Checked in every call, and rewritten when other settings are given: .venv is then outdated.
$(VENV)/settings: always
	@[ "$$(cat $@ 2>/dev/null)" = "$$SETTINGS" ] || { \
	  if [ -e $@ ]; then echo "== .venv is made anew: it was $$(tail -n 1 $@), now PYTHON=$(PYTHON) TORCH=$(TORCH)"; rm -rf $(VENV); fi; \
	  mkdir -p $(VENV) && printf '%s\n' "$$SETTINGS" > $@; }

$(VENV)/options: always $(VENV)/settings
	@[ "$$(cat $@ 2>/dev/null)" = "RESFLOW_CUDA=$$RESFLOW_CUDA" ] || echo "RESFLOW_CUDA=$$RESFLOW_CUDA" > $@

$(VENV)/torch: $(VENV)/settings
	@"$(PYTHON)" tools/environment.py start
	@echo "== .venv: PYTHON=$(PYTHON) TORCH=$(TORCH)"
	"$(PYTHON)" -m venv $(if $(filter installed,$(TORCH)),--system-site-packages) $(VENV)
ifeq ($(TORCH),installed)
	"$(PYTHON)" tools/environment.py parents > "$$($(BIN)/python tools/environment.py home)/parents.pth"
else
	$(PIP) install "$(TORCH)"
endif
	$(BIN)/python tools/environment.py constraint > $(VENV)/constraints.txt
	@echo "== what compiles: CMake, pybind11"
	$(INSTALL) "setuptools>=77" wheel "cmake>=3.25" "pybind11>=2.13"
	@touch $@

# pip would not show the progress of the compilation; afterwards it finds everything compiled.
$(VENV)/built: $(VENV)/torch $(VENV)/options $(NATIVE)
	@echo "== compiling"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/packages: pyproject.toml setup.py $(VENV)/torch | $(VENV)/built
	@echo "== packages"
	$(INSTALL) --no-build-isolation -e ".[dev]"
	@$(BIN)/python -c "import triton" 2>/dev/null || [ "$$(uname -s)" != Linux ] || $(INSTALL) $(TRITON) \
	  || echo "== no $(TRITON) for this machine: the tests of Triton's kernels will be skipped"
	@$(BIN)/python tools/environment.py check $(VENV)/constraints.txt
	@touch $@

score: build
	$(BIN)/python -m examples.kuairand.train -o $(EXAMPLE)/kuairand.safetensors
	$(BIN)/resflow score $(EXAMPLE)/kuairand.safetensors $(EXAMPLE)/requests.parquet --catalog $(EXAMPLE)/videos.parquet \
	  --labels $(EXAMPLE)/labels.parquet --top-k 100 -o $(EXAMPLE)/scores.parquet --compare-eager

test: build
	$(BIN)/ctest --test-dir build/$$($(BIN)/python -c "import sys; print(sys.implementation.cache_tag)")-editable --output-on-failure
	$(BIN)/python -m pytest -n auto --dist worksteal -q

test-matrix: build
	$(BIN)/python -m tools.matrix --folder "$(or $(MATRIX_FOLDER),build/matrix)" $(or $(MATRIX),2.10.0 $(USUAL) newest)

CPP := $(shell find csrc python tests/cpp tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu')

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Does not need .venv: any CMake of 3.25 or newer will do.
CMAKE := $(or $(wildcard $(BIN)/cmake),cmake)
CTEST := $(or $(wildcard $(BIN)/ctest),ctest)

arm:
	$(CMAKE) -S . -B build/arm -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake -DRESFLOW_WITHOUT="torch;numpy" -DRESFLOW_CUDA=OFF
	$(CMAKE) --build build/arm --target cpp_tests --parallel $$(nproc)
	$(CTEST) --test-dir build/arm --tests-regex cpp_tests --output-on-failure --parallel $$(nproc)

# The baselines are not part of a development install, to keep that small.
$(VENV)/baselines: $(VENV)/packages
	@echo "== baselines"
	$(INSTALL) --no-build-isolation -e ".[bench]"
	@$(BIN)/python tools/environment.py check $(VENV)/constraints.txt
	@touch $@

bench: build $(VENV)/baselines
	$(BIN)/python -m bench.run

bench-quick: build $(VENV)/baselines
	$(BIN)/python -m bench.run --quick

$(VENV)/models: $(VENV)/packages
	@echo "== packages of models"
	$(INSTALL) --no-build-isolation -e ".[models]"
	$(INSTALL) --no-deps $(MODELS)
	@$(BIN)/python tools/environment.py check $(VENV)/constraints.txt
	@touch $@

bench-models: build $(VENV)/models
	$(BIN)/python -m bench.models

# Does not use .venv: only the packages of the machine's Python are available.
gpu:
	$(PYTHON) -m bench.gpu.run

clean:
	rm -rf build $(EXAMPLE) resflow_kernels/*.so resflow_kernels/_build.json $(VENV)/built
