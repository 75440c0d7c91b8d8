PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
# pip compiles nothing: most modules are never used. Those that are, setup compiles once, also where
# PYTHONDONTWRITEBYTECODE is set (containers), and every start would otherwise compile them anew
COMPILE := PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import probjepa.cli.app, probjepa.demo, probjepa.tabular"
INSTALL := python -m pip install -q --disable-pip-version-check
# that of Python 3.11 takes two minutes to choose what a newer one chooses in a quarter of the time
NEWER_PIP := $(INSTALL) 'pip>=25'
PIP := $(INSTALL) --no-compile
# two at a time, a file in one process: what its tests share is made once. In the order of tests/conftest.py
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test lint types collected unit docs floors coverage lowest mutants nightly clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(NEWER_PIP)
	$(BIN)/$(PIP) torch -c constraints.txt
	$(BIN)/$(PIP) -e '.[dev,docs]' -c constraints.txt
	$(COMPILE)
	touch $@

demo: setup
	$(BIN)/probjepa demo --out demo-run --overwrite

# types keep one core busy, and the other compiles what the workers of the tests would each compile
test: setup
	$(MAKE) --no-print-directory -j 2 --output-sync=target types lint collected
	$(MAKE) --no-print-directory unit

lint: setup floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

collected: setup
	@names=$$(PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -qq --collect-only) || { echo "$$names"; exit 1; }

unit: setup
	$(BIN)/python -m pytest $(BY_FILE)

# a room imports only rooms below it: the contract is in pyproject.toml, its reasons in docs/architecture.md
floors: setup
	$(BIN)/lint-imports

# the site, in site/; --strict fails on a broken link or a docstring that cannot be read (not with --quiet,
# which hides warnings from it, too)
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: setup
	$(BIN)/python -m pytest $(BY_FILE) --cov --cov-report=xml --cov-report=term:skip-covered

# a second environment with the lowest versions that pyproject.toml allows, and a selection of the tests
lowest: $(LOWEST_STAMP)
	$(LOWEST)/bin/python -m pytest tests/test_package.py tests/data tests/metrics tests/distributions/test_student_t.py \
	  tests/heads/test_head_contract.py tests/methods/test_method_contract.py tests/jacobian/test_jepa_score_encoders.py \
	  tests/tabular/test_tabular_estimators.py tests/cli/test_cli.py

$(LOWEST_STAMP): pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/$(NEWER_PIP)
	$(LOWEST)/bin/$(PIP) torch -c constraints-lowest.txt
	$(LOWEST)/bin/$(PIP) -e '.[hf,tables]' pytest hypothesis mpmath polars -c constraints-lowest.txt
	touch $@

# small faults in the mathematics, one at a time: which does no test notice? A sample; SAMPLE=0 tries all
mutants: setup
	$(BIN)/$(PIP) mutmut==3.8.1 coverage
	rm -f $(VENV)/mutants-map.json
	nice -n 19 $(BIN)/python benchmarks/mutants.py --reach $(VENV)/mutants-map.json --sample $(or $(SAMPLE),60)

nightly: setup
	$(BIN)/python -m pytest -m nightly tests

clean:
	rm -rf $(VENV) $(LOWEST) demo-run site coverage.xml .coverage
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
