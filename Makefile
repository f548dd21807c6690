# The only entry points a person needs. Everything installs into .venv from the project's own files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
DEMO := llama-3.1-405b-16k-h100

.PHONY: install demo test lint types contracts unit bench validate clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[fast,torch,parquet,distributed,dev]'
	touch $@

demo: install  ## predict Llama 3.1 405B on 16,384 H100: table here, page in out/
	mkdir -p out
	$(BIN)/whatif run $(DEMO) --html out/$(DEMO).html --trace out/$(DEMO).json.gz
	@echo "page:  out/$(DEMO).html (open it in a browser)"
	@echo "trace: out/$(DEMO).json.gz (open it at ui.perfetto.dev)"

test: install lint types contracts unit

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

contracts: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/python -m pytest -n $(JOBS)

bench: install  ## ratios in one run: see benchmarks/README.md
	$(BIN)/python -m benchmarks.run

validate: install  ## measure this machine, fit its profile, run small models for real beside their simulation
	rm -rf out/validate && mkdir -p out/validate
	$(BIN)/whatif calibrate measure --quick -o out/validate/this-machine.measured
	WHATIF_CATALOG=out/validate/catalog $(BIN)/whatif calibrate fit --measured out/validate/this-machine.measured
	WHATIF_CATALOG=out/validate/catalog $(BIN)/whatif validate --markdown out/validate/validation.md

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
