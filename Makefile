# make demo    everything on tiny models, in a few minutes
# make test    the tests, in under ten minutes
# PIP_ARGS     passed to pip, e.g. PIP_ARGS="--index-url https://download.pytorch.org/whl/cu128 --extra-index-url https://pypi.org/simple"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-long lint clean

demo: $(INSTALLED)
	$(BIN)/mrpo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long"

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long --timeout 7200

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

$(INSTALLED): constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build *.egg-info
