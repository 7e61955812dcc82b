# Flags, dependencies and the few functions that describe a folder of this project.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_FLAGS_RELEASE "-O3")       # asserts stay on: they guard internal invariants only
find_program(LOWBIT_CCACHE ccache)
if(LOWBIT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${LOWBIT_CCACHE})
endif()

# The numerics contract (docs/numerics.md): no contraction, no reassociation; errno and traps are not used.
add_library(lowbit_flags INTERFACE)
target_compile_options(lowbit_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall -Wextra>)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(lowbit_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3>)
endif()
if(LOWBIT_WERROR)
  target_compile_options(lowbit_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(SANITIZE)
  string(REPLACE ";" "," _san "${SANITIZE}")
  target_compile_options(lowbit_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${_san} -fno-omit-frame-pointer -fno-sanitize-recover=all
      -Wno-maybe-uninitialized>)   # false alarms in the standard headers
  target_link_options(lowbit_flags INTERFACE -fsanitize=${_san})
endif()
target_include_directories(lowbit_flags INTERFACE ${PROJECT_SOURCE_DIR})

include(GNUInstallDirs)
find_package(Threads REQUIRED)
find_package(Boost 1.74 REQUIRED COMPONENTS program_options)
find_package(nlohmann_json 3 REQUIRED)
find_package(ZLIB REQUIRED)
find_path(STB_INCLUDE_DIR stb_image.h PATH_SUFFIXES stb REQUIRED)
find_package(PkgConfig QUIET)
set(LOWBIT_HAVE_TURBOJPEG OFF)
if(NOT WITH_TURBOJPEG STREQUAL "OFF")
  # Its libjpeg interface decodes parts of an image; the original libjpeg has no such functions.
  find_package(JPEG QUIET)
  if(JPEG_FOUND)
    file(STRINGS ${JPEG_INCLUDE_DIR}/jpeglib.h _crop REGEX jpeg_crop_scanline)
  endif()
  if(_crop)
    set(LOWBIT_HAVE_TURBOJPEG ON)
  elseif(WITH_TURBOJPEG STREQUAL "ON")
    message(FATAL_ERROR "WITH_TURBOJPEG=ON but libjpeg-turbo was not found (apt install libjpeg-dev)")
  endif()
endif()
target_link_libraries(lowbit_flags INTERFACE Threads::Threads ${CMAKE_DL_LIBS})

# CUDA is optional; cmake/cuda.cmake describes how the .cu files are compiled.
include(cmake/cuda.cmake)

# MPI is optional: ranks on the CPU. Nothing but liblowbit_mpi.so is linked with it (lowbit_program below).
set(LOWBIT_HAVE_MPI OFF)
if(NOT WITH_MPI STREQUAL "OFF")
  set(MPI_CXX_SKIP_MPICXX ON)
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(LOWBIT_HAVE_MPI ON)
  elseif(WITH_MPI STREQUAL "ON")
    message(FATAL_ERROR "WITH_MPI=ON but MPI was not found (apt install libopenmpi-dev openmpi-bin)")
  else()
    message(STATUS "MPI not found: training on the CPU uses one process (apt install libopenmpi-dev openmpi-bin)")
  endif()
endif()

set(_features)
if(LOWBIT_HAVE_MPI)
  list(APPEND _features "MPI ${MPI_CXX_VERSION}")
endif()
if(LOWBIT_HAVE_TURBOJPEG)
  list(APPEND _features turbojpeg)
endif()
if(LOWBIT_HAVE_NCCL)
  list(APPEND _features NCCL)
endif()
if(LOWBIT_HAVE_CUDNN)
  list(APPEND _features cuDNN)
endif()
if(LOWBIT_HAVE_CUDA)
  list(APPEND _features "cuda ${CUDAToolkit_VERSION}")
endif()
list(JOIN _features ", " _features)

# lowbit_version.h: number, git description, flags and optional features of this build; for the folder train and the program.
string(TOUPPER "${CMAKE_BUILD_TYPE}" _type)
string(STRIP "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${_type}}" _build)
set(_build "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, ${CMAKE_BUILD_TYPE}, ${_build}")
set(_write_version ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DVERSION=${PROJECT_VERSION} "-DBUILD=${_build}"
    "-DFEATURES=${_features}"
    -DOUT=${CMAKE_BINARY_DIR}/generated/lowbit_version.h -P ${PROJECT_SOURCE_DIR}/cmake/version.cmake)
execute_process(COMMAND ${_write_version})
add_custom_target(lowbit_version_header COMMAND ${_write_version} VERBATIM
                  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/lowbit_version.h)

# lowbit_recipes.h: the files of the folder recipes, so that the program has them wherever it is installed.
set(_write_recipes ${CMAKE_COMMAND} -DSOURCE_DIR=${PROJECT_SOURCE_DIR} -DOUT=${CMAKE_BINARY_DIR}/generated/lowbit_recipes.h
    -P ${PROJECT_SOURCE_DIR}/cmake/recipes.cmake)
execute_process(COMMAND ${_write_recipes})
add_custom_target(lowbit_recipes_header COMMAND ${_write_recipes} VERBATIM
                  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/lowbit_recipes.h)

# lowbit_library(folder): every .cpp below the folder into one OBJECT library lowbit_<folder>.
# OBJECT, not STATIC: kernels register themselves from static objects that a linker would drop.
# A file name that ends in _avx512.cpp or _avx2.cpp is compiled for that instruction set and chosen at run time.
function(lowbit_library folder)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "train/apps/main\\.cpp$|_(cuda|mpi|nccl)\\.cpp$")
  if(NOT sources)
    file(WRITE ${CMAKE_BINARY_DIR}/empty_${folder}.cpp "")
    set(sources ${CMAKE_BINARY_DIR}/empty_${folder}.cpp)
  endif()
  add_library(lowbit_${folder} OBJECT ${sources})
  target_link_libraries(lowbit_${folder} PUBLIC lowbit_flags)
  foreach(source ${sources})
    if(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "-march=x86-64-v4;-mavx512vnni;-mamx-tile;-mamx-int8;-mprefer-vector-width=512")
    endif()
  endforeach()
  if(LOWBIT_HAVE_CUDA)
    lowbit_cuda_library(${folder})
  endif()
  if(folder STREQUAL "train")
    add_dependencies(lowbit_train lowbit_version_header lowbit_recipes_header)
    target_include_directories(lowbit_train PUBLIC ${CMAKE_BINARY_DIR}/generated)
  endif()
  if(folder STREQUAL "data")
    target_include_directories(lowbit_data PRIVATE ${STB_INCLUDE_DIR})
    if(LOWBIT_HAVE_TURBOJPEG)
      target_compile_definitions(lowbit_data PRIVATE LOWBIT_HAVE_TURBOJPEG=1)
      target_include_directories(lowbit_data PRIVATE ${JPEG_INCLUDE_DIR})
    endif()
  endif()
