# gazeprep + cogaze. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# An extra package index for torch, such as https://download.pytorch.org/whl/cpu (CPU) or .../whl/cu128 (CUDA).
TORCH_INDEX ?=
OUT ?= out/shards
WORKERS ?= 0
SUBJECTS ?= 200
SEED ?= 0
SYNTHETIC ?= out/synthetic-$(SUBJECTS)-$(SEED)
ARGS ?=

.PHONY: help setup demo demo-shards reproduce reproduce-egma reproduce-reports shards shards-real check test test-slow soak fuzz bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.done ## make .venv from pyproject.toml and constraints.txt

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@if $(BIN)/pip list 2>/dev/null | grep -qiE '^(torchvision|timm) '; then \
	  echo 'torchvision or timm is installed: transformers cannot import its models beside them; remove $(VENV)' >&2; \
	  exit 1; fi
	@touch $@

demo: setup demo-shards ## synthetic recordings -> shards -> maps -> a short training -> what it knows and writes
	$(BIN)/gazeprep info out/demo/shards
	$(BIN)/gazeprep preview out/demo/shards --out out/demo/maps.png
	$(BIN)/python pipelines/probe.py --config configs/demo.yaml --shards out/demo/shards --out out/demo/runs \
	  --conditions '[trained, untrained, shuffled]'
	$(BIN)/python pipelines/evaluate.py --model out/demo/runs/trained-0/model --shards out/demo/shards \
	  --out out/demo/results --repeats 200
	$(BIN)/python pipelines/finetune.py --config configs/report_demo.yaml --model out/demo/runs/trained-0/model \
	  --shards out/demo/shards --out out/demo/writer
	$(BIN)/python pipelines/generate.py --model out/demo/writer/best --looker out/demo/runs/trained-0/model \
	  --shards out/demo/shards --out out/demo/generated --search.beams 4
	$(BIN)/python pipelines/score.py --generated out/demo/generated --out out/demo/scores --repeats 200
	$(BIN)/gazeprep report out/demo/shards --out out/demo/report.html --truth out/demo/recordings \
	  --results out/demo/results/results.json --generated out/demo/generated --scores out/demo/scores

demo-shards: setup
	$(MAKE) shards OUT=out/demo/shards SYNTHETIC=out/demo/recordings SUBJECTS=200 SEED=0 \
	  ARGS='--sample.picture.resize.size_px 112'
	$(BIN)/python pipelines/tiny_towers.py --shards out/demo/shards --out out/demo/towers

reproduce: setup demo-shards ## the figures of docs/reproduce.md: six conditions, three seeds, over half an hour
	$(BIN)/python pipelines/probe.py --config configs/demo.yaml --shards out/demo/shards --out out/demo/runs \
	  --seeds '[0, 1, 2]'

reproduce-egma: setup demo-shards ## those of EGMA and its shares of gaze: seven conditions, two seeds
	$(BIN)/python pipelines/probe.py --config configs/egma_demo.yaml --shards out/demo/shards --out out/demo/egma \
	  --seeds '[0, 1]'

