#include "autograd/ops/launch.cuh"
#include "quant/ops/lsq.cuh"
#include "tensor/engine/column.cuh"
#include "tensor/engine/reduce.cuh"

namespace lowbit {
namespace {

constexpr int kThreads = 256;

/// What the call's element i holds: x less what is added to it, or h.
LOWBIT_HD float element_at(const LsqCall& c, int64_t i) {
  const float x = lsq_data<float>(c.x)[i];
  const float* const before = lsq_data<float>(c.before);
  return before ? x + before[i % c.before.shape[0]] : x;
}

template <class Out, class S>
__global__ void forward_kernel(LsqCall c, Out* y, int64_t n, float shift) {
  using Ste = UniformSte<MaskRule::clip_then_round>;  // all mask rules give the same levels
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads) {
    const QParam<float> p = lsq_param<float>(c, i / c.inner % c.groups);
    const float x = S::of(element_at(c, i));
    if constexpr (sizeof(Out) == 4)
      y[i] = Ste::fwd(x, p, RoundEven{}, i);
    else
      y[i] = Out(int32_t(Ste::level(x, p, RoundEven{}, i) - shift));
  }
}

template <class Out, class S>
void forward_sourced(const LsqFwdArgs& a, Stream stream) {
  const int64_t n = a.c.x.numel();
  if (n == 0) return;
  const int64_t blocks = std::min<int64_t>(ceil_div(n, kThreads), 1 << 16);
  cuda::launch("fake_quant_lsq.fwd", forward_kernel<Out, S>, unsigned(blocks), kThreads, stream, a.c,
               a.y.as<Out>(), n, float(a.shift));
}

template <class Out>
void forward_typed(const LsqFwdArgs& a, Stream stream) {
  if (a.c.source == LsqSource::gelu)
    forward_sourced<Out, LsqGelu>(a, stream);
  else
    forward_sourced<Out, LsqValue>(a, stream);
}

void forward_cuda(const LsqFwdArgs& a, Stream stream) {
  cuda::require_f32("fake_quant_lsq.fwd", a.c.x);
  if (a.y.dtype == DType::f32)
    forward_typed<float>(a, stream);
  else if (a.y.dtype == DType::u8)
    forward_typed<uint8_t>(a, stream);
  else
    forward_typed<int8_t>(a, stream);
}

/// Element i of the tensor; its group's parameters are read on the device.
template <MaskRule M, bool Edges, class S>
struct Element {
  LsqCall c;
  const float* gy;
  float* dx;
  TieWeights<float> tie;
  LOWBIT_HD auto at(int64_t i, int64_t g) const {
    return lsq_bwd_element<M, Edges, S>(element_at(c, i), gy, dx, i, lsq_param<float>(c, g), tie);
  }
  LOWBIT_HD auto operator()(int64_t i) const { return at(i, 0); }                            // one group
  LOWBIT_HD auto operator()(int64_t o, int64_t g) const { return at(o * c.groups + g, g); }  // columns
};

/// One run of elements that share a group.
template <MaskRule M, bool Edges, class S>
struct Run {
  Element<M, Edges, S> e;
  float* partial;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const Element<M, Edges, S> element = e;
    const int64_t inner = e.c.inner, runs = e.c.outer * e.c.groups, group = r % e.c.groups;
    float* const to = partial + r;
    const auto s = row.sum(inner, [=](int64_t i) { return element.at(r * inner + i, group); });
    row.once([=] {
      if constexpr (Edges)
        to[0] = s[0], to[runs] = s[1], to[2 * runs] = s[2];
      else
        to[0] = s, to[runs] = to[2 * runs] = 0;
    });
  }
};

struct RunSum {
  const float* partial;
  int64_t groups, runs;
  LOWBIT_HD Pack<float, 3> operator()(int64_t o, int64_t g) const {
    const float* const from = partial + o * groups + g;
    return {{from[0], from[runs], from[2 * runs]}};
  }
};

__global__ void finish_kernel(const __grid_constant__ LsqFinishArgs a) { cuda::lsq_finish_block(a); }
void finish_cuda(const LsqFinishArgs& a, Stream stream) {
  if (a.out.wanted()) cuda::launch("fake_quant_lsq.finish", finish_kernel, 1, kThreads, stream, a);
}

/// What follows from the sum over the only group.
template <int K>
struct Finish {
  LsqFinishArgs a;
  __device__ void operator()(const Pack<float, K>& s) const {
    if (threadIdx.x == 0) {
      float* const sums = lsq_data<float>(a.sums);
      sums[0] = s[0];
      if constexpr (K == 3) sums[1] = s[1], sums[2] = s[2];
    }
    __syncthreads();
    cuda::lsq_finish_block(a);
  }
};

template <MaskRule M, bool Edges, class S>
void backward_masked(const LsqBwdArgs& a, Stream stream) {
  const LsqCall& c = a.c;
  const int64_t groups = c.groups, runs = c.outer * groups;
  const Element<M, Edges, S> e{c, a.gy.as<float>(), a.dx.as<float>(), TieWeights<float>::of(c.ties)};
  float *const sums = a.sums.as<float>(), *const partial = a.partial.as<float>(),
               *const work = partial + 3 * runs;
  if (c.inner == 1 && groups > 1) {
    const Element<M, true, S> all{e.c, e.gy, e.dx, e.tie};
    cuda::columns(c.outer, groups, all, work, stream, sums, sums + groups, sums + 2 * groups);
  } else if (runs == 1) {
    const Finish<Edges ? 3 : 1> finish{{a.c, a.sums, a.out}};
    return cuda::sum_then("fake_quant_lsq.bwd", c.inner, e, work, finish, stream);
  } else {
    cuda::rows(runs, c.inner, Run<M, Edges, S>{e, partial}, stream);
    cuda::columns(c.outer, groups, RunSum{partial, groups, runs}, work, stream, sums, sums + groups,
                  sums + 2 * groups);
  }
  finish_cuda({a.c, a.sums, a.out}, stream);
}

template <MaskRule M, class S>
void backward_sourced(const LsqBwdArgs& a, Stream stream) {
  if (a.edges)
    backward_masked<M, true, S>(a, stream);
  else
    backward_masked<M, false, S>(a, stream);
}

template <MaskRule M>
void backward_ruled(const LsqBwdArgs& a, Stream stream) {
  if constexpr (M == MaskRule::clip_then_round)
    if (a.c.source == LsqSource::gelu) return backward_sourced<M, LsqGelu>(a, stream);
  backward_sourced<M, LsqValue>(a, stream);
}

void backward_cuda(const LsqBwdArgs& a, Stream stream) {
  cuda::require_f32("fake_quant_lsq.bwd", a.gy);
  dispatch_mask(a.c.mask, [&](auto rule) { backward_ruled<decltype(rule)::value>(a, stream); });
}

__global__ void gather_kernel(LsqGatherArgs a) {
  const int64_t g = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if (g < lsq_gather_count(a)) lsq_gather_group<float>(a, g);
}
void gather_cuda(const LsqGatherArgs& a, Stream stream) {
  cuda::launch("fake_quant_lsq.scale", gather_kernel, unsigned(ceil_div(lsq_gather_count(a), kThreads)),
               kThreads, stream, a);
}

const CudaKernel<LsqFwdArgs> forward(lsq_fwd, forward_cuda);
const CudaKernel<LsqBwdArgs> backward(lsq_bwd, backward_cuda);
const CudaKernel<LsqFinishArgs> finish(lsq_finish, finish_cuda);
const CudaKernel<LsqGatherArgs> gather(lsq_gather, gather_cuda);

}  // namespace
}  // namespace lowbit