endfunction()

# lowbit_link(target folder...): objects and external libraries of the named folders. The program opens the CUDA objects
# as a library, cmake/cuda.cmake.
function(lowbit_link target)
  target_link_libraries(${target} PRIVATE lowbit_flags)
  foreach(folder ${ARGN})
    target_link_libraries(${target} PRIVATE lowbit_${folder})
    if(TARGET lowbit_${folder}_cuda AND NOT target STREQUAL "lowbit")
      target_link_libraries(${target} PRIVATE lowbit_${folder}_cuda)
    endif()
    if(folder STREQUAL "tensor")
      target_link_libraries(${target} PRIVATE ZLIB::ZLIB nlohmann_json::nlohmann_json)
    elseif(folder STREQUAL "data" AND LOWBIT_HAVE_TURBOJPEG)
      target_link_libraries(${target} PRIVATE ${JPEG_LIBRARIES})
    elseif(folder STREQUAL "train")
      target_link_libraries(${target} PRIVATE Boost::program_options)
    endif()
  endforeach()
endfunction()

set(LOWBIT_FOLDERS tensor autograd nn quant data train)

# lowbit_plugin(program name source-or-object...): lib<name>.so beside the program, which opens it when it is needed and
# whose symbols are the library's undefined ones. So one program serves machines with and without what the library needs.
function(lowbit_plugin program name)
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX LIBRARY_OUTPUT_DIRECTORY $<TARGET_FILE_DIR:${program}>)
  set_target_properties(${program} PROPERTIES ENABLE_EXPORTS ON)
  add_dependencies(${program} ${name})
  set_target_properties(${name} PROPERTIES INSTALL_RPATH "$ORIGIN")
  install(TARGETS ${name} RUNTIME_DEPENDENCY_SET lowbit_needs LIBRARY DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

function(lowbit_program)
  if(EXISTS ${PROJECT_SOURCE_DIR}/train/apps/main.cpp)
    add_executable(lowbit ${PROJECT_SOURCE_DIR}/train/apps/main.cpp)
    lowbit_link(lowbit ${LOWBIT_FOLDERS})
    if(LOWBIT_HAVE_CUDA)
      lowbit_cuda_plugin(lowbit ${LOWBIT_FOLDERS})
    endif()
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/recipes DESTINATION ${CMAKE_INSTALL_DATADIR}/lowbit)
    if(LOWBIT_HAVE_NCCL)
      lowbit_plugin(lowbit lowbit_nccl ${PROJECT_SOURCE_DIR}/train/dist/communicator_nccl.cpp)
      target_link_libraries(lowbit_nccl PRIVATE lowbit_flags ${NCCL_LIBRARY} CUDA::cudart_static)
      target_include_directories(lowbit_nccl PRIVATE ${NCCL_INCLUDE_DIR})
      add_dependencies(lowbit_cuda_objects lowbit_nccl)
    endif()
    if(LOWBIT_HAVE_MPI)
      lowbit_plugin(lowbit lowbit_mpi ${PROJECT_SOURCE_DIR}/train/dist/communicator_mpi.cpp)
      target_link_libraries(lowbit_mpi PRIVATE lowbit_flags MPI::MPI_CXX)
    endif()
    # A folder that can be copied: the libraries beside the program come from it; the C library, the driver and MPI, which
    # knows its cluster, from the machine.
    set(machine "^(ld-linux|lib(c|m|dl|rt|pthread))[-.]" "^lib(cuda|nvidia-.*)\\.so" "^lib(mpi|mpi_cxx|mpich)\\.so")
    if(NOT LOWBIT_INSTALL_CUDA_LIBRARIES)
      list(APPEND machine "^lib(cublas.*|cudnn.*|nccl)\\.so")
    endif()
    set(search)
    if(CUDAToolkit_LIBRARY_DIR)
      set(search DIRECTORIES ${CUDAToolkit_LIBRARY_DIR})
    endif()
    set_target_properties(lowbit PROPERTIES INSTALL_RPATH "$ORIGIN")
    install(TARGETS lowbit RUNTIME_DEPENDENCY_SET lowbit_needs RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
    install(RUNTIME_DEPENDENCY_SET lowbit_needs PRE_EXCLUDE_REGEXES ${machine} ${search}
            LIBRARY DESTINATION ${CMAKE_INSTALL_BINDIR})
    if(LOWBIT_INSTALL_CUDA_LIBRARIES AND CUDNN_LIBRARY)  # libcudnn.so opens its parts itself
      install(CODE "get_filename_component(folder \"${CUDNN_LIBRARY}\" DIRECTORY)
        file(GLOB parts \"\${folder}/libcudnn_*.so.[0-9]\" \"\${folder}/libcudnn_*.so.[0-9][0-9]\")
        file(INSTALL \${parts} DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}\" TYPE SHARED_LIBRARY
             FOLLOW_SYMLINK_CHAIN)")
    endif()
  endif()
endfunction()
