# make setup | setup-plan | setup-ray | docs | demo | test | test-long | test-faults | nightly | test-slurm | test-engines | lint | audit | format | clean.  `make setup TORCH_INDEX=URL` takes torch from another index (CPU wheels).
# EXTRAS adds optional packages: make setup EXTRAS=dev,tpu (also: plan, ray, arc).
SHELL := bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TORCH_INDEX ?=
EXTRAS ?= dev
READY := $(VENV)/.ready-$(EXTRAS)

.PHONY: setup setup-plan setup-docs setup-ray docs demo test test-long test-faults nightly test-slurm test-engines lint audit format clean
setup: $(READY)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' || \
	  { echo "error: $$($(PYTHON) --version) found, Python 3.11 to 3.13 is needed: make setup PYTHON=python3.11" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (several GB with the default torch; TORCH_INDEX=URL takes CPU wheels) ..."
	@if [ -n "$(TORCH_INDEX)" ]; then $(PY) -m pip install -q --index-url "$(TORCH_INDEX)" torch==2.9.1; fi
	@$(PY) -m pip install -q -e '.[$(EXTRAS)]'
	@scripts/dev/first_compile.sh $(abspath $(PY))
	@touch $@

EXTRA = $(PYTHON) -c 'import configparser as c; f = c.ConfigParser(); f.read("setup.cfg"); print(f["options.extras_require"]["$(1)"])'

# jax and libtpu for `python -m trm.plan plan.compile=true`, 1 GB in a venv of their own: torch_xla's must stay as it is
setup-plan: .venv-plan/.ready
.venv-plan/.ready: setup.cfg
	@test -x .venv-plan/bin/python || $(PYTHON) -m venv .venv-plan
	@.venv-plan/bin/pip install -q $$($(call EXTRA,plan))
	@touch $@

# MkDocs in a venv of its own
setup-docs: .venv-docs/.ready
.venv-docs/.ready: setup.cfg
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@$(call EXTRA,docs) > .venv-docs/requirements.txt
	@.venv-docs/bin/pip install -q -r .venv-docs/requirements.txt
	@touch $@

docs: setup-docs   # the documentation as a site, in site/: a warning fails it, a link that leads nowhere too
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

demo: setup
	@scripts/demo.sh $(DEMO)

BOTH = -n 2 --dist loadfile --no-loadscope-reorder   # a worker on each core
# LLVM's optimizations take most of the seconds of a tiny run through torch_xla, and change none of what these tests state
QUICK = OMP_NUM_THREADS=1 XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest $(BOTH) -m 'not long'

test-long: setup   # whole runs through torch_xla and inductor, on virtual devices, compiled for a TPU; faults, servers, a browser
	$(QUICK) $(PY) -m pytest $(BOTH) -m long

nightly: setup   # all tests, with a night's count of kills and cases, every case that a compiler takes long for, and XLA's passes
	TRM_KILLS=50 TRM_FAULT_CASES=2000 TRM_MATRIX=all $(PY) -m pytest $(BOTH) -m "long or not long"

test-faults: setup   # of test-long what kills runs, damages files and fills disks
	$(QUICK) $(PY) -m pytest $(BOTH) tests/faults

test-slurm: setup   # as root: starts a throw-away Slurm on this machine
	scripts/dev/test_slurm.sh

setup-ray: $(VENV)/.ready-ray
$(VENV)/.ready-ray: $(READY)
	@$(PY) -m pip install -q $$($(call EXTRA,ray))
	@touch $@

test-engines: setup-ray   # starts a local cluster of two nodes
	$(PY) -m pytest tests/engines

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# beside each other: for Linux, and what macOS lacks
	$(VENV)/bin/mypy --platform darwin --cache-dir .mypy_cache/darwin & other=$$!; $(VENV)/bin/mypy; own=$$?; wait $$other && exit $$own

audit: setup   # known vulnerabilities of the installed packages; asks the package index
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install -q pip-audit; }
	$(PY) -m pip freeze --exclude-editable | .venv-audit/bin/pip-audit --no-deps --disable-pip -r /dev/stdin

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-plan .venv-docs .venv-audit site dist build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
