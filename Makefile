# make demo: environment, then the whole job on two embedded models and the embedded text.
# make test: environment, then the whole test suite.

PYTHON ?= python3
BIN := .venv/bin
TOKENS := data.max_tokens=128000
# of 903 168; TOKENS= takes all, in four times the time

.PHONY: demo test slow lint bench
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps -e .
	touch $@

demo: .venv/installed
	$(BIN)/python jobs/collect.py -m model=opt-mini,opt-mini-sparse collect.bitmaps=all $(TOKENS) report=runs/demo

# A CUDA build of torch brings its own triton; beside the CPU build the tests interpret its kernels.
test: .venv/installed
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q --no-deps triton==3.9.0
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python jobs/bench.py bench.short=true
