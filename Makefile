# The entry points. Each target does its own set-up on a Debian 12-like machine.
BUILD ?= build
JOBS ?= $(shell nproc)
CLIPS = $(BUILD)/clips
COMMAND = $(BUILD)/release/tools/vidsparse
CMAKE_FLAGS ?=
CONFIGURE = cmake -G Ninja -S . $(CMAKE_FLAGS)
# Sanitizers need line numbers, not variables, and compile times matter more than theirs. They see
# nothing of a GPU's code.
QUICK = -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1 -g1" -DVIDSPARSE_CUDA=OFF
PYTHON_ENV = $(BUILD)/python
PYTHON = $(PYTHON_ENV)/bin/python
PYTHON_SOURCES = python tests/python examples/python bench $(wildcard scripts/*.py)
SOURCES = $(shell find include src python tools tests bench examples -name '*.[hc]' \
  -o -name '*.[hc]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo test test-python wheel build format format-check python-check tidy asan tsan fuzz bench-cpu clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: build  ## denoise a real clip by sparse attention and say where to look
	@scripts/fetch_clips $(CLIPS)
	@mkdir -p $(BUILD)/demo
	@$(COMMAND) denoise $(CLIPS)/bigbuckbunny.mp4 -o $(BUILD)/demo/bigbuckbunny.mp4 \
	  --pictures $(BUILD)/demo/selection
	@echo "Look at $(BUILD)/demo/bigbuckbunny.mp4 and $(BUILD)/demo/selection/index.html"

test: build  ## build everything and run every test
	@cd $(BUILD)/release && ctest --output-on-failure -j $(JOBS)
	@$(MAKE) --no-print-directory test-python

test-python:  ## install the Python package with pip and run its tests
	@scripts/setup build
	@scripts/python_env $(PYTHON_ENV)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .
	@$(PYTHON) -m pytest -q

wheel:  ## the Python package as one wheel for every torch >= 2.10 and Python >= 3.10
	@scripts/setup build
	@scripts/python_env $(PYTHON_ENV)
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	  -w $(BUILD)/wheels .
	@ls -s --block-size=k $(BUILD)/wheels/vidsparse-*.whl

build:
	@scripts/setup build
	@$(CONFIGURE) -B $(BUILD)/release -DCMAKE_BUILD_TYPE=Release
	@cmake --build $(BUILD)/release -j $(JOBS)

format:  ## format all sources in place
	@scripts/setup format
	@clang-format -i $(SOURCES)

format-check:  ## fail if a source is not formatted
	@scripts/setup format
	@clang-format --dry-run --Werror $(SOURCES)

python-check:  ## ruff and mypy over the Python sources
	@scripts/setup build
	@scripts/python_env $(PYTHON_ENV)
	@$(PYTHON) -m ruff check $(PYTHON_SOURCES)
	@$(PYTHON) -m mypy --no-error-summary

tidy: build  ## clang-tidy over the library
	@scripts/setup tidy
	@$(CONFIGURE) -B $(BUILD)/release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
	@clang-tidy -quiet -p $(BUILD)/release $(filter src/core/%.cpp src/reference/%.cpp \
	  src/c/%.cpp,$(SOURCES))

asan:  ## the tests under the address and undefined-behaviour sanitizers
	@scripts/setup build
	@$(CONFIGURE) -B $(BUILD)/asan -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  $(QUICK) -DVIDSPARSE_SANITIZE=address,undefined -DVIDSPARSE_BUILD_BENCH=OFF
	@cmake --build $(BUILD)/asan -j $(JOBS)
	@cd $(BUILD)/asan && VIDSPARSE_TEST_PROBLEMS=$${VIDSPARSE_TEST_PROBLEMS:-40} \
	  ctest --output-on-failure -j $(JOBS)

tsan:  ## the tests of the parallel parts under the thread sanitizer
	@scripts/setup build
	@$(CONFIGURE) -B $(BUILD)/tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  $(QUICK) -DVIDSPARSE_SANITIZE=thread -DVIDSPARSE_BUILD_BENCH=OFF -DVIDSPARSE_BUILD_TOOLS=OFF
	@cmake --build $(BUILD)/tsan -j $(JOBS) --target backend_parallel_test
	@cd $(BUILD)/tsan && VIDSPARSE_TEST_PROBLEMS=$${VIDSPARSE_TEST_PROBLEMS:-20} \
	  ctest --output-on-failure -L parallel

FUZZ_SECONDS ?= 20
fuzz:  ## every parser of a file for FUZZ_SECONDS each
	@scripts/setup build fuzz
	@CC=clang CXX=clang++ $(CONFIGURE) -B $(BUILD)/fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  $(QUICK) -DVIDSPARSE_SANITIZE=address,undefined -DVIDSPARSE_BUILD_FUZZERS=ON \
	  -DVIDSPARSE_BUILD_TESTS=OFF -DVIDSPARSE_BUILD_BENCH=OFF
	@cmake --build $(BUILD)/fuzz -j $(JOBS)
	@set -e; for fuzzer in $(BUILD)/fuzz/tests/fuzz/fuzz_*; do \
	  [ -x $$fuzzer ] && [ -f $$fuzzer ] || continue; \
	  echo "$$fuzzer"; mkdir -p $$fuzzer.corpus; \
	  $$fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -rss_limit_mb=4096 \
	    -close_fd_mask=3 -verbosity=0 -print_final_stats=1 $$fuzzer.corpus; done

VENV = $(BUILD)/venv
bench-cpu: build  ## our CPU kernels beside torch's, in one process (installs torch, 3 GB)
	@scripts/setup bench
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@$(VENV)/bin/python bench/bench_cpu.py --library $(BUILD)/release/libvidsparse.so

clean:
	rm -rf $(BUILD)
