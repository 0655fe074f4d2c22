# Two commands do all the set-up: `make run` and `make test`. Everything else depends on `make dev`.
PYTHON ?= python3.11
PORT ?= 8080
ADMIN_PORT ?= 9900
VENV := .venv
BIN := $(VENV)/bin
UV := PYTHONPATH=.uv $(PYTHON) -m uv

export UV_PYTHON_DOWNLOADS := never
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help dev run test check matrix bench soak lock docs fmt install clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

dev: $(VENV)/.complete  ## make .venv from requirements.lock (every other target does this first)

# pip is only used to fetch uv; uv makes the environment without the venv module and checks every hash.
.uv/.complete:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --require-hashes --only-binary :all: --target .uv --upgrade -r .ci/uv.lock
	@touch $@

$(VENV)/.complete: .uv/.complete requirements.lock pyproject.toml sdk/python/pyproject.toml agents/pyproject.toml
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --only-binary :all: requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . -e sdk/python -e agents
	@touch $@

run: dev  ## the proxy, agentd, a demo application and two demo agents, in this terminal (PORT=, ADMIN_PORT=)
	@$(BIN)/wardgate run --demo --port $(PORT) --admin-port $(ADMIN_PORT)

test: dev  ## the whole test suite; ARGS="tests/cli -k drain" runs what it names
	$(BIN)/python $(if $(ARGS),-m pytest $(ARGS),tests/whole.py)

check: dev  ## ruff, mypy --strict, import-linter, generated docs fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg --no-logo
	$(BIN)/python docs/generate.py --check

fmt: dev  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: dev  ## write the generated reference pages
	$(BIN)/python docs/generate.py

matrix: dev  ## break every process under traffic, write docs/reliability.md
	WARDGATE_WRITE_RELIABILITY=1 $(BIN)/python -m pytest tests/e2e/test_matrix.py $(ARGS)

bench: dev  ## requests/s, latency, CPU per request (PEERS=dir adds the peers found there)
	$(BIN)/python bench/run.py $(if $(PEERS),--peers $(PEERS)) $(ARGS)

soak: dev  ## mixed traffic, kills and reloads for two minutes (ARGS="--hours 8"): memory, descriptors, tables over time
	$(BIN)/python bench/soak.py $(ARGS)

install: dev  ## lay out /opt/wardgate, units, a default configuration (DESTDIR=, PREFIX=, RELEASE=, PYTHON=)
	@DESTDIR='$(DESTDIR)' PREFIX='$(or $(PREFIX),/opt/wardgate)' RELEASE='$(RELEASE)' PYTHON='$(PYTHON)' \
	UV='env PYTHONPATH=$(CURDIR)/.uv $(PYTHON) -m uv' BUILD_PYTHON='$(CURDIR)/$(BIN)/python' deploy/install

LOCKED := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links
PROJECTS := pyproject.toml agents/pyproject.toml --no-emit-package wardgate-agent

lock: .uv/.complete  ## resolve the dependencies again (hashes only, no index lines)
	$(UV) pip compile $(LOCKED) --extra dev $(PROJECTS) -o requirements.lock $(ARGS)
	$(UV) pip compile $(LOCKED) -c requirements.lock $(PROJECTS) -o deploy/requirements.lock
	echo uv | $(UV) pip compile $(LOCKED) - -o .ci/uv.lock $(ARGS)

clean:  ## remove what the targets above made
	rm -rf $(VENV) .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
