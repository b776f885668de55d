# make demo   fine-tune a real transformer on real reviews (sets up everything it needs; about five minutes)
# make test   the tests, in the same environment, without those marked slow
# make test-slow  the others
# make test-vision  the tests on timm and torchvision models, in an environment with the torch that these need
# make test-oldest  the tests with the oldest versions that pyproject.toml allows, in an environment of their own
# make test-projects  the checks on projects that build on Lightning, which write the table in docs/compatibility.md
# make fuzz   a thousand wrong command lines, config files and constructor calls, in under a minute
# make dist   the wheel and the source archive, checked
# make docs   the documentation site, in build/site; any warning is an error
# make docs-pictures  the pictures of the site and the README (after make demo)
# make lint   ruff, mypy and import-linter
# make clean  remove the environment and what runs left here; the user cache stays

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
# Stamps: an installation is repeated only when what it depends on has changed.
CREATED   := $(VENV)/created
READY     := $(VENV)/ready
READY_DEV := $(VENV)/ready-dev
READY_DOCS := $(VENV)/ready-docs
WORKERS   ?= auto
# Options that end the longest runs of tests in time, such as `--minutes 10`.
LIMIT     ?=
# Made anew by each demo.
DEMO_RUN  := runs/reviews/demo

.PHONY: demo test test-vision test-oldest test-projects fuzz dist lint docs docs-pictures clean test-slow
.DEFAULT_GOAL := test

demo: $(READY)
	$(BIN)/python experiments/reviews/prepare.py
	@rm -rf $(DEMO_RUN)
	$(BIN)/lightning-freeze fit --config experiments/reviews/gradual.yaml \
		--trainer.logger.init_args.version demo
	$(BIN)/lightning-freeze test --config experiments/reviews/gradual.yaml \
		--trainer.logger.init_args.version demo/test --ckpt_path $(DEMO_RUN)/checkpoints/*.ckpt
	@echo "Next: the config is experiments/reviews/gradual.yaml, the curves are in $(DEMO_RUN)/metrics.csv, more in README.md"
	@echo "Report: $(CURDIR)/$(DEMO_RUN)/freeze_report.html"

test: $(READY_DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: $(READY_DEV)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow $(LIMIT)

# In an environment of its own: timm and torchvision want another build of torch, a large one.
test-vision:
	test -x $(VENV)-vision/bin/python || $(PYTHON) -m venv $(VENV)-vision
	$(VENV)-vision/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vision.txt \
		--editable '.[vision,dev]'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)-vision/bin/python -m pytest -n $(WORKERS) tests/layers \
		tests/rates/test_schedulers.py

# In an environment of its own, with exactly the lower bounds of pyproject.toml.
test-oldest:
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt \
		--editable '.[data,dev]'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --all-cases -m "not slow" $(LIMIT)

# In environments of their own (.venv-projects): each project installs what its own quick start needs.
test-projects:
	$(PYTHON) benchmarks/projects/run.py

fuzz: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz_command_line.py --lines 300 --calls 700

dist: $(READY_DEV)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

lint: $(READY_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

docs-pictures: $(READY_DEV)
	test -e $(DEMO_RUN)/freeze_report.html || $(MAKE) demo
	HF_HUB_OFFLINE=1 $(BIN)/python docs/pictures.py

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed (found $$($(PYTHON) --version)); name one with: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(READY): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[report]'
	@touch $@

$(READY_DEV): $(READY)
	@echo "Installing what the tests need into $(VENV)"
	$(PIP) --editable '.[data,dev]'
	@touch $@

# The API pages are read from the source, so the site needs no package but its own tools.
$(READY_DOCS): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing what the documentation needs into $(VENV)"
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-vision $(VENV)-oldest $(VENV)-projects runs lightning_logs build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .coverage
	rm -f experiments/reviews/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
