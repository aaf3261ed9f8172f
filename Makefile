# `make` lists the targets. They use the environment .venv, which is set up when it is first needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RELEASED := checkpoints/model.ckpt

.PHONY: help demo web test test-quick test-slow lint docs mini mini-individuals mini-likeness mini-table3 clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

$(READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 14) or sys.exit("Python %d.%d is not supported: use 3.10 to 3.14, for instance make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@

# With the released model in checkpoints/ the demo edits a photograph, without it pictures of the miniature model's world.
demo: $(READY)  ## edit example pictures
ifneq ($(wildcard $(RELEASED)),)
	$(BIN)/python scripts/inference.py --image_path examples/image/example_1.jpg --mask_path examples/mask/example_1.png \
	  --reference_path examples/reference/example_1.jpg --scale 5 --outdir results/demo
	@echo 'Look at results/demo/grid/grid-example_1_321.png: photo, region, reference, edit.'
else
	$(BIN)/python scripts/inference_test_bench.py --config configs/mini/paint_by_example.yaml \
	  --ckpt pretrained_models/mini.safetensors --bench examples/mini --outdir results/demo --sampler dpm++ --steps 12 \
	  --best 4 --batch_size 12 --grid 12
	@echo 'Look at results/demo/grid.png: photo, region, reference, edit, in a small world of painted shapes.'
	@echo 'For edits of photographs put the released model at $(RELEASED) (docs/checkpoints.md) and run make demo again.'
endif

# The web page, with the released model if it is in checkpoints/, else with the miniature one.
web: $(READY)  ## edit in the browser
	$(BIN)/python scripts/demo.py

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests run at a time, on one core each. The tests of a file run one after the other, because they share slow fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test: lint  ## style, types and all tests except the slow ones, in about ten minutes
	$(PYTEST)

test-quick: $(READY)  ## unit and golden tests, in under two minutes
	$(PYTEST) -m 'unit or golden'

test-slow: lint  ## the slow tests: gigabytes, and half an hour
	$(BIN)/python -m pytest -m slow

# It has an environment of its own, since docstrings are read without importing PyTorch.
DOCS_TOOLS := 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.27' 'ruff>=0.8'
docs:  ## build the site of docs/ in site/, strictly
	@[ -x .venv-docs/bin/mkdocs ] || { $(PYTHON) -m venv .venv-docs && \
	  .venv-docs/bin/python -m pip install --disable-pip-version-check --quiet $(DOCS_TOOLS); }
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build  # with --quiet, warnings would not count as errors
	@echo 'Look at site/index.html.'

clean:  ## remove the environments and what was built
	rm -rf $(VENV) .venv-docs site *.egg-info build dist .mypy_cache .pytest_cache .ruff_cache

# The miniature model from nothing: its world, autoencoder, CLIP, oracle, prior and Paint by Example, in logs/mini. An
# interrupted training is resumed; a finished one is not repeated.
train = if [ -f logs/mini/$(1)/checkpoints/last.ckpt ]; then $(BIN)/python main.py -r logs/mini/$(1); \
  else $(BIN)/python main.py --project logs/mini/$(1) --base $(2) $(3); fi
mini: $(READY)  ## train the miniature model from nothing
	[ -d dataset/miniworld ] || $(BIN)/python scripts/make_miniworld.py
	[ -f dataset/miniworld/bbox/train.parquet ] || $(BIN)/python scripts/read_bbox.py --dataset_dir dataset/miniworld
	$(call train,first_stage,configs/mini/first_stage.yaml)
	$(call train,first_stage_128,configs/mini/first_stage.yaml configs/mini/first_stage_128.yaml)
	$(call train,clip,configs/mini/clip.yaml)
	$(call train,oracle,configs/mini/oracle.yaml)
	$(BIN)/python scripts/prepare_latents.py --base configs/mini/paint_by_example.yaml configs/mini/prior.yaml --epochs 3
	$(call train,prior,configs/mini/paint_by_example.yaml configs/mini/prior.yaml configs/latents.yaml)
	$(BIN)/python scripts/modify_checkpoints.py --ema --input logs/mini/prior/checkpoints/last.ckpt \
	  --output logs/mini/prior-9channel.safetensors
	$(call train,paint_by_example,configs/mini/paint_by_example.yaml configs/latents.yaml)
	$(BIN)/python scripts/convert_checkpoint.py --ema --half logs/mini/paint_by_example/checkpoints/last.ckpt \
	  logs/mini/mini.safetensors
	$(BIN)/python scripts/convert_checkpoint.py --half logs/mini/oracle/checkpoints/last.ckpt logs/mini/mini_oracle.safetensors
	$(BIN)/python scripts/mini_table.py --ckpt logs/mini/mini.safetensors --clip logs/mini/clip/clip.safetensors \
	  --oracle logs/mini/mini_oracle.safetensors --outdir logs/mini/table

# Individuals: their data and benchmark, a recogniser that tells them apart, and the shipped model's score.
mini-individuals: $(READY)  ## train the recogniser of individuals in the small world
	[ -d test_bench_individuals ] || $(BIN)/python scripts/make_miniworld.py --individuals
	$(call train,recogniser,configs/mini/recogniser.yaml)
	$(BIN)/python scripts/convert_checkpoint.py --half logs/mini/recogniser/checkpoints/last.ckpt \
	  logs/mini/mini_recogniser.safetensors
	$(BIN)/python scripts/mini_table.py --bench test_bench_individuals --name individuals --outdir logs/mini/table \
	  --recogniser logs/mini/mini_recogniser.safetensors

# A detail path of the small world: the miniature is trained on for individuals and, for as many steps on the same samples,
# a detail path beside it as it is.
individuals = configs/mini/paint_by_example.yaml configs/mini/individuals.yaml
likeness = $(BIN)/python scripts/mini_table.py --bench test_bench_individuals --scales 1.5 2 3 --precision autocast \
  --outdir logs/mini/likeness/table --bare --name $(1) --ckpt $(2) $(3)
mini-likeness: $(READY)  ## train and score a detail path in the small world
	[ -d test_bench_individuals ] || $(BIN)/python scripts/make_miniworld.py --individuals
	[ -f dataset/individuals/bbox/train.parquet ] || $(BIN)/python scripts/read_bbox.py --dataset_dir dataset/individuals
	$(BIN)/python scripts/prepare_latents.py --base $(individuals) configs/mini/detail.yaml --epochs 1
	$(call train,likeness/plain,$(individuals) configs/latents.yaml)
	$(BIN)/python scripts/convert_checkpoint.py --ema --half logs/mini/likeness/plain/checkpoints/last.ckpt \
	  logs/mini/likeness/plain.safetensors
	$(call train,likeness/detail,$(individuals) configs/mini/detail.yaml configs/latents.yaml)
	$(call likeness,plain,logs/mini/likeness/plain.safetensors)
	$(call likeness,detail,pretrained_models/mini.safetensors,--detail logs/mini/likeness/detail/checkpoints/detail.safetensors)
	$(BIN)/python scripts/mini_table.py --name likeness --outdir logs/mini/likeness/table --bench test_bench_individuals \
	  --show logs/mini/likeness/table/plain.json logs/mini/likeness/table/detail.json

# The paper's Table 3 in miniature, after make mini: each row is trained for the same number of steps, the last two rows
# with two seeds. The last two train on the samples of make mini; those of the others (all CLIP tokens, without and with
# augmentation) are prepared in data sets of their own, which are links to its pictures.
samples = mkdir -p dataset/$(1) && ln -sfn ../miniworld/bbox ../miniworld/images dataset/$(1)/ && \
  $(BIN)/python scripts/prepare_latents.py --base configs/mini/paint_by_example.yaml configs/ablation/$(2).yaml --epochs 1 \
  data.params.dataset_dir=dataset/$(1)
define row
	$(call train,table3/$(1)-$(2),configs/mini/paint_by_example.yaml configs/ablation/$(1).yaml configs/mini/budget.yaml \
	  configs/latents.yaml,--seed $(2) data.params.dataset_dir=dataset/$(4))
	$(BIN)/python scripts/convert_checkpoint.py --ema logs/mini/table3/$(1)-$(2)/checkpoints/last.ckpt \
	  logs/mini/table3/$(1)-$(2)/model.safetensors
	$(BIN)/python scripts/mini_table.py --config logs/mini/table3/$(1)-$(2)/config.yaml \
	  --ckpt logs/mini/table3/$(1)-$(2)/model.safetensors --bare --name $(1)-$(2) --scales $(3) \
	  --clip logs/mini/clip/clip.safetensors --oracle logs/mini/mini_oracle.safetensors --outdir logs/mini/table
endef
mini-table3: $(READY)  ## train and score the paper's Table 3 in the small world
	$(call samples,miniworld-plain,prior)
	$(call samples,miniworld-augmented,augmentation)
	$(call row,baseline,23,1,miniworld-plain)
	$(call row,prior,23,1,miniworld-plain)
	$(call row,augmentation,23,1,miniworld-augmented)
	$(call row,bottleneck,23,1,miniworld)
	$(call row,bottleneck,24,1,miniworld)
	$(call row,classifier_free,23,5,miniworld)
	$(call row,classifier_free,24,5,miniworld)
	$(BIN)/python scripts/mini_table.py --name table3 --outdir logs/mini/table --show \
	  $(foreach name,baseline-23 prior-23 augmentation-23 bottleneck-23 bottleneck-24 classifier_free-23 \
	  classifier_free-24,logs/mini/table/$(name).json)
