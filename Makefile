# make help   lists the targets. Python 3.10 to 3.13 and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python
CPU_TORCH := 2.13.0
export TOKENIZERS_PARALLELISM := false
# A waiting OpenMP thread sleeps: spinning ones starve each other where the machine also does something else (docs/scale.md).
export OMP_WAIT_POLICY ?= PASSIVE
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-recipes test-real lint format stage1 stage2 export control ablate eta benchmark benchmark-data plan base clean

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready  ## make .venv and install what is needed (the other targets do it too)

# torch first: its CPU build without an NVIDIA GPU, its CUDA build with one.
.venv/.ready: setup.py scripts/torch.sh
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "Python 3.10 to 3.13 is needed, this is " + sys.version'
	$(PYTHON) -m venv .venv
	sh scripts/torch.sh $(BIN) $(CPU_TORCH)
	$(PY) -m pip install -q -e '.[dev]'
	touch .venv/.ready

demo: .venv/.ready  ## the main job on CPU, start to finish: train two stages, export, measure; ends with runs/demo/report.html
	$(PY) -m scripts.demo --output runs/demo

test: .venv/.ready  ## the tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not recipe"

test-recipes: .venv/.ready  ## whole runs: one curve on one process, two, ZeRO-2 and ZeRO-3; kills, full disks, the wheel (10 minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m recipe

test-real: .venv/.ready  ## the tests on real files in $SAFETY_MODULES_DATA
	$(PY) -m pytest -m real

lint: .venv/.ready  ## ruff, and mypy over safety_modules
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/.ready  ## ruff, writing
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

stage1: .venv/.ready  ## stage 1 on LLaVA-1.5-7B: make stage1 DATA=folder GPUS=8
	$(BIN)/torchrun --nproc_per_node $(or $(GPUS),1) -m train.run --config train/configs/stage1.yaml --data.root $(DATA)

stage2: .venv/.ready  ## stage 2 (LoRA) on stage 1's result: make stage2 DATA=folder GPUS=8
	$(BIN)/torchrun --nproc_per_node $(or $(GPUS),1) -m train.run --config train/configs/stage2_lora.yaml --data.root $(DATA)

export: .venv/.ready  ## merge a trained folder: make export FROM=runs/stage2/final TO=runs/stage2/export
	$(PY) -m safety_modules.cli export $(FROM) $(TO)

control: .venv/.ready  ## calibration, policy, switch and new categories on the embedded world: make control SEEDS="0 1 2"
	$(PY) -m scripts.control --output runs/control --seeds $(or $(SEEDS),0)

ablate: .venv/.ready  ## one part of the method changed at a time, on the embedded world: make ablate SEEDS="0 1 2"
	$(PY) -m scripts.ablate --output runs/ablate --seeds $(or $(SEEDS),0)

eta: .venv/.ready  ## evaluate and align at inference, on the embedded world: what it removes, leaves alone and costs
	$(PY) -m scripts.eta --output runs/eta

benchmark: .venv/.ready  ## training and answering against plain LLaVA: make benchmark SHAPE=7b on a GPU
	$(PY) -m scripts.benchmark --shape $(or $(SHAPE),tiny) --out $(or $(OUT),runs/benchmark.json)

plan: .venv/.ready  ## memory, steps and hours of a stage: make plan CONFIG=train/configs/stage1.yaml DATA=folder GPUS=8
	$(PY) -m train.plan --config $(or $(CONFIG),train/configs/stage1.yaml) --data.root $(DATA) --gpus $(or $(GPUS),8)

benchmark-data: .venv/.ready  ## opening, loading and auditing data against their lower bounds
	$(PY) -m scripts.benchmark_data

base: .venv/.ready  ## rebuild the tiny base model of the demo from nothing
	$(PY) -m scripts.base --output data_recipes/riskworld/base

clean:  ## remove runs and caches, not .venv
	rm -rf runs .mypy_cache .pytest_cache .ruff_cache
