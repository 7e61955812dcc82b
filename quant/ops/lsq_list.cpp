#include "quant/ops/lsq_list.h"

#include "tensor/engine/pointwise.h"
#include "tensor/engine/reduce.h"

namespace lowbit {
namespace {

void list_cpu(const LsqListArgs& a, Stream) {
  for (int64_t k = 0; k < a.item_count; ++k) {
    const LsqListItem& item = a.items[k];
    float l1 = 0;
    if (item.factor == 0) {  // the chunks of a weight lie one after the other
      const float* const w = a.chunks[item.first].w;
      const LsqListChunk& end = a.chunks[item.last - 1];
      l1 = cpu::sum(end.w + end.n - w, AbsElement<float>{w});
    }
    a.results[k] = lsq_list_result(item, l1);
    for (int64_t i = 0; i < item.widths; ++i) lsq_list_clamp(item, i);
  }
  parallel_for(a.chunk_count, cpu::kGrain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const LsqListChunk& c = a.chunks[k];
      for (int64_t i = 0; i < c.n; ++i) lsq_list_code(a.items[c.item], a.results[c.item], c, i);
    }
  });
}

template <MaskRule M>
void list_bwd_ruled(const LsqListBwdArgs& a) {
  for (int64_t k = a.first; k < a.first + a.count; ++k) {
    const LsqListItem& item = a.items[k];
    if (!a.grads[k - a.first].gy) continue;
    const LsqListElement<M> element(a, item.first);
    const LsqListChunk& end = a.chunks[item.last - 1];
    const float sum = cpu::sum(end.w + end.n - element.x, element);
    for (int64_t i = 0; i < item.widths; ++i) lsq_list_finish(a, k, sum, i);
  }
}

void list_bwd_cpu(const LsqListBwdArgs& a, Stream) {
  dispatch_mask(a.mask, [&](auto rule) { list_bwd_ruled<decltype(rule)::value>(a); });
}

}  // namespace

constinit KernelSlot<LsqListBwdArgs> lsq_list_bwd{"lsq_list.bwd", list_bwd_cpu};
constinit KernelSlot<LsqListArgs> lsq_list{"lsq_list", list_cpu};

}  // namespace lowbit
