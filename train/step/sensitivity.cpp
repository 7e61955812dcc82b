#include "train/step/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "quant/scheme/scheme.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

std::vector<std::string> components(const std::string& name) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    parts.push_back(name.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool is_number(const std::string& s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string without_weight(const std::string& slot) {
  return slot.ends_with(".weight") ? slot.substr(0, slot.size() - 7) : slot;
}

/// "blocks.0.attn.qkv.weight" → "blocks.0.attn"; "patch_embed.in" → "patch_embed", "head_in" → "head".
std::string module_of(const std::string& slot) {
  const std::vector<std::string> parts = components(without_weight(slot));
  size_t last = parts.size();
  for (size_t i = 0; i < parts.size(); ++i)
    if (is_number(parts[i])) last = i;
  std::string name = parts[0];
  for (size_t i = 1; last < parts.size() && i <= std::min(last + 1, parts.size() - 1); ++i)
    name += "." + parts[i];
  return name.ends_with("_in") ? name.substr(0, name.size() - 3) : name;
}

/// Numbers become *, so that the blocks fall together.
std::string family_of(const std::string& name) {
  std::string s;
  for (const std::string& part : components(name))
    s += (s.empty() ? "" : ".") + (is_number(part) ? "*" : part);
  return without_weight(s);
}

/// Passes a value on and keeps its spread.
class Probe final : public Transform {
 public:
  Probe(SlotSpread& s, Slot inside) : spread_(s), inside_(std::move(inside)) {}
  Variable apply(const Variable& x) override {
    const std::vector<float> v = x.data().to(Device{}).packed().to_vector<float>();
    double sum = 0, squares = 0, fourth = 0, absolute = 0, largest = 0;
    for (const float f : v)
      sum += double(f), absolute += std::fabs(double(f)), largest = std::max(largest, std::fabs(double(f)));
    const double n = double(v.size()), mean = sum / n;
    for (const float f : v) {
      const double d = (double(f) - mean) * (double(f) - mean);
      squares += d, fourth += d * d;
    }
    spread_.mean_abs = absolute / n, spread_.deviation = std::sqrt(squares / n), spread_.largest = largest;
    spread_.kurtosis = squares > 0 ? fourth * n / (squares * squares) : 0;
    return inside_(x);
  }

 private:
  SlotSpread& spread_;
  Slot inside_;
};

}  // namespace

std::vector<QuantizerGroup> quantizer_groups(Module& model, const std::string& by) {
  std::vector<QuantizerGroup> groups;
  const auto add = [&](const std::string& name, Quantizer* q) {
    auto at = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == name; });
    if (at == groups.end()) at = groups.insert(groups.end(), {name, {}});
    at->second.push_back(q);
  };
  for (const auto& [slot, q] : quantizers(model)) {
    if (by == "slot") {
      add(slot, q);
    } else if (by == "module") {
      add(module_of(slot), q);
    } else {
      const std::string part = family_of(slot), whole = family_of(module_of(slot));
      add(whole, q);
      if (part != whole) add(part, q);
    }
  }
  return groups;
}

Sensitivity measure_sensitivity(Module& model, const std::vector<QuantizerGroup>& groups, bool spare,
                                const std::function<bool(SensitivityRow&)>& run) {
  std::vector<std::pair<Quantizer*, QuantState>> before;
  for (const auto& [slot, q] : quantizers(model)) before.emplace_back(q, q->quant_state());
  LOWBIT_CHECK(!before.empty(), usage, "sensitivity",
               "nothing is quantized: give weights of a quantized model, or --wbits and --abits");
  const auto set_all = [&](bool on) {
    for (const auto& [q, state] : before) q->set_quant_state(on ? state : QuantState::off, "sensitivity");
  };
  Sensitivity s;
  s.spare = spare;
  s.none.group = "nothing quantized", s.all.group = "all quantized";
  set_all(false);
  bool going = run(s.none);
  set_all(true);
  going = going && run(s.all);
  for (const auto& [name, members] : groups) {
    if (!going) break;
    set_all(spare);
    for (const auto& [q, state] : before)
      if (std::find(members.begin(), members.end(), q) != members.end())
        q->set_quant_state(spare ? QuantState::off : state, "sensitivity");
    SensitivityRow row{name};
    if (!(going = run(row))) break;
    row.effect = spare ? row.top1 - s.all.top1 : s.none.top1 - row.top1;
    s.rows.push_back(row);
  }
  set_all(true);
  std::stable_sort(s.rows.begin(), s.rows.end(), [&](const auto& a, const auto& b) {
    if (a.effect != b.effect) return a.effect > b.effect;
    return spare ? a.loss < b.loss : a.loss > b.loss;
  });
  return s;
}

std::vector<SlotSpread> slot_spreads(Module& model, const std::function<void()>& pass) {
  std::vector<SlotSpread> all;
  std::vector<std::pair<Slot*, Slot>> probed;
  std::map<std::string, Quantizer*> installed;
  for (const auto& [slot, q] : quantizers(model)) installed[slot] = q;
  const std::vector<NamedSlot> slots = model.slots();
  all.reserve(slots.size());  // probes refer to the elements
  for (const NamedSlot& s : slots) {
    const auto q = installed.find(s.name);
    if (q == installed.end()) continue;
    all.push_back({s.name, q->second->spec().is_weight});
    probed.emplace_back(s.slot, *s.slot);
    s.slot->set(std::make_shared<Probe>(all.back(), *s.slot), s.slot->state_name());
  }
  pass();
  for (auto& [slot, old] : probed) *slot = old;
  return all;
}

double spread_of_means(const std::vector<SlotSpread>& all) {
  double n = 0, sum = 0, squares = 0;
  for (const SlotSpread& s : all)
    if (s.weight) n += 1, sum += s.mean_abs;
  if (n == 0) return 0;
  for (const SlotSpread& s : all)
    if (s.weight) squares += (s.mean_abs - sum / n) * (s.mean_abs - sum / n);
  return std::sqrt(squares / n);
}

}  // namespace lowbit
