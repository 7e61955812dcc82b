# clang-format over every source. Versions differ in taste, so only major 14 decides; without it the check is skipped, visibly.
#   cmake -DROOT=<source folder> -P cmake/check_format.cmake
include(${CMAKE_CURRENT_LIST_DIR}/check_common.cmake)

find_program(CLANG_FORMAT NAMES clang-format-14 clang-format)
set(version "")
if(CLANG_FORMAT)
  execute_process(COMMAND ${CLANG_FORMAT} --version OUTPUT_VARIABLE version)
endif()
if(NOT version MATCHES "version 14\\.")
  message("format: SKIPPED, clang-format 14 is not installed (tools/setup --all installs it)")
  return()
endif()

source_files(files ${ENGINE_FOLDERS} tests benchmarks)
list(LENGTH files count)
if(count)
  execute_process(COMMAND ${CLANG_FORMAT} --dry-run --Werror ${files} WORKING_DIRECTORY ${ROOT}
                  RESULT_VARIABLE result ERROR_VARIABLE text)
  if(result)
    string(REGEX MATCHALL "[^\n:]+:[0-9]+:[0-9]+: error" places "${text}")
    list(TRANSFORM places REPLACE ":.*" "")
    list(REMOVE_DUPLICATES places)
    foreach(place ${places})
      complain("${place}: not as clang-format writes it")
    endforeach()
  endif()
endif()
finish(format "${count} files as clang-format 14 writes them (make format)")
