# Everything runs in .venv, which `make` sets up: `make test` and `make train` are enough on a machine
# with Python, its venv module and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
bin := $(VENV)/bin
# Warnings are errors here, and not for users, whose compilers may know others.
strict := -Ccmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON

.PHONY: install test test-slow train docs lint format bench dist-check cuda-check index-check torch-check wheels \
	clean

# torch first, and from the constraints: the build finds it, and development has one version.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet -c constraints.txt torch numpy
	touch $@

# Editable, and built anew when what is compiled changes.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml CMakeLists.txt tests/hooks.cpp $(shell find csrc -type f)
	$(bin)/python -m pip install --quiet -c constraints.txt $(strict) -e ".[test,lint,docs,integrations,release]"
	touch $@

install: $(VENV)/.installed

test: install
	FAIL_WITHOUT_INTEGRATIONS=1 OMP_WAIT_POLICY=passive $(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 -m "not slow"

test-slow: install
	$(bin)/python -m pytest -m slow

train: install
	$(bin)/fastvae train

# The site, in site/: warnings are errors, and a link, anchor or image that leads nowhere is one.
docs: install
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict

lint: install
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cuh')

format: install
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cuh')

bench: install
	$(bin)/python -m benchmarks.bench_ops --json benchmarks/results/ops.json
	$(bin)/python -m benchmarks.bench_train --json benchmarks/results/train.json
	$(bin)/python -m benchmarks.bench_kernels --json benchmarks/results/kernels.json
	ATEN_CPU_CAPABILITY=avx2 $(bin)/python -m benchmarks.bench_kernels --json benchmarks/results/kernels-avx2.json
	$(bin)/python -m benchmarks.report

# The wheel and the sdist hold what they should, and the wheel works away from the source.
dist-check: install
	PYTHON=$(abspath $(bin))/python .ci/dist_check.sh

# The CUDA build and its kernels, as far as can be checked without a GPU: minutes, and 5 GB for a CUDA build of PyTorch.
cuda-check: install
	PYTHON=$(abspath $(bin))/python .ci/cuda_check.sh

# pip and uv install what dist-check built from an index on this machine; other versions of PyTorch are refused.
index-check: install
	$(bin)/python .ci/index_check.py build/index $(bin)/python $(wildcard .venv-cuda/bin/python)

# An environment for each of other versions of PyTorch: 6 GB where it is a CUDA build.
.venv-torch-%/.installed:
	$(PYTHON) -m venv .venv-torch-$*
	.venv-torch-$*/bin/python -m pip install --quiet torch==$* numpy
	touch $@

# The tests on the newest PyTorch that is known to work, before a release: minutes.
TORCH ?= 2.14.1
torch-check: .venv-torch-$(TORCH)/.installed
	NEWEST=$(CURDIR)/.venv-torch-$(TORCH)/bin/python .ci/newest_torch.sh

# Release wheels for these versions of PyTorch and the index of them, in dist/index; see .ci/wheels.sh.
TORCHES ?= 2.11.0 2.13.0 2.14.1
wheels: install $(TORCHES:%=.venv-torch-%/.installed)
	PYTHON=$(abspath $(bin))/python .ci/wheels.sh $(TORCHES:%=$(CURDIR)/.venv-torch-%/bin/python)

clean:
	rm -rf build dist site $(VENV) .venv-cuda .venv-torch-* .mypy_cache .pytest_cache .ruff_cache .hypothesis
