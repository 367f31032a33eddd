# kmsd: `make demo` shows it, `make test` tests it, both set up all they need.
#
#   make demo [ONCE=1]   the whole main job on this machine, step by step
#   make test [T=...]    every test (T: what pytest should be given instead)
#   make bench [QUICK=1] how fast it signs, against the HSM alone and against others
#   make bench-lifecycle how fast it enrolls, and what ten thousand idle profiles cost
#   make lint            style, types, layers, generated code
#   make protos          regenerate the gRPC code
#   make clean           remove what was made here

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -qq --disable-pip-version-check
# The pure row (see the import contract): every line and branch of it is tested.
PURE   := kmsd/canonical.py,kmsd/certs.py,kmsd/counters.py,kmsd/crl.py,kmsd/enrollment.py,$\
          kmsd/errors.py,kmsd/explain.py,kmsd/failures.py,kmsd/forecast.py,kmsd/gate.py,$\
          kmsd/identity.py,kmsd/ijson.py,kmsd/issuers.py,kmsd/jose.py,kmsd/leaf.py,$\
          kmsd/maintenance.py,kmsd/model.py,kmsd/passport.py,kmsd/path.py,$\
          kmsd/preconditions.py,kmsd/rcd.py,kmsd/renewal.py,kmsd/retryafter.py,kmsd/ring.py,$\
          kmsd/rotation.py,kmsd/settings/*,kmsd/spctoken.py,kmsd/standing.py,$\
          kmsd/tnauthlist.py,kmsd/trust.py,kmsd/verification.py
MODULE ?= /usr/lib/softhsm/libsofthsm2.so

.PHONY: help demo test bench bench-lifecycle lint protos setup setup-dev setup-test setup-bench clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,9s/^# \{0,3\}//p' Makefile

demo: setup
	@$(BIN)/kmsd demo --module $(MODULE) $(if $(ONCE),--once)

# The tests of whole processes wait more than they work: they run beside the others.
PART = $(BIN)/pytest --cov --cov-report= --cov-fail-under=0

test: setup-test setup-dev
ifdef T
	$(BIN)/pytest $(T)
else
	@mkdir -p build && rm -f .coverage .coverage.*
	@COVERAGE_FILE=.coverage.system $(PART) tests/system > build/system.log 2>&1 & system=$$!; \
	trap 'kill $$system' INT TERM; \
	COVERAGE_FILE=.coverage.others $(PART) tests --ignore tests/system; others=$$?; \
	wait $$system; system=$$?; cat build/system.log; [ $$others$$system = 00 ]
	@$(BIN)/coverage combine -q .coverage.system .coverage.others
	@$(BIN)/coverage report --skip-covered
	@$(BIN)/coverage report --fail-under=100 --skip-covered '--include=$(PURE)'
endif

bench: setup-bench
	@QUICK=$(QUICK) $(BIN)/python -m tests.bench

bench-lifecycle: setup setup-dev
	@$(BIN)/python -m tests.bench.lifecycle

lint: setup-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	protos/generate --check

protos: setup-dev
	protos/generate

setup: $(VENV)/.installed
	@[ -e $(MODULE) ] || softhsm/install-debian softhsm2

setup-dev: $(VENV)/.installed-dev

setup-test: setup
	@softhsm/install-debian postgresql pebble secsipidx openssl opensc systemd gcc libc6-dev groff-base

setup-bench: setup setup-dev
	@softhsm/install-debian secsipidx gcc libc6-dev
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(PIP) -e '.[bench]'

$(VENV)/.installed: constraints.txt pyproject.toml client/pyproject.toml protos/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "kmsd needs Python 3.11 or later; set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || softhsm/install-debian python3-venv
	@echo "Setting up $(VENV) (once; less than a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e protos -e client -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding what tests and checks need to $(VENV) (once; about a minute)"
	@$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) bench .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
