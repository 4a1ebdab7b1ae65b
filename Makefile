# Everything a contributor runs. CI runs `make check`, `make test` and `make test-slurm` through .ci/run.
# The environment is made at first use and again when requirements.lock or pyproject.toml change.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-12)

.PHONY: env demo test test-all test-slurm test-slurm-all check lock clean

env: $(STAMP)

# From raw images to runs/demo/report/report.html, on a CPU, without a download.
demo: $(STAMP)
	$(BIN)/python tools/make_toy_corpus.py build/toy --unlabelled 450 --train 60
	$(BIN)/hdtrain run configs/recipe/demo.yaml

# Two tests at a time, a file's in one process: most of what they wait for is one core's work.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST) -m "not slow and not slurm" tests

# With the towers of the extra `text`, which every process that imports diffusers would wait a second longer for.
test-all: $(STAMP)
	$(BIN)/uv pip install --quiet -r pyproject.toml --extra text -c requirements.lock
	$(PYTEST) -m "not slurm" tests

# In a SLURM of two nodes on this machine, made for the tests and gone after them (root; Debian's packages). One test
# after the other: they wait for each other's nodes.
SLURM_PYTEST := OMP_NUM_THREADS=1 tests/slurm/cluster run $(BIN)/python -m pytest

test-slurm: $(STAMP)
	$(SLURM_PYTEST) -m "not slow" tests/slurm

test-slurm-all: $(STAMP)
	$(SLURM_PYTEST) tests/slurm

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Pin the newest versions that pyproject.toml allows.
lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev --upgrade --no-header --no-annotate --quiet -o requirements.lock

# What make made; never the environment nor runs of your own.
clean:
	rm -rf build/toy runs/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: hdtrain needs Python 3.11 or later, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps -e .
	rm -f .venv/.installed-*
	touch $@
