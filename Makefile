# Everything a newcomer or a continuous integration needs, from nothing but make and Python 3.11 or newer.
#   make quickstart     trains a small model on the embedded stories and shows what it writes
#   make test           all tests but the slow ones;  make test PYTEST_FLAGS="-x -k resume"
#   make lint           style and types
#   make coverage       all tests but the slow ones, and which lines they ran; fails under 92 %
#   make slow           the longer proofs
#   make torture        kills, full disks, damaged files and more, hundreds of each; one table of what became of them
#   make proof          faults planted in ports, each to be found and named, and ports without one; one table
#   make bench          the twins beside transformers in float32, training and generating (under ten minutes on two cores)
# Another Python: make test PYTHON=python3.12 (it counts when .venv is made).

PYTHON ?= python3
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder --durations 10
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test coverage slow torture proof lint bench clean

quickstart: $(VENV)/.installed-jax
	$(BIN)/python -m jaxlm.train
	@run=$$(ls -td runs/*/ | head -n 1); echo; \
	echo "curve:  $${run}loss.png"; \
	echo "sample: $$(ls -t $${run}samples/*.txt | head -n 1)"; \
	echo "talk:   $(BIN)/python -m jaxlm.serve $${run%/}"

# Two processes, a test file to one of them: fixtures made once a file stay so, and each process keeps to one thread. In
# the order of names, the quick files come last, and neither process waits long for the other.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --cov --cov-report=term:skip-covered --cov-fail-under=92

# Alone, since some of them measure time or memory, and with all of XLA's optimizations.
slow: $(VENV)/.installed-dev
	XLA_FLAGS= $(BIN)/python -m pytest -m slow -o timeout=7200

torture: $(VENV)/.installed-dev
	$(BIN)/python -m tests.torture

proof: $(VENV)/.installed-dev
	$(BIN)/python -m tests.proof

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python -m parity.bench --peers hf --dtype float32 --rounds 2

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "error: PYTHON=$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

# A stamp is older than what it was made from when that has changed. The dev extra contains the jax and serve extras.
$(VENV)/.installed-jax: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[jax,serve]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed-jax $@
