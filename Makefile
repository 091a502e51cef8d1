# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both make .venv first (with uv where it is installed, else with venv and pip).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Idle OpenMP threads that spin make a busy machine several times slower.
export OMP_WAIT_POLICY ?= passive

# One process a core, of one thread each: tests are many and small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --durations=15

.PHONY: demo test test-slow lint install clean

demo: $(VENV)/.installed
	$(BIN)/belvedere demo

test: lint
	$(PYTEST)

test-slow: $(VENV)/.installed
	$(PYTEST) -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
		uv venv --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV)
