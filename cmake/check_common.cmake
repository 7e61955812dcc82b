# What the source checks share. Each check is a script: cmake -DROOT=<source folder> -P cmake/check_<name>.cmake

cmake_minimum_required(VERSION 3.24)

set(ENGINE_FOLDERS tensor autograd nn quant data train)

# source_files(out folder...): paths relative to ROOT of all C++ and CUDA sources below the folders, sorted.
function(source_files out)
  set(patterns)
  foreach(folder ${ARGN})
    foreach(ending h cpp cu cuh)
      list(APPEND patterns ${ROOT}/${folder}/*.${ending})
    endforeach()
  endforeach()
  file(GLOB_RECURSE files RELATIVE ${ROOT} ${patterns})
  list(SORT files)
  set(${out} ${files} PARENT_SCOPE)
endfunction()

# complain(text): one finding; all of them are shown before the check fails.
function(complain text)
  message("${text}")
  set_property(GLOBAL APPEND PROPERTY findings "${text}")
endfunction()

# finish(name summary): the last line of a check.
function(finish name summary)
  get_property(findings GLOBAL PROPERTY findings)
  list(LENGTH findings count)
  if(count)
    message(FATAL_ERROR "${name}: ${count} findings")
  endif()
  message("${name}: ${summary}")
endfunction()
