# The check of golden files must report one without a test.
#   cmake -DSCRATCH=<folder> -P cmake/check_golden_test.cmake
cmake_minimum_required(VERSION 3.24)

# expect(failed? golden-file name-in-test name-in-list)
function(expect failed file name listed)
  file(REMOVE_RECURSE ${SCRATCH})
  set(root ${SCRATCH}/tree)  # no folder of golden files beside it
  file(WRITE ${root}/tests/golden/${file} "")
  file(WRITE ${root}/tests/golden/files.txt "${listed}\n")
  file(WRITE ${root}/tests/a_test.cpp "check(\"${name}\");\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -E env --unset=LOWBIT_GOLDEN_DIR
                          ${CMAKE_COMMAND} -DROOT=${root} -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/check_golden.cmake
                  RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(failed AND (NOT result OR NOT out MATCHES "no test reads this golden file"))
    message(FATAL_ERROR "a golden file without a test passes the check:\n${out}")
  elseif(NOT failed AND result)
    message(FATAL_ERROR "a golden file with a test does not pass the check:\n${out}")
  endif()
endfunction()

expect(OFF ofq/lsq.safetensors ofq/lsq.safetensors ofq/lsq.safetensors)
expect(ON ofq/lsq.safetensors ofq/statsq.safetensors ofq/statsq.safetensors)  # in the folder only
expect(ON ofq/lsq.safetensors ofq/lsq.safetensors vvtq/obr.safetensors)       # in the list only
expect(ON vvtq/obr.safetensors xvvtq/obr.safetensors vvtq/obr.safetensors)    # another name
