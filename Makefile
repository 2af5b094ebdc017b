# Everything here starts on a fresh machine: `make demo` and `make test` build their own
# environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
TORCH := torch==2.13.0
# On a machine without a GPU a smaller torch will do:
# make test TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
DATA ?=
WORKERS ?= 2
# All tests of a file in one process: what they share is computed once.
FILES := -n $(WORKERS) --dist loadfile

.PHONY: help env env-test demo test coverage test-slow test-oldest lint types check bench paper clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt $(TORCH_FLAGS) $(TORCH)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[plot]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[plot,onnx,test,dev]'
	touch $@

env: $(VENV)/.installed  ## environment with the package and matplotlib

env-test: $(VENV)/.installed-test  ## the same with all that tests and linters need

demo: env  ## closed form against Adam and MLPRegressor on real data; writes demo.png
	$(BIN)/python examples/demo.py

test: env-test  ## all tests but the slow ones, in WORKERS processes
	$(BIN)/python -m pytest $(FILES) -m 'not slow'

coverage: env-test  ## the same tests, and the lines that they do not reach
	$(BIN)/python -m pytest $(FILES) -m 'not slow' --cov --cov-report=term-missing

test-slow: env-test  ## the slow tests
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt $(TORCH_FLAGS) $(TORCH)
	$(OLDEST)/bin/pip install --quiet -c constraints-oldest.txt -e '.[plot,operators,test]'
	touch $@

test-oldest: $(OLDEST)/.installed  ## the same tests with the least versions that are declared
	$(OLDEST)/bin/python -m pytest $(FILES) -m 'not slow'

lint: env-test  ## ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: env-test  ## mypy on the package
	$(BIN)/mypy

check: lint types test test-slow test-oldest  ## what CI runs, without the demo

bench: env-test  ## speed and error beside peers; DATA=folder with the sets that are not bundled
	$(BIN)/python benchmarks/speed.py $(if $(DATA),--data $(DATA) --tasks friedman1-20k energy)

RESULTS := benchmarks/results

paper: env-test  ## the paper's experiments and docs/paper.md, from the records that are stored; DATA as above
	$(BIN)/python benchmarks/theory.py --picture docs/theory.png > paper.tmp
	mv paper.tmp $(RESULTS)/theory.txt
	$(BIN)/python benchmarks/one_step.py --picture docs/one_step.png > paper.tmp
	mv paper.tmp $(RESULTS)/one_step.txt
	$(BIN)/python benchmarks/paper.py $(if $(DATA),--data $(DATA)) --page docs/paper.md --csv paper.csv > paper.tmp
	mv paper.tmp $(RESULTS)/paper.txt
	$(BIN)/python benchmarks/report.py

clean:  ## remove the environments and caches
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo.png
