# Every golden file of the published systems has a test that reads it: its name stands in a test as "<folder>/<file>".
# The names are those of tests/golden/files.txt and of the folders themselves.
#   cmake -DROOT=<source folder> -P cmake/check_golden.cmake
include(${CMAKE_CURRENT_LIST_DIR}/check_common.cmake)

file(STRINGS ${ROOT}/tests/golden/files.txt names)
foreach(folder ${ROOT}/tests/golden ${ROOT}/../shared/golden $ENV{LOWBIT_GOLDEN_DIR})
  file(GLOB found RELATIVE ${folder} ${folder}/ofq/*.safetensors ${folder}/ofq/*.json ${folder}/vvtq/*.safetensors)
  list(APPEND names ${found})
endforeach()
list(REMOVE_DUPLICATES names)

set(text "")
source_files(files tests)
foreach(file ${files})
  file(READ ${ROOT}/${file} content)
  string(APPEND text "${content}")
endforeach()

foreach(name ${names})
  string(FIND "${text}" "\"${name}\"" at)
  if(at EQUAL -1)
    complain("${name}: no test reads this golden file")
  endif()
endforeach()
list(LENGTH names count)
finish(golden "${count} files, each with a test")
