# Two commands for a fresh machine: `make search` and `make test`. Each makes .venv first and is instant the second time.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --disable-pip-version-check -c constraints.txt
BUDGET ?= 100
ARGS ?=
# Tests on all cores (PARALLEL= runs them one after another). Those that share something costly are an xdist_group.
PARALLEL ?= -n logical --maxprocesses 8 --dist loadgroup

# One thread per process: two threads of torch per worker cost far more than they give on small models.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help search test test-ci test-slow gpu-check lint benchmark notebook docs links docs-serve build constraints clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

# The first Python from 3.11 on that really starts (a pyenv shim may be there and not start).
$(RUN)/python:
	@found=""; for p in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if "$$p" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "make: needs Python 3.11 or newer; none found (name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11)" >&2; exit 2; fi; \
	echo "Making $(VENV) with $$("$$found" --version)" >&2; \
	"$$found" -m venv $(VENV) || { echo "make: \"$$found -m venv\" failed; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 2; }

# torch first: it is by far the largest, and what fails is then clear.
$(VENV)/run.stamp: pyproject.toml constraints.txt | $(RUN)/python
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(RUN)/python
	$(PIP) torch
	$(PIP) -e '.[dev,docs,preferences,diffusion,vision,postgresql,mysql,wandb]'
	@touch $(VENV)/run.stamp $@

search: $(VENV)/run.stamp  ## Search for a merge on the embedded models (ARGS="--seed 1" adds options, BUDGET=100)
	$(RUN)/evomerge search --budget $(BUDGET) $(ARGS)

# All three run, whatever the first says.
LINT := { bad=0; $(RUN)/ruff check . || bad=1; $(RUN)/mypy || bad=1; $(RUN)/lint-imports || bad=1; [ $$bad -eq 0 ]; }

lint: $(VENV)/dev.stamp  ## ruff, mypy and the import contracts
	$(LINT)

# pytest runs even when lint fails, and last, so that its closing line is the last one.
test: $(VENV)/dev.stamp  ## lint, then the quick tests
	@$(LINT); lint=$$?; \
	$(RUN)/python -m pytest $(PARALLEL) $(ARGS); tests=$$?; \
	if [ $$lint -ne 0 ]; then echo "make test: lint failed (above)" >&2; fi; \
	[ $$lint -eq 0 ] && [ $$tests -eq 0 ]

test-ci: $(VENV)/dev.stamp  ## what CI runs after `make test`: kills at every write, whole searches and fusions
	$(RUN)/python -m pytest $(PARALLEL) -m "ci and not slow and not gpu" $(ARGS)

test-slow: $(VENV)/dev.stamp  ## the slow tests: searches, kill and resume, wheels, the README's commands
	$(RUN)/python -m pytest -m "slow and not gpu" $(ARGS)

gpu-check: $(VENV)/dev.stamp  ## the tests that need a GPU
	@if $(RUN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(RUN)/python -m pytest -m gpu $(ARGS); \
	else echo "no GPU: nothing was checked"; fi

benchmark: $(VENV)/dev.stamp  ## seconds per candidate, against mergekit-evolve's way in the same run
	$(RUN)/python benchmarks/candidate.py $(ARGS)

notebook: $(VENV)/dev.stamp  ## run docs/notebooks/evomerge.ipynb and keep what its cells show
	$(RUN)/python docs/notebooks/run.py

# Pages are made of docs/ and of the program itself (docs/_generate), then built; a broken link or anchor fails.
SITE = PYTHONPATH=docs:. $(RUN)/python -m _generate && PYTHONPATH=docs:. $(RUN)/zensical

docs: $(VENV)/dev.stamp  ## the documentation's site, into build/site (index.html opens without a server)
	$(SITE) build --strict

links: $(VENV)/dev.stamp  ## fetch every link of README and docs to another site (skipped without a network)
	EVOMERGE_LINKS=1 $(RUN)/python -m pytest tests/docs/test_links.py -k other_sites $(ARGS)

docs-serve: $(VENV)/dev.stamp  ## show it on this machine; `make docs` in another shell brings in what has changed
	$(SITE) serve --dev-addr 127.0.0.1:8000

build: $(VENV)/dev.stamp  ## wheel and source distribution into dist/
	$(RUN)/python -m build

constraints: $(VENV)/dev.stamp  ## Write constraints.txt from what .venv holds
	@{ head -2 constraints.txt; $(RUN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -E '^[A-Za-z0-9_.-]+=='; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .cache build dist
