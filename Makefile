# make demo: set up and edit an example picture.   make test: set up and run every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RELEASED := checkpoints/model.ckpt
TINY := results/demo/tiny-random.safetensors

.PHONY: demo test test-slow lint clean

$(READY): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("Python %d.%d does not do: use 3.10 to 3.12, for instance make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@

# With the released model in checkpoints/ the demo is a real edit. Without it, it is a toy model of random weights.
demo: $(READY)
ifneq ($(wildcard $(RELEASED)),)
	$(BIN)/python scripts/inference.py --image_path examples/image/example_1.jpg --mask_path examples/mask/example_1.png \
	  --reference_path examples/reference/example_1.jpg --scale 5 --outdir results/demo
	@echo 'Look at results/demo/grid/grid-example_1_321.png: photo, region, reference, edit.'
else
	$(BIN)/python scripts/random_checkpoint.py configs/tiny.yaml $(TINY)
	$(BIN)/python scripts/inference.py --image_path examples/image/example_1.jpg --mask_path examples/mask/example_1.png \
	  --reference_path examples/reference/example_1.jpg --scale 5 --outdir results/demo \
	  --config configs/tiny.yaml --ckpt $(TINY) --H 256 --W 256
	@echo 'Look at results/demo/grid/grid-example_1_321.png: photo, region, reference, edit.'
	@echo 'There is no $(RELEASED) here, so a toy model of random weights ran: every part works, but all it makes is noise.'
	@echo 'For real edits put the released model there (README.md, "The model") and run make demo again.'
endif

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest

test-slow: lint
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) *.egg-info
