# A thin front of CMake: every target is one or two commands that also work by hand (see CMakePresets.json).
#   make          build the program (build/release/lowbit)     make test   build and run every test
#   make demo     the five flowers, see README.md              make asan   unit tests under sanitizers
#   make cuda     compile with the CUDA backend                make bench  the benchmarks
#   make emulate  run the CUDA kernels on the CPU, by an emulator
#   make format   clang-format every source                    make clean  remove all build folders
PRESET ?= release
JOBS ?= $(shell nproc)
CMAKE_ARGS ?=
CTEST_ARGS ?=
CLANG_FORMAT ?= $(firstword $(shell command -v clang-format-14 clang-format))

# Configuring again costs a second and follows changed CMAKE_ARGS.
configure = cmake --preset $(1) $(CMAKE_ARGS)
build = $(call configure,$(1)) && cmake --build build/$(1) -j $(JOBS)
ctest = ctest --test-dir build/$(1) -j $(JOBS) --output-on-failure --no-tests=error

.PHONY: all build setup demo test asan cuda emulate bench format clean
all: build

setup:
	@tools/setup

build: setup
	$(call build,$(PRESET))

test: build
	$(call ctest,$(PRESET)) $(CTEST_ARGS)

# Only the program: a newcomer does not wait for the tests to compile.
demo: setup
	$(call configure,$(PRESET)) && cmake --build build/$(PRESET) -j $(JOBS) --target lowbit
	tools/demo build/$(PRESET)/lowbit

asan: setup
	$(call build,asan)
	$(call ctest,asan) -L unit $(CTEST_ARGS)

cuda: setup
	$(call build,cuda)

# Only the programs whose tests use a device.
emulate: setup
	$(call configure,cuda-emulation) && cmake --build build/cuda-emulation -j $(JOBS) --target test_tensor test_autograd test_nn test_quant test_data test_train
	$(call ctest,cuda-emulation) -R Cuda $(CTEST_ARGS)

bench: build
	@for work in op_bench gemm_bench gradient_bench step_bench "loader_bench data/samples/flowers"; do \
	  echo "== $$work"; build/$(PRESET)/benchmarks/$$work || exit 1; done

format:
	git ls-files -z '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -0 $(CLANG_FORMAT) -i

clean:
	rm -rf build
