# Each target sets up what it needs: a machine with Python 3.11-3.13, git and make runs any of them at once.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
# Pip's progress bars say nothing useful in a log.
PIP    := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-caption claims test test-fast lint bench pods clean

demo: $(VENV)/ready
	$(RUN) -m launch.demo --config=configs/demo.py --workdir=runs/demo

# The demo's encoder is what its second half begins with; a finished demo is not done again.
demo-caption: demo
	$(RUN) -m launch.demo_caption --config=configs/demo_caption.py --workdir=runs/demo_caption --encoder=runs/demo

claims: $(VENV)/ready
	$(RUN) -m launch.claims --workdir=runs/claims

test: $(VENV)/ready-test
	$(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/ready-test
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/ready-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(VENV)/ready
	@for script in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(RUN) -m benchmarks.$$(basename $$script .py) || exit 1; done

# Compiles each full-size recipe for its TPU pod where benchmarks/pods.json has no row of it as it stands.
pods: $(VENV)/ready-test
	JAX_PLATFORMS=cpu PYTHONPATH=$(VENV)/plan $(RUN) -m benchmarks.pods

$(VENV)/ready: requirements.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "vidlang needs Python 3.11 to 3.13, this is %d.%d; say make PYTHON=python3.12" % v)'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.txt into $(VENV), about two minutes the first time"
	$(PIP) -r requirements.txt -e .
	@touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(PIP) -c requirements.txt -e '.[test]'
# The compiler for TPUs, of the extra "plan", for the tests that name it and for no other process.
	$(PIP) --no-deps --target $(VENV)/plan 'libtpu==0.0.42.*'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
