# Everything here works on a machine that has only Python 3.11+ and make: the first target that needs the
# environment creates .venv and installs the package into it; later runs reuse it until pyproject.toml or
# constraints.txt change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DOCS   := $(VENV)/.ready-docs
JOBS   ?= 2

.PHONY: help install tour test lint types contracts docs pages claims bench stubs clean

help:             ## show this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "interneuron needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Choose another with: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip
	@echo "installing interneuron and its tools into $(VENV) (about a minute, longer if torch must be downloaded) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable . --group dev
	@touch $@

$(DOCS): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group docs
	@touch $@

install: $(READY) ## create .venv and install everything

tour: $(READY)    ## read, steer and patch a small language model; writes tour/report.html
	@$(BIN)/interneuron tour

test: $(READY)    ## the test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

lint: $(READY)    ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)   ## pyrefly, strict preset
	@$(BIN)/pyrefly check

contracts: $(READY) ## import-linter: imports point downwards only
	@$(BIN)/lint-imports

stubs: $(READY)   ## rewrite the generated .pyi files of the families
	@$(BIN)/python -m interneuron.testing.stubs

claims: $(READY)  ## run every claim that has no fresh result, then rewrite docs/claims.md
	@$(BIN)/interneuron claims run --all
	@$(BIN)/interneuron claims table --write

pages: $(READY)   ## rewrite the generated pages of the methods, with their pictures
	@$(BIN)/python -m interneuron.cli.pages

bench: $(READY)   ## speed against limits and peers
	@for f in benchmarks/*.py; do echo "== $$f"; OMP_NUM_THREADS=1 $(BIN)/python $$f || exit 1; done

docs: $(DOCS)     ## build the site into site/
	@$(BIN)/zensical build

clean:            ## remove the environment and everything generated
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache
