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

void blend_cpu(const BlendArgs& a, Stream) {
  for (int64_t row = 0; row < a.count; ++row)
    parallel_for(a.rows[3 * row + 2], cpu::kGrain, [&](int64_t begin, int64_t end) {
      float* const e = reinterpret_cast<float*>(a.rows[3 * row]);
      const float* const w = reinterpret_cast<const float*>(a.rows[3 * row + 1]);
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) e[i] = a.f(e[i], w[i]);
    });
}

void gradient_norm_cpu(const GradientNormArgs& a, Stream) {
  for (int64_t s = 0; s < a.r.slices; ++s) {
    const int64_t first = a.r.first[s], last = a.r.first[s + 1];
    if (first == last) continue;
    const float* const g = a.g + a.r.rows[3 * first + 1];
    a.work[a.r.count + s] = cpu::sum(a.r.rows[3 * (last - 1) + 2] - a.r.rows[3 * first + 1],
                                     [g](int64_t i) { return g[i] * g[i]; });
  }
  finish_norm(a);
}

void norm_clip_cpu(const NormClipArgs& a, Stream) {
  if (!(a.norm[1] < 1)) return;
  const float factor = float(a.norm[1]);
  parallel_for(a.r.count, cpu::kGrain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
#pragma omp simd
      for (int64_t i = a.r.rows[3 * c + 1]; i < a.r.rows[3 * c + 2]; ++i) a.g[i] = a.g[i] * factor;
    }
  });
}

void adaptive_clip_cpu(const AdaptiveClip& a, Stream) { cpu::rows(a.units, a.n, a); }

}  // namespace

constinit KernelSlot<UpdateArgs<AdamUpdate>> adam_update{"optimizer.adam", update_cpu<AdamUpdate>};
constinit KernelSlot<UpdateArgs<SgdUpdate>> sgd_update{"optimizer.sgd", update_cpu<SgdUpdate>};
constinit KernelSlot<BlendArgs> blend{"ema", blend_cpu};
constinit KernelSlot<GradientNormArgs> gradient_norm_kernel{"clip.norm", gradient_norm_cpu};
constinit KernelSlot<NormClipArgs> norm_clip{"clip.scale", norm_clip_cpu};
constinit KernelSlot<AdaptiveClip> adaptive_clip{"clip.agc", adaptive_clip_cpu};

}  // namespace lowbit
