# Everything from a fresh clone: needs Python >= 3.10 with venv, git, g++ and make; the rest is fetched into .venv.
#   make PYTHON=python3.12 test      another interpreter
#   make VENV=/some/where demo       another place for the environment

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# numpy multiplies small matrices only; see mrisr/cli/main.py.
export OPENBLAS_NUM_THREADS = 1

# Processes that share the tests, and what makes of PyTorch's threads one for each of them.
WORKERS ?= 2

RUN    := $(VENV)/bin/python
# Files stay whole (their fixtures are built once) and in the order that tests/conftest.py gives them.
PYTEST := $(RUN) -m pytest -q --durations=15 -p no:benchmark
SHARED := $(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder
EXTRAS := dev,train,demo,export,dicom,mrd,bench,docs,cluster,web,join
STAMP  := $(VENV)/.mrisr-installed
# What is in .clang-format-ignore is left alone by both.
C_FILES := '*.h' '*.c' '*.cpp' '*.cu' '*.cuh'
NATIVE := $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick test-slow lint types format docs slurm wheels fuzz figures compile-only tensorrt-rtx native-test sanitize sanitize-thread runtime vendor-kit runtime-sanitize teacher-steps check-all clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## environment with mrisr installed in place, native core built

demo: $(STAMP) ## upscale a bundled brain: picture and PSNR in out/demo
	$(VENV)/bin/mrisr demo -o $(OUT) --force

test: $(STAMP) ## what every change has to pass: all tests but the slow ones (WORKERS=2 processes share them)
	$(SHARED) -m "not slow"

quick: $(STAMP) ## a minute's worth of tests while you work
	$(PYTEST) -m quick

test-slow: $(STAMP) ## the tests that `make test` leaves out (FILES="tests/..." for some)
	$(SHARED) -m slow $(FILES)

lint: $(STAMP) types ## ruff, clang-format, basedpyright
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	git ls-files $(C_FILES) | xargs $(VENV)/bin/clang-format --dry-run --Werror

types: $(STAMP) ## basedpyright alone, over the package
	$(VENV)/bin/basedpyright

format: $(STAMP) ## what ruff and clang-format would write
	$(RUN) -m ruff format .
	git ls-files $(C_FILES) | xargs $(VENV)/bin/clang-format -i

docs: $(STAMP) ## the documentation as a site that needs no network: build/site/index.html
	$(RUN) docs/site/build.py

figures: demo ## put the demo's picture and the measured figures into README, docs and model cards
	$(RUN) benchmarks/readme_tables.py --demo $(OUT)/demo

slurm: $(STAMP) ## many scans on a real SLURM of one node (root; skipped, with the reason, where it cannot be)
	tests/slurm/run.sh $(PYTEST) tests/slurm

wheels: $(STAMP) ## wheels for every CPython at hand, one without native code, an sdist; each installed and tried: minutes
	$(RUN) tests/packaging/wheels.py --out dist

fuzz: $(STAMP) ## damaged files of every kind, at every entry point: minutes (ROUNDS=55: 100 000 inputs)
	MRISR_FUZZ_ROUNDS=$(or $(ROUNDS),8) $(RUN) -m pytest -q -rP tests/fuzz tests/export/test_fuzz.py

compile-only: $(STAMP) ## compile the GPU kernels for sm_80, sm_90 and sm_100 without a GPU
	$(RUN) tests/native/compile_only.py

tensorrt-rtx: $(STAMP) ## TensorRT for RTX, then plans of both networks built and tabled, without a GPU
	@if $(RUN) -m pip install --quiet -c constraints.txt tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings; then \
	  $(RUN) -m pytest -q tests/export/test_tensorrt_build.py && \
	  $(RUN) benchmarks/tensorrt_builds.py --results $(OUT); \
	else echo "tensorrt-rtx: its wheels cannot be had here, so no plan is built"; fi

native-test: $(STAMP) ## the C++ core from C++ alone: ctest over goldens written from the SPECs
	$(RUN) tests/native/ctest.py

sanitize: $(STAMP) ## the same tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(RUN) tests/native/ctest.py --sanitize address,undefined

sanitize-thread: $(STAMP) ## the same tests under ThreadSanitizer
	$(RUN) tests/native/ctest.py --sanitize thread

runtime: $(STAMP) ## libmrisr: build, C++ tests, install into build/runtime/installed, examples, parity with Python
	$(RUN) tests/runtime/build.py
	MRISR_LIBRARY=$(CURDIR)/build/runtime/installed/lib/libmrisr.so $(SHARED) tests/runtime

vendor-kit: $(STAMP) ## one archive for who embeds libmrisr, in build/: made, unpacked elsewhere, built against, run
	archive=$$($(RUN) csrc/kit/build.py) && echo $$archive && MRISR_KIT=$$archive $(RUN) -m pytest -q tests/runtime/test_kit.py

runtime-sanitize: $(STAMP) ## libmrisr's C++ tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(RUN) tests/runtime/build.py --sanitize address,undefined
	$(RUN) tests/runtime/build.py --sanitize thread

teacher-steps: $(STAMP) ## twenty steps of the 20-30 M parameter teacher on the CPU (minutes)
	$(RUN) experiments/teacher_20_steps.py --out $(OUT)

check-all: lint types docs test test-slow fuzz sanitize sanitize-thread runtime runtime-sanitize compile-only teacher-steps demo ## what has to pass before a release

clean: ## remove build products and outputs; keeps the environment
	rm -rf build dist _skbuild out .pytest_cache .ruff_cache .benchmarks *.egg-info mrisr/_native*.so mrisr/_build_info.py
	rm -f $(STAMP)
	find mrisr kernels benchmarks tests -type d -name __pycache__ -prune -exec rm -rf {} +

# One stamp for everything that decides what is installed; sources in Python need no reinstall.
$(STAMP): pyproject.toml setup.py constraints.txt CMakeLists.txt $(NATIVE) | $(RUN)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $(PYTHON) is older than 3.10; give a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) has no venv; install it first (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
