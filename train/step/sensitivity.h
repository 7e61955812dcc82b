#pragma once
// Which part of a quantized model costs the accuracy: evaluations with one group of quantizers on, or all but
// one, and the spread of the values that pass each quantizer.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "quant/quantizer/quantizer.h"
#include "train/step/evaluate.h"

namespace lowbit {

/// Quantizers that are switched together. `by`: "module" (blocks.3.attn), "family" (blocks.*.attn, and each
/// of its slots in all blocks: blocks.*.attn.q), "slot" (each on its own).
using QuantizerGroup = std::pair<std::string, std::vector<Quantizer*>>;
std::vector<QuantizerGroup> quantizer_groups(Module& model, const std::string& by);

struct SensitivityRow {
  std::string group;
  double top1 = 0, loss = 0;
  double effect = 0;  ///< points that sparing the group wins, or that quantizing it alone loses
};

struct Sensitivity {
  bool spare = false;
  SensitivityRow none, all;          ///< nothing quantized, everything quantized
  std::vector<SensitivityRow> rows;  ///< largest effect first, then by the loss
};

/// `run` evaluates the model as it is and returns false to stop early; the states of the quantizers are
/// restored. Errors  usage: no quantizer
Sensitivity measure_sensitivity(Module& model, const std::vector<QuantizerGroup>& groups, bool spare,
                                const std::function<bool(SensitivityRow&)>& run);

/// What passes a slot: its spread and its outliers.
struct SlotSpread {
  std::string slot;
  bool weight = false;
  double mean_abs = 0, deviation = 0, largest = 0;  ///< largest: of |x|
  double kurtosis = 0;  ///< fourth moment over the squared variance; 3 for a normal distribution
  double reach() const { return deviation > 0 ? largest / deviation : 0; }
};
/// Of the values before every quantizer while `pass` runs the model once.
std::vector<SlotSpread> slot_spreads(Module& model, const std::function<void()>& pass);
/// Standard deviation over all weights of mean|w| (SDAM in the VVTQ paper).
double spread_of_means(const std::vector<SlotSpread>& all);

}  // namespace lowbit
