# make install, make demo, make test, make docs: each sets up .venv by itself on a machine with CPython 3.10+, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OPENBLAS_NUM_THREADS ?= 2

.PHONY: install demo test lint docs clean

$(VENV)/.installed: requirements/tested.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/tested.txt
	# Two packages bring cv2 into one folder; the headless one, installed last, needs no display libraries.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$$(grep '^opencv-python-headless==' requirements/tested.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "import torch, torchvision; torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5)"
	touch $@

# What only tests need stands apart: mmdet imports transformers wherever it is, which takes seconds.
$(VENV)/transformers/.installed: requirements/transformers.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) -r $<
	touch $@

$(VENV)/.lint-installed: requirements/lint.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

$(VENV)/.docs-installed: requirements/docs.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/tested.txt -r $<
	touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/python -W ignore -m mixtransfer demo

test: $(VENV)/.installed $(VENV)/transformers/.installed
	# A process a core, each of one thread: small networks leave a second thread waiting.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.installed $(VENV)/.lint-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# The site, in build/site: a broken link, anchor or name in a docstring is an error.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build work_dirs data/scenes
