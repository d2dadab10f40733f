# Each target sets up what it needs on a machine that has python3 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint test-package test-tab benchmarks clean

demo: .venv/.installed
	$(BIN)/clipcam demo

# Each part runs even if another one fails; then make fails.
test: .venv/.installed-test
	$(MAKE) --keep-going lint test-package test-tab

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

test-package:
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile --ignore tests/tensorboard_tab

# In processes of its own: others fork, which threads of TensorBoard's fast loader do not outlive.
test-tab:
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile tests/tensorboard_tab

benchmarks: .venv/.installed-test
	$(BIN)/python -m benchmarks.localisation
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.tensorboard_tab
	$(BIN)/python -m benchmarks.ranks
	$(BIN)/python -m benchmarks.drift_detection

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv clipcam_demo .mypy_cache .pytest_cache .ruff_cache
