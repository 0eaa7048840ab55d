# Needs Python 3.10 or later, g++ and make; cmake and ninja come from pip.
PYTHON ?= python3
BIN := .venv/bin
STAMPS := .venv/.stamps
NATIVE := setup.py pyproject.toml CMakeLists.txt cad_fast/version.py $(shell find csrc -type f)

.PHONY: help venv demo test test-orders bench gpu-check sanitize soak lint types wheel-check docs notebooks clean

help:
	@echo "make venv         pinned dependencies and the package, editable, in .venv"
	@echo "make demo         the demonstration; results in demo-output/"
	@echo "make test         the tests, without those marked slow or gpu"
	@echo "make test-orders  the tests of the ops, with torch summing in the orders of several CPUs"
	@echo "make bench        throughput against peers, on an otherwise idle machine; results in bench-output/"
	@echo "make gpu-check    on a GPU: are the operators right there, and how fast; results in gpu-output/gpu.md"
	@echo "make sanitize     the tests of the kernels with address and undefined-behaviour sanitizers"
	@echo "make soak         jobs killed 100 times, and 5,000 requests to a server; results in soak-output/soak.json"
	@echo "make lint         ruff check and ruff format --check"
	@echo "make types        mypy on the package"
	@echo "make wheel-check  build sdist and wheel, install the wheel elsewhere and use it"
	@echo "make notebooks    execute the tutorials; results in build/notebooks/"
	@echo "make docs         the documentation, links checked, in build/site/; open build/site/index.html"
	@echo "make clean        remove all that was built"

venv: $(STAMPS)/package

$(STAMPS)/dependencies: requirements-dev.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	@mkdir -p $(@D) && touch $@

$(STAMPS)/package: $(STAMPS)/dependencies $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv
	$(BIN)/cad-fast demo --output demo-output

# One torch thread per worker: two workers with two threads each would wait for one another on two cores.
test: venv
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu" tests

test-orders: venv
	$(BIN)/python tests/orders.py

bench: venv
	$(BIN)/python -m bench --output bench-output

# On a machine with a GPU: PYTHON_GPU is one with a CUDA build of torch and triton, into which the package is installed.
# BUDGET: seconds for everything; what there is no time for is listed in the report.
PYTHON_GPU ?= $(BIN)/python
BUDGET ?= 600
gpu-check:
	$(PYTHON_GPU) -m bench.gpu --output gpu-output --budget $(BUDGET)

sanitize: venv
	$(BIN)/python tests/sanitize.py

# SOAK: arguments, such as --kills 10 --requests 200 --seed 3.
SOAK ?=
soak: venv
	$(BIN)/python -m tests.soak --output soak-output $(SOAK)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/python -m mypy

wheel-check: venv
	$(BIN)/python tests/wheel_check.py

$(STAMPS)/docs: $(STAMPS)/package requirements-docs.lock
	$(BIN)/python -m pip install --quiet --requirement requirements-docs.lock
	@touch $@

# One thread of torch: two that spin for one another take many times as long when something else runs beside them.
notebooks: $(STAMPS)/docs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python docs/tools/notebooks.py --output build/notebooks

docs: notebooks
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

clean:
	rm -rf .venv build dist demo-output bench-output soak-output *.egg-info .pytest_cache .ruff_cache .mypy_cache cad_fast/_C.* cad_fast/libcad_fast_cuda.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
