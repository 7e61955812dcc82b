#include "train/optim/update.h"

#include "tensor/engine/pointwise.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

template <class Update>
void update_cpu(const UpdateArgs<Update>& a, Stream) {
  parallel_for(a.chunk_count, 2, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const int64_t begin = a.chunks[3 * c + 1], n = a.chunks[3 * c + 2] - begin;
      const UpdateHyper h = a.hyper[a.chunks[3 * c]];
      if (h.active == 0) continue;
      const Update update = a.update;
      float* __restrict p = a.p + begin;
      float* __restrict m = a.m + begin;
      const float* __restrict g = a.g + begin;
      if (a.v) {
        float* __restrict v = a.v + begin;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) update(p[i], g[i], m[i], v[i], h);
      } else {
        float unused = 0;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) update(p[i], g[i], m[i], unused, h);
      }
    }
  });
}

void blend_cpu(const BlendArgs& a, Stream) { cpu::pointwise({a.e, a.e, a.w}, a.f); }

void square_sum_cpu(const SquareSumArgs& a, Stream) {
  *a.out = cpu::sum(a.n, [x = a.x](int64_t i) { return x[i] * x[i]; });
}

void adaptive_clip_cpu(const AdaptiveClip& a, Stream) { cpu::rows(a.units, a.n, a); }

}  // namespace

constinit KernelSlot<UpdateArgs<AdamUpdate>> adam_update{"optimizer.adam", update_cpu<AdamUpdate>};
constinit KernelSlot<UpdateArgs<SgdUpdate>> sgd_update{"optimizer.sgd", update_cpu<SgdUpdate>};
constinit KernelSlot<BlendArgs> blend{"ema", blend_cpu};
constinit KernelSlot<SquareSumArgs> square_sum{"clip.square_sum", square_sum_cpu};
constinit KernelSlot<AdaptiveClip> adaptive_clip{"clip.agc", adaptive_clip_cpu};

}  // namespace lowbit
