# make serve and make test work from a fresh clone; both create .venv once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
JOBS ?= 2
SOURCES := server rediff_model kernels training benchmarks tests scripts

.PHONY: install serve test test-system test-browser check fix bench gate embedded \
	embedded-384 embedded-mask-only gpu-check clean

# torch goes in first and alone: with it in place no other package pulls a CUDA build.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $$($(PYTHON) --version) was found; try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

install: $(DEV_STAMP)

serve: $(STAMP)
	$(BIN)/rediff serve $(ARGS)

test: check
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not gpu and not system" $(ARGS)

# With a browser and a Prometheus; skips, and says so, what needs one that is not there.
test-system: $(DEV_STAMP)
	$(BIN)/python -m pytest -q -rs -n $(JOBS) -m "system and not slow" $(ARGS)

test-browser: $(DEV_STAMP)
	$(BIN)/python -m pytest -q -rs -m system tests/system/playground $(ARGS)

# Only reads.
check: $(DEV_STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(DEV_STAMP)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# Prints ratios; JSON goes to benchmarks/results.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.checkpoint --json benchmarks/results/checkpoint.json
	$(BIN)/python -m benchmarks.sampler --model rediff_model/checkpoints/embedded --n 16 \
		--json benchmarks/results/sampler.json

# Measures anew and compares ratios with benchmarks/results; fails where one is worse than allowed.
gate: $(STAMP)
	$(BIN)/python -m benchmarks.gate $(ARGS)

# The shipped embedded checkpoint from its seed; about nine hours, mostly of one core, and resumed where
# it was killed.
embedded: embedded-384
	$(BIN)/rediff train stage1 --config training/configs/embedded-576-cpu.yaml --out runs/embedded

# The same before its tower looked closer.
embedded-384: $(DEV_STAMP)
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu.yaml --out runs/embedded-1
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu-2.yaml --out runs/embedded-2
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu-3.yaml --out runs/embedded-3
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu-4.yaml --out runs/embedded-4
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu-5.yaml --out runs/embedded-5
	$(BIN)/rediff train stage1 --config training/configs/embedded-cpu-6.yaml --out runs/embedded-6
	$(BIN)/rediff train stage2 --config training/configs/embedded-stage2-cpu.yaml \
		--out runs/embedded-stage2
	$(BIN)/rediff train stage2 --config training/configs/embedded-stage2-cpu.yaml \
		--set correction_share=0 --set states_share=0 --out runs/embedded-control
	test -d runs/embedded-mean || $(BIN)/python scripts/average_checkpoints.py --share 0.7 \
		runs/embedded-stage2/round-0/checkpoint runs/embedded-control/round-0/checkpoint \
		runs/embedded-mean
	$(BIN)/rediff train stage2 --config training/configs/embedded-stage2-cpu-2.yaml \
		--out runs/embedded-stage2-2
	test -d runs/embedded-384 || $(BIN)/python scripts/average_checkpoints.py --share 0.75 \
		runs/embedded-stage2-2/round-0/checkpoint runs/embedded-control/round-0/checkpoint \
		runs/embedded-384

# Plain denoising alone, to compare with; two hours on one core.
embedded-mask-only: $(DEV_STAMP)
	$(BIN)/rediff train stage1 --config training/configs/embedded-mask-only-cpu.yaml \
		--out runs/embedded-mask-only

# Installs nothing: make gpu-check PYTHON=python3 runs where torch, triton and transformers are.
gpu-check:
	$(PYTHON) -m benchmarks.kernels --json benchmarks/results/gpu-kernels.json
	$(PYTHON) -m benchmarks.saturation --device cuda --dtype bfloat16 --peak-tflops 989 --profile \
		--cuda-graphs off on \
		--json benchmarks/results/gpu-saturation.json
	@if $(PYTHON) -c 'import hypothesis, pytest, pytest_timeout' 2>/dev/null; then \
		$(PYTHON) -m pytest -q -p no:cacheprovider tests/kernels tests/rediff_model/test_gpu.py \
			tests/rediff_model/runtime/test_varlen.py; \
	else echo "pytest, hypothesis and pytest-timeout are not there: no tests were run"; fi

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
