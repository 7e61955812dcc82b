#pragma once
// One step of an oscillation tracker (quant/oscillation.h, which has the formulas) over the codes of one
// weight. Not recorded on the tape. Counts are integers: their order does not matter.

#include "tensor/core/kernel_slot.h"
#include "tensor/core/tensor.h"
#include "tensor/hd/math.h"
#include "tensor/hd/row.h"

namespace lowbit {

/// A weight oscillates when o is above this.
inline constexpr float kOscillating = 0.005f;

/// Everything packed and of one size. C: i8 or u8, the type of the codes.
struct OscillationArgs {
  View code, previous;                ///< C; frozen elements of `code` are overwritten
  View direction, frequency;          ///< i8, f32
  View total;                         ///< i32; data null: not counted
  View frozen, frozen_code, average;  ///< u8, C, f32; data null: nothing can freeze
  const float* threshold = nullptr;   ///< of freezing, on the device; 0: nothing freezes
  float momentum = 0, keep = 0;       ///< m, 1 − m
  bool at_average = true;             ///< freeze at the average of the codes, else at the code
  int64_t* counts = nullptr;          ///< [4] flips, oscillations, oscillating; flips of all steps
  int32_t* work = nullptr;            ///< [oscillation_workspace()]
  int64_t n = 0;
};
extern KernelSlot<OscillationArgs> oscillation_step;

inline int64_t oscillation_workspace(int64_t n) { return 3 * ceil_div(n, kChunk); }

/// Row r is a chunk of the elements.
template <class C, bool kTotals, bool kFreezing>
struct OscillationChunk {
  OscillationArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t r) const {
    const int64_t first = r * kChunk, rest = a.n - first, n = rest < kChunk ? rest : kChunk;
    C* const code = static_cast<C*>(a.code.data) + first;
    C* const previous = static_cast<C*>(a.previous.data) + first;
    int8_t* const direction = static_cast<int8_t*>(a.direction.data) + first;
    float* const frequency = static_cast<float*>(a.frequency.data) + first;
    [[maybe_unused]] int32_t* const total = kTotals ? static_cast<int32_t*>(a.total.data) + first : nullptr;
    [[maybe_unused]] uint8_t* const frozen =
        kFreezing ? static_cast<uint8_t*>(a.frozen.data) + first : nullptr;
    [[maybe_unused]] C* const frozen_code = kFreezing ? static_cast<C*>(a.frozen_code.data) + first : nullptr;
    [[maybe_unused]] float* const average = kFreezing ? static_cast<float*>(a.average.data) + first : nullptr;
    [[maybe_unused]] const float threshold = kFreezing ? *a.threshold : 0;
    [[maybe_unused]] const bool at_average = a.at_average;
    const float m = a.momentum, keep = a.keep;
    const auto counts = row.sum(n, [=](int64_t i) {
      C x = code[i];
      if constexpr (kFreezing) {
        x = frozen[i] ? frozen_code[i] : x;
        code[i] = x;
      }
      // Selections as arithmetic: with conditions the loop would not be vectorised.
      const int32_t was = previous[i], now = x, before = direction[i];
      const int32_t d = int32_t(was > now) - int32_t(was < now), flip = d * d;
      const int32_t turned = int32_t(uint32_t(before * d) >> 31);
      const float o = m * float(turned) + keep * frequency[i];
      frequency[i] = o;
      direction[i] = int8_t(d + (1 - flip) * before);
      previous[i] = x;
      if constexpr (kTotals) total[i] += turned;
      if constexpr (kFreezing) {
        const bool hit = threshold > 0 && o > threshold;
        const float mean = average[i];
        frozen[i] = hit ? uint8_t(1) : frozen[i];
        frozen_code[i] = hit ? (at_average ? C(math::rint(mean)) : x) : frozen_code[i];
        average[i] = m * float(x) + keep * mean;
      }
      return Pack<int32_t, 3>{{flip, turned, int32_t(o > kOscillating)}};
    });
    int32_t* const to = a.work + 3 * r;
    row.once([=] { to[0] = counts[0], to[1] = counts[1], to[2] = counts[2]; });
  }
};

/// From the counts of every chunk to those of the step.
struct OscillationTotals {
  OscillationArgs a;
  template <class Row>
  LOWBIT_HD void operator()(const Row& row, int64_t) const {
    const int32_t* const work = a.work;
    const int64_t chunks = (a.n + kChunk - 1) / kChunk;  // ceil_div is host code
    const auto sums = row.sum(chunks, [=](int64_t c) {
      return Pack<int32_t, 3>{{work[3 * c], work[3 * c + 1], work[3 * c + 2]}};
    });
    int64_t* const to = a.counts;
    row.once([=] { to[0] = sums[0], to[1] = sums[1], to[2] = sums[2], to[3] += sums[0]; });
  }
};

/// f(OscillationChunk) for what the arguments ask for.
template <class F>
void dispatch_oscillation(const OscillationArgs& a, F&& f) {
  const auto of = [&]<class C>(C) {
    if (a.frozen.data && a.total.data)
      f(OscillationChunk<C, true, true>{a});
    else if (a.frozen.data)
      f(OscillationChunk<C, false, true>{a});
    else if (a.total.data)
      f(OscillationChunk<C, true, false>{a});
    else
      f(OscillationChunk<C, false, false>{a});
  };
  a.code.dtype == DType::i8 ? of(int8_t{}) : of(uint8_t{});
}

}  // namespace lowbit
