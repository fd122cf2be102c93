# make demo   draw a data set (shapes, or figures for MODEL=pose), train on it, evaluate, write pictures of the result
# make test   formatting, linting, types, tests
# Both make .venv and install what they need the first time.  The rest: format, test-full (slow tests too, compiled as
# users compile), soak, golden-full, clean.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-full format soak golden-full clean

PYTHON ?=
MODEL ?= ttf
CONFIG ?= configs/shapes_$(MODEL).py
SEED ?= 0
WORK ?= workdir/demo
PYTEST_ARGS ?=
# tests that run at once, each file's one after another: one more than the two cores of a small machine, as some wait
# for other processes
JOBS ?= 3

BIN := .venv/bin
# loadfile alone would begin with the files of most tests; tests/conftest.py says which take longest
PYTEST_FILES = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# pose learns joints, which figures have; all other models learn shapes
KIND := $(if $(filter shapes_pose,$(basename $(notdir $(CONFIG)))),figures,shapes)
# saccade looks at small copies of large images first, and then closer
LOOKS := $(filter shapes_saccade,$(basename $(notdir $(CONFIG))))
SIZE := $(if $(LOOKS),256,128)
DATA := $(WORK)/$(KIND)$(if $(LOOKS),-$(SIZE))-$(SEED)
RUN := $(WORK)/$(basename $(notdir $(CONFIG)))-$(SEED)
SPLITS := --config.data.train.images=$(DATA)/train \
  --config.data.train.annotations=$(DATA)/annotations/instances_train.json \
  --config.data.val.images=$(DATA)/val \
  --config.data.val.annotations=$(DATA)/annotations/instances_val.json

demo: $(BIN)/.demo-installed
	@test -f $(CONFIG) || { echo "error: no $(CONFIG); MODEL can be one of:" \
	  $$(ls configs | sed -n 's/^shapes_\(.*\)\.py$$/\1/p') >&2; exit 2; }
	@$(BIN)/python -m kpjax shapes --kind $(KIND) --out $(DATA) --size $(SIZE) --seed $(SEED)
	@SECONDS=0; \
	$(BIN)/python train.py --config $(CONFIG) --workdir $(RUN) --config.seed=$(SEED) $(SPLITS); \
	trained=$$SECONDS; \
	$(BIN)/python eval.py --config $(CONFIG) --workdir $(RUN) --config.seed=$(SEED) $(SPLITS) --per-class \
	  --show-dir $(RUN)/pictures | tee $(RUN)/eval.txt; \
	evaluated=$$((SECONDS - trained)); \
	if [ -n "$(LOOKS)" ]; then \
	  $(BIN)/python eval.py --config $(CONFIG) --workdir $(RUN) --config.seed=$(SEED) $(SPLITS) --preset first \
	    --out $(RUN)/first.json >$(RUN)/first.txt; \
	fi; \
	$(BIN)/python detect.py --checkpoint $(RUN) --out $(RUN)/detected $(DATA)/val/00000?.jpg; \
	echo; \
	echo "held-out split of $(DATA), by pycocotools:"; \
	grep -m 2 'Average Precision' $(RUN)/eval.txt; \
	if [ -n "$(LOOKS)" ]; then \
	  echo "of its first look alone (eval.py --preset first):"; \
	  grep -m 2 'Average Precision' $(RUN)/first.txt; \
	fi; \
	echo "training $$trained s, evaluation $$evaluated s"; \
	echo "checkpoints, logs, eval.txt, detections.json in $(RUN)"; \
	echo "pictures of the whole split in  $(RUN)/pictures"; \
	echo "ten images through detect.py in $(RUN)/detected"

test: $(BIN)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST_FILES) $(PYTEST_ARGS)

test-full: $(BIN)/.test-installed
	$(PYTEST_FILES) -m 'not soak and not golden_full' $(PYTEST_ARGS)

format: $(BIN)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(BIN)/.test-installed
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

golden-full: $(BIN)/.test-installed
	$(BIN)/python -m pytest -m golden_full $(PYTEST_ARGS)

clean:
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

INSTALL = echo "installing kpjax and what it needs into .venv (once; some minutes)"; \
  $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
  $(PIP) -e

$(BIN)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	@$(INSTALL) .
	@touch $@

$(BIN)/.test-installed: pyproject.toml constraints.txt | $(BIN)/python
	@$(INSTALL) '.[test]'
	@touch $(BIN)/.demo-installed $@

$(BIN)/python:
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    exec "$$python" -m venv .venv; \
	  fi; \
	done; \
	echo "error: no Python 3.11 or newer with its venv module was found;" \
	  "install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1
