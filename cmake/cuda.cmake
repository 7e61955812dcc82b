# The CUDA backend: every .cu (and *_cuda.cpp) of a folder in an OBJECT library lowbit_<folder>_cuda beside lowbit_<folder>.
# Its objects register their kernels in the slots when they are loaded; without CUDA the files are not in the build.
# Tests and benchmarks are linked with the objects. The program is not: all objects make liblowbit_cuda.so, which it opens
# when it lies beside it (tensor/core/backend.cpp) and whose undefined symbols are its own, so that one program serves
# machines with and without a driver.
# ENABLE_CUDA: AUTO builds it when a compiler and a device are found, ON asks for a compiler only, OFF leaves it out;
# EMULATE compiles the kernels as C++ against tests/cuda_emulation and runs them on the CPU: tests without a GPU.

option(LOWBIT_PTXAS_REPORT "print registers and spills of every kernel" OFF)
option(LOWBIT_INSTALL_CUDA_LIBRARIES "cmake --install copies cuBLASLt, cuDNN and NCCL too: over a gigabyte" ON)
set(LOWBIT_HAVE_CUDA OFF)
set(LOWBIT_HAVE_NCCL OFF)
set(LOWBIT_HAVE_CUDNN OFF)
set(LOWBIT_CUDA_LIBRARIES)
add_custom_target(lowbit_cuda_objects COMMENT "every CUDA object")

# lowbit_cuda_library(folder): called by lowbit_library.
function(lowbit_cuda_library folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cu
       ${PROJECT_SOURCE_DIR}/${folder}/*_cuda.cpp)
  if(NOT LOWBIT_HAVE_CUDNN)
    list(FILTER sources EXCLUDE REGEX "_cudnn\\.cu$")
  endif()
  if(sources)
    add_library(lowbit_${folder}_cuda OBJECT ${sources})
    target_link_libraries(lowbit_${folder}_cuda PUBLIC lowbit_cuda_flags)
    set_target_properties(lowbit_${folder}_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON)
    if(ENABLE_CUDA STREQUAL "EMULATE")
      set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
      if(folder STREQUAL "tensor")
        file(GLOB emulator CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/cuda_emulation/*.cpp)
        target_sources(lowbit_tensor_cuda PRIVATE ${emulator})
      endif()
    endif()
    add_dependencies(lowbit_cuda_objects lowbit_${folder}_cuda)
  endif()
endfunction()

# lowbit_cuda_plugin(program folder...): liblowbit_cuda.so beside the program.
function(lowbit_cuda_plugin program)
  set(objects)
  foreach(folder ${ARGN})
    if(TARGET lowbit_${folder}_cuda)
      list(APPEND objects $<TARGET_OBJECTS:lowbit_${folder}_cuda>)
    endif()
  endforeach()
  lowbit_plugin(${program} lowbit_cuda ${objects})
  target_link_libraries(lowbit_cuda PRIVATE ${LOWBIT_CUDA_LIBRARIES})
endfunction()

if(ENABLE_CUDA STREQUAL "EMULATE")
  set(LOWBIT_HAVE_CUDA ON)
  set(LOWBIT_HAVE_CUDNN ON)
  set(LOWBIT_HAVE_NCCL ON)
  set(NCCL_INCLUDE_DIR ${PROJECT_SOURCE_DIR}/tests/cuda_emulation)
  set(LOWBIT_NCCL_LIBRARIES -L$<TARGET_FILE_DIR:lowbit> -llowbit_cuda)  # the emulator of the process
  set(CUDAToolkit_VERSION emulated)
  add_library(lowbit_cuda_flags INTERFACE)
  target_link_libraries(lowbit_cuda_flags INTERFACE lowbit_flags)
  target_include_directories(lowbit_cuda_flags INTERFACE ${PROJECT_SOURCE_DIR}/tests/cuda_emulation)
  target_compile_options(lowbit_cuda_flags INTERFACE -Wno-unknown-pragmas)
  return()
endif()
if(ENABLE_CUDA STREQUAL "OFF" OR (ENABLE_CUDA STREQUAL "AUTO" AND NOT EXISTS /dev/nvidiactl))
  return()
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "90-real;90-virtual" CACHE STRING "native is an error on a machine without a GPU")
endif()
include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(CMAKE_CUDA_COMPILER nvcc PATHS /usr/local/cuda/bin)
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(ENABLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ENABLE_CUDA=ON but no CUDA compiler was found (nvcc on PATH, or set CUDACXX)")
  endif()
  message(STATUS "no CUDA compiler: the CUDA backend is not built")
  return()
endif()
enable_language(CUDA)
# CMake 3.25 does not know the C++20 dialect of nvcc and would silently lower it to 17.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_FLAGS_RELEASE "-O3")       # asserts stay on, as in C++
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
find_package(CUDAToolkit 12 REQUIRED)
set(LOWBIT_HAVE_CUDA ON)
set(LOWBIT_CUDA_LIBRARIES CUDA::cudart_static CUDA::cublasLt)

# cuDNN computes convolutions of floats; without it they are matrix products (autograd/ops/conv2d.cpp).
find_path(CUDNN_INCLUDE_DIR cudnn.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
if(CUDNN_INCLUDE_DIR AND CUDNN_LIBRARY)
  set(LOWBIT_HAVE_CUDNN ON)
  list(APPEND LOWBIT_CUDA_LIBRARIES ${CUDNN_LIBRARY})
else()
  message(STATUS "cuDNN not found: convolutions on CUDA by matrix products (libcudnn9-dev)")
endif()
if(LOWBIT_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${LOWBIT_CCACHE})
endif()

# The numerics contract on the device: no contraction, denormals flushed as on the CPU, exact division and square root.
add_library(lowbit_cuda_flags INTERFACE)
target_link_libraries(lowbit_cuda_flags INTERFACE lowbit_flags ${LOWBIT_CUDA_LIBRARIES})
if(LOWBIT_HAVE_CUDNN)
  target_include_directories(lowbit_cuda_flags INTERFACE ${CUDNN_INCLUDE_DIR})
endif()
target_compile_options(lowbit_cuda_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;--ftz=true;--prec-div=true;--prec-sqrt=true;-Xcompiler=-Wall,-Wextra,-ffp-contract=off>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LOWBIT_WERROR}>>:-Werror=all-warnings;-Xcompiler=-Werror>"
  "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LOWBIT_PTXAS_REPORT}>>:-Xptxas=-v>")

# NCCL joins several GPUs; only liblowbit_nccl.so is linked with it (lowbit_program).
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
if(NCCL_INCLUDE_DIR AND NCCL_LIBRARY)
  set(LOWBIT_HAVE_NCCL ON)
  set(LOWBIT_NCCL_LIBRARIES ${NCCL_LIBRARY} CUDA::cudart_static)
else()
  message(STATUS "NCCL not found: one GPU only (libnccl-dev)")
endif()
