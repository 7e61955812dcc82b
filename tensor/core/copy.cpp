#include "tensor/core/copy.h"

#include <algorithm>
#include <cstring>

#include "tensor/core/thread_pool.h"
#include "tensor/hd/convert.h"

namespace lowbit {

int collapse_dims(View* v, int count) {
  int n = 0;
  for (int i = 0; i < v[0].ndim; ++i) {
    if (v[0].shape[i] == 1) continue;
    bool merge = n > 0;
    for (int k = 0; k < count && merge; ++k) merge = v[k].stride[n - 1] == v[k].stride[i] * v[k].shape[i];
    for (int k = 0; k < count; ++k) {
      const int64_t extent = v[k].shape[i], stride = v[k].stride[i];
      if (merge)
        v[k].shape[n - 1] *= extent, v[k].stride[n - 1] = stride;
      else
        v[k].shape[n] = extent, v[k].stride[n] = stride;
    }
    if (!merge) ++n;
  }
  if (n == 0) {  // a single element
    for (int k = 0; k < count; ++k) v[k].shape[0] = 1, v[k].stride[0] = 1;
    n = 1;
  }
  for (int k = 0; k < count; ++k) v[k].ndim = int8_t(n);
  return n;
}

namespace {

/// Offset of the flat position `i` of the outer dimensions [0, ndim-1).
void outer_offsets(const View& a, const View& b, int64_t i, int64_t& oa, int64_t& ob) {
  oa = ob = 0;
  for (int d = a.ndim - 2; d >= 0; --d) {
    const int64_t c = i % a.shape[d];
    i /= a.shape[d];
    oa += c * a.stride[d];
    ob += c * b.stride[d];
  }
}

template <class D, class S>
void copy_typed(const View& dst, const View& src) {
  const int64_t inner = dst.shape[dst.ndim - 1], outer = inner ? dst.numel() / inner : 0;
  const int64_t ds = dst.stride[dst.ndim - 1], ss = src.stride[src.ndim - 1];
  D* const d0 = dst.as<D>();
  const S* const s0 = src.as<S>();
  const auto row = [&](D* d, const S* s, int64_t n) {
    if constexpr (std::is_same_v<D, S>) {
      if (ds == 1 && ss == 1) {
        std::memcpy(d, s, size_t(n) * sizeof(D));
        return;
      }
    }
    if (ds == 1 && ss == 1)
      for (int64_t i = 0; i < n; ++i) d[i] = convert<D>(s[i]);
    else
      for (int64_t i = 0; i < n; ++i) d[i * ds] = convert<D>(s[i * ss]);
  };
  if (outer == 1) {
    parallel_for(inner, 1 << 16, [&](int64_t b, int64_t e) { row(d0 + b * ds, s0 + b * ss, e - b); });
    return;
  }
  parallel_for(outer, std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(inner, 1)),
               [&](int64_t b, int64_t e) {
                 for (int64_t i = b; i < e; ++i) {
                   int64_t od, os;
                   outer_offsets(dst, src, i, od, os);
                   row(d0 + od, s0 + os, inner);
                 }
               });
}

void copy_cpu(const CopyArgs& args, Stream) {
  View v[2] = {args.dst, args.src};
  if (v[0].numel() == 0) return;
  collapse_dims(v, 2);
  dispatch_dtype(v[0].dtype, [&](auto d) {
    dispatch_dtype(v[1].dtype, [&](auto s) { copy_typed<decltype(d), decltype(s)>(v[0], v[1]); });
  });
}

void fill_cpu(const FillArgs& args, Stream) {
  View v[2] = {args.dst, args.dst};
  if (v[0].numel() == 0) return;
  collapse_dims(v, 1);
  v[1] = v[0];
  dispatch_dtype(v[0].dtype, [&](auto d) {
    using D = decltype(d);
    D value = convert<D>(args.value);
    v[1].data = &value;
    for (int i = 0; i < v[1].ndim; ++i) v[1].stride[i] = 0;
    copy_typed<D, D>(v[0], v[1]);
  });
}

}  // namespace

KernelSlot<CopyArgs> strided_copy{"copy", copy_cpu};
KernelSlot<FillArgs> strided_fill{"fill", fill_cpu};

}  // namespace lowbit
