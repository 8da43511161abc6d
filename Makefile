# Everything runs from .venv, which `requirements/install` fills from pinned files (and leaves alone while they do not change).
#
#   make demo                      the real flights, killed again and again, counted once (DEMO_SEED=, DEMO_JSON=FILE)
#   make check                     ruff, mypy --strict, the order of the rooms
#   make test                      the tests that need no foreign server, under five minutes
#   make test-servers              1,000 seeds of the simulator; semel against Apache Kafka and others' clients (a JDK, Maven)
#   make proof [WHAT=name]         what is too long for CI; WHAT=list tells the names
#   make bench                     semel beside its peers, in turns
#   make sim SEEDS=1:1000          the simulator, seed by seed
SHELL := bash
BIN := .venv/bin
TESTERS ?= 2
SERVERS ?= 3
SEEDS ?= 1:200
LONG = $(BIN)/python -m pytest --timeout 900 -o faulthandler_timeout=800 -m "long and not proof" --ignore=tests/proof
.DEFAULT_GOAL := help
.PHONY: help install demo check test test-servers proof bench sim

help:
	@sed -n 's/^#   //p' Makefile

install:
	@requirements/install

demo: install
	@$(BIN)/python -m examples.demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests examples bench
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases examples
	$(BIN)/python -m pytest tests/test_tidy.py

test: install
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadgroup -m "not long" --ignore=tests/servers --ignore=tests/proof tests

test-servers: install
	$(BIN)/semel sim --seeds 1:1001
	@# What failed beside others on a busy machine is run once more, alone, up to five tests; both runs are printed.
	$(LONG) -n $(SERVERS) --dist loadfile tests || \
	  { [ $$? -eq 1 ] && echo "== once more, alone" && $(LONG) --last-failed --last-failed-no-failures none --maxfail 1 \
	    -p tests.support.few tests; }

proof: install
	$(BIN)/python -m tests.proof $(WHAT)

bench: install
	$(BIN)/python -m bench

sim: install
	$(BIN)/semel sim --seeds $(SEEDS)
