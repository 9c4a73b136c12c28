# Each target but gpu sets up .venv first, once. ARGS passes further words on: make test ARGS="-k ledger -x"
BIN := .venv/bin
ARGS ?=
# Test files that run at a time. Each end-to-end run has up to four processes of its own.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n > 4 ? 4 : n)))

# A Megatron-LM checkout compiles its helper with the python3 that comes first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Set in many an image of a container: each of some thousand processes would compile all of src anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo journey test fuzz check hosts gpu

help:
	@echo "make demo    train on several domains and show each domain's loss (CPU or GPU)"
	@echo "make journey from raw texts and a Hugging Face model to an evaluated one, small, on a CPU"
	@echo "make test    run the tests, real Megatron training among them"
	@echo "make fuzz    throw malformed input at everything that reads some"
	@echo "make check   ruff and mypy"
	@echo "make hosts   CHECKOUTS=dir: run the same tests on every Megatron-LM checkout in dir"
	@echo "make gpu     WHEELS=dir: measure on a GPU all that waits for one, without network"
	@echo "make setup   only make .venv"

setup:
	@scripts/bootstrap.sh

demo: setup
	$(BIN)/domain-pretrain demo $(ARGS)

journey: setup
	scripts/journey.sh $(ARGS)

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: setup
	cd tests && ../$(BIN)/python -m fuzz.run $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

hosts: setup
	@PYTHON=$(abspath $(BIN)/python) scripts/test_hosts.sh

# No setup: a GPU machine has its own PyTorch, and may have no network.
gpu:
	@exec scripts/gpu_day.sh $(if $(WHEELS),--wheels $(WHEELS)) $(ARGS)
