#pragma once
// Models with parameters by the fill rule, and probes that record what passes a slot.

#include <memory>
#include <set>
#include <string>

#include "nn/core/module.h"
#include "tests/support/golden.h"

namespace lowbit::test {

/// Every parameter and floating buffer takes the fill of its own checkpoint name, the first of several; masks
/// stay what they are.
inline void fill_state(Module& m) {
  std::set<const Storage*> filled;
  const auto put = [&](const std::string& name, Tensor& t) {
    if (t.dtype() == DType::f32 && !name.ends_with("attn_mask") && filled.insert(t.storage().get()).second)
      t.copy_from(fill_parameter(name, t.shape()));
  };
  for (const NamedParameter& p : m.parameters()) put(p.name, p.parameter->var.mutable_data());
  for (auto& [name, t] : m.state()) {
    Tensor buffer = t;
    put(name, buffer);
  }
}

/// Passes its input on and keeps the last one.
struct Probe final : Transform {
  Variable last;
  Variable apply(const Variable& x) override { return last = x; }
};

/// Puts a transform into a slot; null when the module has none of that name.
template <class T = Probe>
std::shared_ptr<T> probe(Module& m, const std::string& slot_name) {
  for (auto& s : m.slots())
    if (s.name == slot_name) {
      auto p = std::make_shared<T>();
      s.slot->set(p, "");
      return p;
    }
  return nullptr;
}

/// Where the output of a block, a projection or a norm passes.
inline std::string output_slot(Module& m, const std::string& module) {
  for (const char* slot : {".mlp_sum", ".reduction.out", ".norm.out", ".out"})
    for (auto& s : m.slots())
      if (s.name == module + slot) return s.name;
  return "";
}

/// Arguments of a fill written in metadata: "fill('init.input', [2, 3, 224, 224], 0, 2)".
Tensor fill_expression(const std::string& text);

}  // namespace lowbit::test
