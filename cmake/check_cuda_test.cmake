# The CUDA check must catch what it is for: small trees with one defect each, and one without.
#   cmake -DSCRATCH=<folder> -P cmake/check_cuda_test.cmake
cmake_minimum_required(VERSION 3.24)

# expect(word cpp cu): the check of a tree of two files must fail and say `word`; "accept": must pass.
function(expect word cpp cu)
  file(REMOVE_RECURSE ${SCRATCH})
  file(WRITE ${SCRATCH}/autograd/ops/x.cpp "${cpp}\n")
  file(WRITE ${SCRATCH}/autograd/ops/x.cu "${cu}\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${SCRATCH} -P ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/check_cuda.cmake
                  RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(word STREQUAL "accept")
    if(result)
      message(FATAL_ERROR "accepted was to be\n${cpp}\n${cu}\nbut the check says:\n${out}")
    endif()
  elseif(NOT result OR NOT out MATCHES "${word}")
    message(FATAL_ERROR "'${word}' was to be found in\n${cpp}\n${cu}\nbut the check says:\n${out}")
  endif()
  file(REMOVE_RECURSE ${SCRATCH})
endfunction()

set(one "KernelSlot<Args<A>> one_fwd{\"one.fwd\", forward_cpu};")
set(one_cuda "const CudaKernel<Args<A>> forward(one_fwd, forward_cuda)")
set(macro "#define F(name) KernelSlot<Args> name##_fwd{#name, cpu};")
expect("accept" "constinit ${one} ${macro}" "${one_cuda} CudaKernel<Args> name##_k{name##_fwd, f}")
expect("accept" "${one}" "const CudaKernel<\n  Args<A>> forward(\n    one_fwd, forward_cuda)")
expect("one_fwd has no CUDA kernel" "${one}" "")
expect("two has no CUDA kernel" "${one} constinit KernelSlot<B>\n    two(\"two\", cpu)" "${one_cuda}")
expect("x.name##_fwd has no CUDA kernel" "${one} ${macro}" "${one_cuda}")
expect("registered by two" "${one}" "${one_cuda} ${one_cuda}")
expect("does not exist" "${one}" "${one_cuda} CudaKernel<B> k(two, f)")
expect("no kernel slot was found" "int x" "int y")
message("cuda_test: every defect was caught")
