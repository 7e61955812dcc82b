# No absolute path of somebody's machine in any text file of the project.
#   cmake -DROOT=<source folder> -P cmake/check_paths.cmake
include(${CMAKE_CURRENT_LIST_DIR}/check_common.cmake)

file(GLOB files RELATIVE ${ROOT} ${ROOT}/* ${ROOT}/.ci/* ${ROOT}/tools/* ${ROOT}/cmake/*)
foreach(folder ${ENGINE_FOLDERS} tests benchmarks docs)
  file(GLOB_RECURSE found RELATIVE ${ROOT} ${ROOT}/${folder}/*.h ${ROOT}/${folder}/*.cpp ${ROOT}/${folder}/*.cu
       ${ROOT}/${folder}/*.cuh ${ROOT}/${folder}/*.md ${ROOT}/${folder}/*.txt ${ROOT}/${folder}/*.sh
       ${ROOT}/${folder}/*.json ${ROOT}/${folder}/*.ini)
  list(APPEND files ${found})
endforeach()

set(count 0)
foreach(file ${files})
  if(IS_DIRECTORY ${ROOT}/${file})
    continue()
  endif()
  math(EXPR count "${count} + 1")
  file(STRINGS ${ROOT}/${file} hits REGEX "(^|[^A-Za-z0-9_.])/(home|root|Users|work|mnt)/[A-Za-z.]")
  foreach(hit ${hits})
    complain("${file}: ${hit}")
  endforeach()
endforeach()
finish(paths "${count} files, no path of a machine")
