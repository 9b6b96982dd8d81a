# From a machine with only Python: `make demo` (train, evaluate, draw) or `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

DEMO_CONFIG := configs/demo_ltm_swin_maskrcnn.py
DEMO_DATA := data/demo
DEMO_DIR := work_dirs/demo

BENCH_CONFIG := configs/ltm_swin_s_maskrcnn.py
BENCH_DIR := work_dirs/bench

# Files of tests that run at once.
TEST_JOBS ?= 2
# Such as TEST_ARGS="-m 'not slow'".
TEST_ARGS ?=

.DELETE_ON_ERROR:
.PHONY: install demo bench gpu test test-matrix lint tables docs lock

install: $(STAMP)

# The opencv-python that mmengine asks for needs libGL; a machine without it gets the headless
# build of the same module.
# LOCKED=1: just the files whose hashes requirements.lock has, for its Python and machine.
$(STAMP): setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(PY) -m pip install --require-hashes -r requirements.lock
	$(PY) -m pip install --no-deps --no-build-isolation -e .
else
	$(PY) -m pip install --prefer-binary -e '.[lite,dev]'
endif
	$(PY) -c 'import cv2' 2>/dev/null || { \
		$(PY) -m pip uninstall -y opencv-python && $(PY) -m pip install opencv-python-headless; }
	touch $@

demo: install
	$(PY) -m ltm_det.cli demo-data --out $(DEMO_DATA)
	$(PY) -m ltm_det.cli train $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	$(PY) -m ltm_det.cli draw $(DEMO_CONFIG) "$$(cat $(DEMO_DIR)/last_checkpoint)" \
		--out $(DEMO_DIR)/predictions.png
	$(PY) -m ltm_det.cli test $(DEMO_CONFIG) "$$(cat $(DEMO_DIR)/last_checkpoint)" \
		--work-dir $(DEMO_DIR)
	@echo "Box AP (bbox) and mask AP (segm) stand above; the picture is $(DEMO_DIR)/predictions.png"

# From a quarter of a megapixel to two, so that the growth of cost shows.
bench: install
	$(PY) -m ltm_det.cli benchmark $(BENCH_CONFIG) --rounds 5 --warm-up 1 \
		--shape 800 1280 --shape 512 512 --shape 1440 1440 \
		--json $(BENCH_DIR)/bench.json --plot $(BENCH_DIR)/bench.png
	@echo "The figures are in $(BENCH_DIR)/bench.json, the picture is $(BENCH_DIR)/bench.png"

# On a machine with a CUDA device, in 22 minutes at most, without a network: into results/gpu.
gpu: install
	$(PY) tools/gpu.py

test: install
	$(PY) -m pytest --numprocesses $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

# Other versions of Python, torch and mmdet, one after the other: hours, and 15 GB at a time.
test-matrix: install
	$(PY) tools/test_matrix.py

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# requirements.lock, from what is installed; needs pip's index.
lock: install
	$(PY) tools/lock.py

# The numbers of README.md and docs/, from results/.
tables: install
	$(PY) tools/tables.py

# Into build/site; a warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
