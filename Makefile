# Each target sets up what it needs on a machine that has python3 and make.
PYTHON ?= python3
BIN := .venv/bin

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

.PHONY: demo fast test lint test-fast test-python test-js coverage docs benchmarks gpu clean

demo: .venv/.installed
	$(BIN)/clipcam demo

# Each part runs even if another one fails; then make fails.
fast: .venv/.installed-test
	$(MAKE) --keep-going lint test-fast

test: .venv/.installed-test
	$(MAKE) --keep-going lint test-python test-js

lint: .venv/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy --strict

test-fast: .venv/.installed-test
	$(PYTEST) -m "not slow and not browser and not ranks"

test-python: .venv/.installed-test
	$(PYTEST)

test-js:
	@if command -v npm > /dev/null; then npm ci --silent && npm test; else echo "npm is missing: no JavaScript checks"; fi

coverage: .venv/.installed-test
	$(PYTEST) --cov --cov-report term --cov-report html

docs: .venv/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmarks: .venv/.installed-test
	$(BIN)/python -m benchmarks

# On a machine with a GPU: the tests of the maps with models and inputs on it, then the benchmark.
gpu: .venv/.installed-test
	$(BIN)/python -m benchmarks.gpu
	CLIPCAM_TEST_DEVICE=cuda $(BIN)/pytest -m "not slow and not browser and not ranks" tests/cam

.venv/.installed: pyproject.toml constraints.txt
	@echo "Installing clipcam-lightning and what it needs into .venv: 5.4 GB, nearly all of it torch and CUDA."
	@echo "About 1 GB without CUDA: make $(or $(MAKECMDGOALS),demo) PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	@echo "Installing the packages of the tests: about 2 GB more."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv node_modules clipcam_demo htmlcov site .coverage* .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
