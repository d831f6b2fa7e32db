# Everything runs in .venv with python3 (3.11 or newer) and pip only.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
REAL := $(wildcard tests/integration tests/acceptance tests/chaos)

.PHONY: install demo test lint bench bench-kernels bench-peers gpu clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11: install Python 3.11, or make PYTHON=python3.11 install"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "error: $(PYTHON) cannot make virtual environments: apt install python3-venv (or python3.11-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[cpu,embedded,demo,report,test]'
	@touch $@

demo: install
	$(BIN)/lrai demo $(if $(KEEP),--keep)

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest tests/unit -n auto --dist loadfile --durations=10
	$(BIN)/python -m pytest $(REAL) --durations=10

bench: install
	$(BIN)/python -m tests.bench

bench-kernels: install
	$(BIN)/python -m tests.bench.kernels --document

bench-peers: install
	$(BIN)/python -m tests.bench.peers
	$(BIN)/python -m tests.bench.kernel_peers --document

# on a machine with a GPU; its runtime owns the same module as the one for the CPU, hence an environment of its own
DEVICE ?= cuda
EXTRA ?= $(if $(filter openvino%,$(DEVICE)),openvino,gpu)
gpu:
	$(PYTHON) -m venv .venv-$(EXTRA)
	.venv-$(EXTRA)/bin/pip install --progress-bar on --disable-pip-version-check -c constraints.txt \
	  -e '.[$(EXTRA),embedded,demo,report,test]' nvidia-ml-py
	.venv-$(EXTRA)/bin/python -m pytest tests/gpu --device $(DEVICE)
	.venv-$(EXTRA)/bin/python -m tests.bench.gpu --device $(DEVICE) --document

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
