# `make run` and `make test` each work on a fresh clone: they make .venv and install what poetry.lock names. A stamp in
# .venv marks what is installed, so a second call installs nothing.
#
#   make run                        run practice_run.py from start to finish   (make run ARGS="--help")
#   make test                       lint, formatting, types, import contracts, the default tests (minutes)
#   make slow                       all tests with shapes checked, also long runs and notebooks (about half an hour)
#   make browser                    the tests that drive Chromium; they need `apt-get install chromium`
#   make soak                       the longest tests, started by hand; docs/results.md has their figures
#   make check PYTEST="-x -k text"  the checks of `make test` without the installation; PYTEST is passed to pytest
#   make format                     let ruff rewrite what it can
#   make notebooks                  run the notebooks and keep their outputs   (make notebooks ARGS="02 05")
#   make docs                       build the documentation site in build/docs; a warning is an error
#   make docs-pictures              draw the pictures of the concept pages again
#   make gallery                    draw every picture in visualizations/gallery/ again
#   make explorer-pictures          draw the pictures of docs/explorer.md again (needs Chromium)
#   make train-help                 store the help of `open-clt train` after a change of settings
#   make embedded-features          measure the feature records and the start graph that ship (ten minutes)
#   make embedded-calibration       fit the calibration that ships (half an hour on two busy cores)
#   make clean                      remove .venv, caches and build outputs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,docs,explorer,gguf,server,benchmarks
ARGS ?=
PYTEST ?=
# One process for each core; a process that has finished its tests takes tests from another one.
PARALLEL := -n auto --dist worksteal
SETUP_FILES := pyproject.toml poetry.lock tools/constraints.py
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(VENV)/constraints.txt

# pyright does not look for a newer version of itself, because poetry.lock names its version.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: run test check slow browser soak format docs docs-pictures gallery explorer-pictures embedded-features \
	embedded-calibration train-help notebooks clean
.NOTPARALLEL:

run: $(VENV)/.installed
	$(BIN)/python practice_run.py $(ARGS)

test: $(VENV)/.installed-dev check

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST)

slow: $(VENV)/.installed-dev
	OPEN_CLT_CHECK_SHAPES=1 $(BIN)/python -m pytest $(PARALLEL) -m "not soak and not real_model and not gpu and not browser" \
		--timeout 900 $(PYTEST)

browser: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m browser --timeout 300 $(PYTEST)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak --timeout 0 $(PYTEST) || test $$? -eq 5  # pytest's status 5: no test has the marker

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "The site begins at build/docs/index.html."

docs-pictures: $(VENV)/.installed
	$(BIN)/python -m tools.site.pictures

gallery: $(VENV)/.installed
	$(BIN)/python tools/gallery.py

explorer-pictures: $(VENV)/.installed-dev
	$(BIN)/python tools/explorer_pictures.py

embedded-features: $(VENV)/.installed
	$(BIN)/python tools/embedded_features.py

embedded-calibration: $(VENV)/.installed
	$(BIN)/python benchmarks/truth/calibration.py --store open_clt/embedded/transcoder

train-help: $(VENV)/.installed
	$(BIN)/python tools/train_help.py

notebooks: $(VENV)/.installed-dev
	$(BIN)/python -m tools.run_notebooks $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache build dist

$(VENV)/constraints.txt: $(SETUP_FILES)
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
		f"OpenCLT needs Python 3.11 to 3.13, and {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/constraints.py > $@.new && mv $@.new $@

$(VENV)/.installed: $(VENV)/constraints.txt
	@echo "Installing OpenCLT into $(VENV): about 2 GB, a few minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/constraints.txt
	@echo "Installing OpenCLT and its development tools into $(VENV): about 2.3 GB, a few minutes the first time."
	$(PIP) --editable ".[$(EXTRAS)]"
	@touch $(VENV)/.installed $@
