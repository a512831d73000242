# Each target sets up what it needs in .venv, from nothing but a Python 3.11 or newer.
# `make help` lists them. Variables: PYTHON (the interpreter that makes .venv), WORKERS (test processes), ARGS (passed on).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
WORKERS ?= 2
ARGS ?=
PYTHON ?=

PROTOS := $(wildcard proto/crdtkv/pb/v1/*.proto)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# -- environment ---------------------------------------------------------------------------------------------

# An interpreter counts only if it runs (a version manager's shim may not), is new enough, and can make a venv.
$(PY):
	@python=""; \
	for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "crdtkv needs Python 3.11 or newer with the venv module (on Debian: apt install python3-venv); none found. Name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	echo "== $(VENV): $$($$python --version)"; \
	$$python -m venv $(VENV)

# $(call install,EXTRA): crdtkv itself, editable, with one extra; prints each package's name as it is fetched.
define install
	@echo "== $(VENV): installing crdtkv[$(1)]"
	@set -o pipefail; $(PY) -m pip install --disable-pip-version-check --no-input --progress-bar off -e '.[$(1)]' \
	  | awk '/^ *Collecting / { sub(/[^A-Za-z0-9_.-].*/, "", $$2); printf " %s", $$2; fflush() } END { print "" }'
	@touch $@
endef

$(VENV)/.dev: pyproject.toml | $(PY)
	$(call install,dev)

$(VENV)/.demo: pyproject.toml | $(PY)
	$(call install,demo)

.PHONY: setup
setup: $(VENV)/.dev ## set up .venv for development

# -- what users run ------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## three regions replicate, conflict, are cut apart, heal; writes demo-report/index.html
	@$(BIN)/crdtkv demo $(ARGS)

# -- checks --------------------------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.dev ## all tests but the soak ones
	@$(PY) -m pytest -q -n $(WORKERS) --dist loadfile -m "not soak" $(ARGS)

.PHONY: soak
soak: soak-random soak-kill soak-cuts soak-histories acceptance soak-simulate ## all that follow, one after the other: hours

.PHONY: soak-random
soak-random: $(VENV)/.dev ## randomised tests, with fresh seeds and many more of them
	@HYPOTHESIS_PROFILE=soak $(PY) -m pytest -q -n $(WORKERS) --timeout 0 tests/property tests/simulation $(ARGS)

.PHONY: mutants
mutants: $(VENV)/.dev ## every planted bug must be found by the simulations or by its test
	@$(PY) -m pytest -q -n $(WORKERS) tests/mutants $(ARGS)

.PHONY: mutants-table
mutants-table: $(VENV)/.dev ## renew docs/mutants.md: each planted bug, what kills it, and the median number of seeds; half an hour
	@$(PY) -m tests.mutants.table $(ARGS)

.PHONY: soak-kill
soak-kill: $(VENV)/.dev ## SIGKILL ten times at each step on the way to the disk, over 1,000 kills; a few minutes
	@$(PY) -m pytest -q -s -n $(WORKERS) --timeout 0 -m soak tests/fault/test_kill_steps.py $(ARGS)

.PHONY: soak-cuts
soak-cuts: $(VENV)/.dev ## a thousand rounds of cuts and heals under load, of three nodes in one process; some ten minutes
	@$(PY) -m pytest -q -s --timeout 0 -m soak tests/integration/test_cuts_under_load.py $(ARGS)

.PHONY: soak-simulate
soak-simulate: $(VENV)/.dev ## 50,000 simulated seeds on all cores; goes on where it was stopped; ARGS="--seeds N"
	@$(PY) -m tests.simulation.soak $(ARGS)

.PHONY: soak-histories
soak-histories: $(VENV)/.dev ## a real cluster through 100 kills and 50 partitions, judged by what its clients saw; some ten minutes
	@$(PY) -m pytest -q -s --timeout 0 -m soak tests/integration/test_histories_of_processes.py $(ARGS)

.PHONY: acceptance
acceptance: $(VENV)/.dev ## kills, a full disk, an old backup, a cut, regions in and out, on a cluster under load; some two minutes, as root
	@$(PY) -m tests.acceptance $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## coverage-guided fuzzing of every decoder with atheris, 30 s each; ARGS="all 600" for ten minutes each
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --disable-pip-version-check --no-input -q atheris
	@$(PY) -m tests.fuzz $(or $(ARGS),all)

.PHONY: golden
golden: $(VENV)/.dev ## renew the committed traces and the docs' counter-example, after a change that was meant to alter simulated runs
	@$(PY) -m tests.simulation.golden
	@$(PY) -m tests.simulation.counter_example

.PHONY: lint
lint: $(VENV)/.dev proto-check ## ruff, formatting, mypy --strict, generated code up to date
	@echo "== ruff check"; $(BIN)/ruff check .
	@echo "== ruff format"; $(BIN)/ruff format --check .
	@echo "== mypy"; $(BIN)/mypy --strict

.PHONY: format
format: $(VENV)/.dev ## format, and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# -- generated code ------------------------------------------------------------------------------------------

# $(call protoc,DIRECTORY): the proto tree mirrors the package, so imports come out right without rewriting.
protoc = $(PY) -m grpc_tools.protoc -I proto --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) $(PROTOS)

.PHONY: proto
proto: $(VENV)/.dev ## regenerate crdtkv/pb from proto/
	@$(call protoc,.)

.PHONY: proto-check
proto-check: $(VENV)/.dev ## fail if crdtkv/pb is not what proto/ gives
	@echo "== proto"; \
	fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call protoc,$$fresh); \
	diff -r -x __init__.py -x __pycache__ "$$fresh/crdtkv/pb" crdtkv/pb || { echo "crdtkv/pb is not what proto/ gives: run make proto" >&2; exit 1; }

# -- benchmarks ----------------------------------------------------------------------------------------------

.PHONY: bench
bench: $(VENV)/.dev ## every goal beside what it is held against, under 30 minutes; bench-results/goals.html
	@$(PY) -m bench goals $(ARGS)

.PHONY: bench-quick
bench-quick: $(VENV)/.dev ## the same with a tenth of the work and one round, under 4 minutes: to see that it runs
	@$(PY) -m bench goals --quick $(ARGS)

.PHONY: bench-curves
bench-curves: $(VENV)/.dev ## what an operation costs as things grow; goes on where it was; bench-results/curves.svg
	@$(PY) -m bench curves $(ARGS)

.PHONY: profile
profile: $(VENV)/.dev ## flame graphs of the write, apply and read paths; bench-results/profile/
	@$(PY) -m bench profile $(ARGS)

.PHONY: clean
clean: ## remove .venv, caches and reports
	@rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist demo-report bench-results soak-results .fuzz
