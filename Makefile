# setup: a virtual environment with the pinned stack.  demo: everything on the nano world.  test, quality: the checks.
# docs: the documentation site, in build/site.  dist: what is published, checked in an environment of its own.  compat: the ends of setup.py's version ranges.
# bench: the performance goals, as ratios measured in one run.  gpu-check: what only a GPU can settle.  ablation: the nano model without each of its parts.
SEED ?= 0
OUT ?= runs/demo
SEEDS ?= 0 1 2
VENV ?= .venv
WORKERS ?= 2
BASE_PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then echo $$p; break; fi; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test bench gpu-check ablation quality docs dist compat clean

setup: $(STAMP)

# The stamp is newer than these files exactly when the environment holds what they ask for.
$(STAMP): setup.py pyproject.toml constraints.txt patches/vaemotionllm_startup.pth
	@test -n "$(BASE_PYTHON)" || { echo "make setup: needs Python 3.11 or 3.12 on the PATH; found none" >&2; exit 2; }
	test -x $(BIN)/python || $(BASE_PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,demo]'
	touch $@

# A finished run, or one of another seed, is replaced; an interrupted one goes on.
demo: setup
	$(BIN)/vaemotionllm demo --seed $(SEED) --out $(OUT) --overwrite

# No test may reach for a hub: what it needs it makes itself. WORKERS processes share the files, the longest first
# (tests/conftest.py).
test: setup
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest \
		-n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Each prints tables, and as its last line one JSON object. RESULTS.md says what they measured.
BENCHMARKS := kl_loss.py teacher_cache.py kl_peers.py padding.py zero3.py adapter_overhead.py generate_overhead.py \
	load.py media.py benchmark_build.py eval_throughput.py
bench: setup
	@set -e; for script in $(BENCHMARKS); do echo "== benchmarks/$$script"; $(BIN)/python benchmarks/$$script; done

# On a GPU, under 8 minutes: what only hardware settles. Its table goes into benchmarks/RESULTS.md. Without one: tiny sizes.
gpu-check: setup
	$(BIN)/python benchmarks/gpu_check.py

# A run for each seed, then the report of all. Runs share nothing: where cores are idle, `make -j3 ablation` makes them
# side by side. What was stopped goes on.
ABLATIONS := $(SEEDS:%=runs/ablation/seed%)
ablation: $(ABLATIONS:=/.run)
	$(BIN)/vaemotionllm ablation report $(ABLATIONS) --out docs

.PHONY: $(ABLATIONS:=/.run)
$(ABLATIONS:=/.run): runs/ablation/seed%/.run: setup
	$(BIN)/vaemotionllm ablation run --seed $* --out runs/ablation/seed$*

quality: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A broken link or a public name without a docstring fails.
$(VENV)/.docs-done: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs-done
	$(BIN)/ruff check --select D101,D103 plugin/model plugin/train/losses.py plugin/data/manifest.py
	mkdir -p build/api && ln -sfn ../../plugin build/api/vaemotionllm
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

# The tools of these two.
$(VENV)/.dist-done: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dist]'
	touch $@

# README's first example runs from the wheel alone, in a new environment and another folder.
dist: $(VENV)/.dist-done
	rm -rf dist build/dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BASE_PYTHON) -m venv build/dist/venv
	build/dist/venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt dist/*.whl
	build/dist/venv/bin/python tests/readme_example.py build/dist
	rm -rf build/dist

# `make compat ONLY=lowest-3.11` tests one environment of four. Each takes 7 GB of disk, less what they share.
compat: $(VENV)/.dist-done
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python tests/version_matrix.py $(ONLY) --workers $(WORKERS)

clean:
	rm -rf build dist .compat *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