# What pretraining is worth to a writer: the same writer on three models of make demo, three seeds each.
reproduce-reports: setup ## the figures of its reports in docs/reproduce.md, after make demo: a quarter of an hour
	for model in trained untrained shuffled; do for seed in 0 1 2; do \
	  out=out/demo/reports/$$model-$$seed; \
	  $(BIN)/python pipelines/finetune.py --config configs/report_demo.yaml --model out/demo/runs/$$model-0/model \
	    --shards out/demo/shards --out $$out/writer --fit.seed $$seed --plan.seed $$seed; \
	  $(BIN)/python pipelines/generate.py --model $$out/writer/best --shards out/demo/shards --out $$out/generated \
	    --search.beams 4 --attention false; \
	  $(BIN)/python pipelines/score.py --generated $$out/generated --out $$out/scores --scorers '[overlap,labels]' \
	    >/dev/null; \
	done; done
	grep -E 'BLEU-4|CIDEr|F1 (micro|macro), 14' out/demo/reports/*/scores/results.md

# Any subset of REFLACX, EGD, MIMIC and MIMIC_JPG, or MIMIC_EYE, names real data; none means the synthetic corpus.
shards: setup ## build shards: REFLACX=.. EGD=.. MIMIC=.. MIMIC_JPG=.. or MIMIC_EYE=.., OUT=.., or synthetic ones
ifeq ($(REFLACX)$(EGD)$(MIMIC)$(MIMIC_JPG)$(MIMIC_EYE),)
	@test -f $(SYNTHETIC)/SYNTHETIC.json || \
	  $(BIN)/gazeprep synth --out $(SYNTHETIC) --subjects $(SUBJECTS) --seed $(SEED) --workers $(WORKERS)
	$(BIN)/gazeprep build --config configs/synthetic.yaml --out $(OUT) --workers $(WORKERS) \
	  --sources.reflacx $(SYNTHETIC)/reflacx --sources.egd $(SYNTHETIC)/egd-cxr \
	  --sources.mimic $(SYNTHETIC)/mimic-cxr --sources.mimic_jpg $(SYNTHETIC)/mimic-cxr-jpg $(ARGS)
else
	$(BIN)/gazeprep build --out '$(OUT)' --workers $(WORKERS) \
	  $(if $(REFLACX),--sources.reflacx '$(REFLACX)') $(if $(EGD),--sources.egd '$(EGD)') \
	  $(if $(MIMIC),--sources.mimic '$(MIMIC)') $(if $(MIMIC_JPG),--sources.mimic_jpg '$(MIMIC_JPG)') \
	  $(if $(MIMIC_EYE),--sources.mimic_eye '$(MIMIC_EYE)') $(ARGS)
endif

# NIH chest X-rays and OSIE fixations are looked for in REAL_DATA; Open-i reports come in a wheel that is read,
# never installed.
REAL_DATA ?= ../shared/data
REAL ?= out/real
shards-real: setup ## the same path on openly licensed real files: chest images, reports, human fixations
	@mkdir -p $(REAL)/download
	@ls $(REAL)/download/torchxrayvision-1.5.7-*.whl >/dev/null 2>&1 || \
	  $(BIN)/pip download -q --no-deps -d $(REAL)/download torchxrayvision==1.5.7 || \
	  echo 'Open-i reports could not be downloaded: going on without them' >&2
	$(BIN)/python pipelines/shards_real.py --out $(REAL) --workers $(WORKERS) \
	  $(patsubst %,--nih %,$(wildcard $(REAL_DATA)/nih_chestxray)) \
	  $(patsubst %,--osie %,$(wildcard $(REAL_DATA)/osie/fixations.mat)) \
	  $$(ls $(REAL)/download/torchxrayvision-1.5.7-*.whl 2>/dev/null | sed 's/^/--wheel /')

check: setup ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup ## the tests, about two minutes; ARGS="-k maps" chooses
	$(BIN)/pytest -q -n 2 --dist loadfile $(ARGS)

test-slow: setup ## the slow tests
	$(BIN)/pytest -q -m slow -n 2 --dist worksteal $(ARGS)

SEEDS ?= 50
soak: setup ## kill -9 of builds and of their workers at random moments, resumed and compared; SEEDS=50, ARGS
	$(BIN)/python tests/soak.py --seeds $(SEEDS) $(ARGS)

INPUTS ?= 110000
fuzz: setup ## every reader fed damaged and hostile files; INPUTS=110000, ARGS; out/fuzz.tsv
	$(BIN)/python tests/fuzz.py --inputs $(INPUTS) $(ARGS)

bench: setup ## ratios against what one would otherwise use, in one run
	$(BIN)/python benchmarks/maps.py
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/planning.py --share 0.02
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/memory.py

clean: ## remove what make demo and make shards wrote into out/
	rm -rf out
