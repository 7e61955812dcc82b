#pragma once
// From the settings of a rule to a quantizer.

#include "nn/core/slot_info.h"
#include "quant/quantizer/quantizer.h"

namespace lowbit {

using RuleSettings = std::map<std::string, std::string>;

inline constexpr int kFloatBits = 32;

bool is_rule_key(const std::string& key);
/// The quantizer of a slot, or null where the settings leave it float. `info`: what passes there; the shape
/// of the parameter for weights, no shape where nobody knows.
/// Errors  usage, naming the slot: values out of range, settings that this slot cannot have
std::shared_ptr<Quantizer> make_quantizer(const std::string& slot, const RuleSettings& s,
                                          const SlotInfo& info);

}  // namespace lowbit
