# Two commands set everything up: `make demo` and `make test`. Both need only Python 3.11 (or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One's own uv where there is one; else a private copy beside the environment.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
export UV_PYTHON_DOWNLOADS := never
PACKAGES := unmask pipelines serve train cluster
CODE := $(PACKAGES) tests benchmarks

.PHONY: install demo test test-slow check format lock clean

install: $(STAMP)

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet uv

$(STAMP): requirements.lock pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: install
	$(BIN)/python -m unmask.demo out/demo/clips
	$(BIN)/unmask score out/demo/clips --out out/demo/report

# What needs no Ray runs in two processes; what does shares one Ray.
PYTEST := $(BIN)/python -m pytest
TEST = $(PYTEST) -n 2 --dist loadfile tests/unit tests/e2e && $(PYTEST) tests/integration

test: install
	$(TEST)

test-slow: install
	$(PYTEST) -m slow

check: install
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(TEST)

format: install
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# torch stays at 2.10: the last release whose PyPI build carries kernels for Volta (sm_70).
lock: | $(UV)
	echo 'torch<2.11' > .lock-constraints
	$(UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --constraints .lock-constraints --output-file requirements.lock
	rm .lock-constraints

clean:
	rm -rf $(VENV) .uv out .pytest_cache .mypy_cache .ruff_cache
