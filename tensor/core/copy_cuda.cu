// Strided copy and fill on CUDA. One kernel for every pair of element types: the types are switched on per
// element, which a copy bound by memory hides, and keeps 81 instantiations out of the build.

#include "tensor/core/copy.h"
#include "tensor/core/cuda_runtime.cuh"
#include "tensor/hd/convert.h"

namespace lowbit::cuda {
namespace {

/// Any element, exactly: floating types as double, integers as int64.
struct Value {
  double real;
  int64_t integer;
  bool is_real;
};

template <class T>
__device__ Value load_as(const void* p, int64_t i) {
  const auto v = static_cast<compute_t<T>>(static_cast<const T*>(p)[i]);
  if constexpr (std::is_floating_point_v<compute_t<T>>)
    return {double(v), 0, true};
  else
    return {0, int64_t(v), false};
}
__device__ Value load(const void* p, DType t, int64_t i) {
  switch (t) {
    case DType::f32:
      return load_as<float>(p, i);
    case DType::f64:
      return load_as<double>(p, i);
    case DType::bf16:
      return load_as<bf16>(p, i);
    case DType::f16:
      return load_as<f16>(p, i);
    case DType::i8:
      return load_as<int8_t>(p, i);
    case DType::u8:
      return load_as<uint8_t>(p, i);
    case DType::i32:
      return load_as<int32_t>(p, i);
    case DType::i64:
      return load_as<int64_t>(p, i);
    default:
      return load_as<bool>(p, i);
  }
}
template <class T>
__device__ void store_as(void* p, int64_t i, const Value& v) {
  static_cast<T*>(p)[i] = v.is_real ? convert<T>(v.real) : convert<T>(v.integer);
}
__device__ void store(void* p, DType t, int64_t i, const Value& v) {
  switch (t) {
    case DType::f32:
      return store_as<float>(p, i, v);
    case DType::f64:
      return store_as<double>(p, i, v);
    case DType::bf16:
      return store_as<bf16>(p, i, v);
    case DType::f16:
      return store_as<f16>(p, i, v);
    case DType::i8:
      return store_as<int8_t>(p, i, v);
    case DType::u8:
      return store_as<uint8_t>(p, i, v);
    case DType::i32:
      return store_as<int32_t>(p, i, v);
    case DType::i64:
      return store_as<int64_t>(p, i, v);
    default:
      return store_as<bool>(p, i, v);
  }
}

__device__ void offsets(const View& a, const View& b, int64_t i, int64_t& oa, int64_t& ob) {
  oa = ob = 0;
  for (int d = a.ndim - 1; d >= 0; --d) {
    const int64_t c = i % a.shape[d];
    i /= a.shape[d];
    oa += c * a.stride[d];
    ob += c * b.stride[d];
  }
}

__global__ void copy_kernel(View dst, View src, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    int64_t od, os;
    offsets(dst, src, i, od, os);
    store(dst.data, dst.dtype, od, load(src.data, src.dtype, os));
  }
}

/// Same element type on both sides: only the size matters.
template <class Word>
__global__ void move_kernel(View dst, View src, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    int64_t od, os;
    offsets(dst, src, i, od, os);
    static_cast<Word*>(dst.data)[od] = static_cast<const Word*>(src.data)[os];
  }
}

__global__ void fill_kernel(View dst, double value, int64_t n) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x) {
    int64_t od, os;
    offsets(dst, dst, i, od, os);
    store(dst.data, dst.dtype, od, Value{value, 0, true});
  }
}

constexpr int kThreads = 256;
unsigned grid(int64_t n) { return unsigned(std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 16)); }

void copy_cuda(const CopyArgs& args, Stream stream) {
  View v[2] = {args.dst, args.src};
  const int64_t n = v[0].numel();
  if (n == 0) return;
  collapse_dims(v, 2);
  const size_t size = dtype_size(v[0].dtype);
  if (v[0].dtype != v[1].dtype)
    launch("copy", copy_kernel, grid(n), kThreads, stream, v[0], v[1], n);
  else if (v[0].ndim == 1 && v[0].stride[0] == 1 && v[1].stride[0] == 1)
    check(cudaMemcpyAsync(v[0].data, v[1].data, size_t(n) * size, cudaMemcpyDeviceToDevice, handle(stream)),
          "copy");
  else if (size == 1)
    launch("copy", move_kernel<uint8_t>, grid(n), kThreads, stream, v[0], v[1], n);
  else if (size == 2)
    launch("copy", move_kernel<uint16_t>, grid(n), kThreads, stream, v[0], v[1], n);
  else if (size == 4)
    launch("copy", move_kernel<uint32_t>, grid(n), kThreads, stream, v[0], v[1], n);
  else
    launch("copy", move_kernel<uint64_t>, grid(n), kThreads, stream, v[0], v[1], n);
}

void fill_cuda(const FillArgs& args, Stream stream) {
  View v = args.dst;
  const int64_t n = v.numel();
  if (n == 0) return;
  collapse_dims(&v, 1);
  launch("fill", fill_kernel, grid(n), kThreads, stream, v, args.value, n);
}

const CudaKernel<CopyArgs> copy_registered{strided_copy, copy_cuda};
const CudaKernel<FillArgs> fill_registered{strided_fill, fill_cuda};

}  // namespace
}  // namespace lowbit::cuda
