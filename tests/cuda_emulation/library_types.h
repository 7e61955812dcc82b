#pragma once
// Element types of NVIDIA's libraries (cublasLt.h, cudnn.h of this folder).
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
