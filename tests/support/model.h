#pragma once
// Models with parameters by the fill rule, and probes that record what passes a slot.

#include <memory>
#include <string>

#include "nn/core/module.h"
#include "tests/support/golden.h"

namespace lowbit::test {

/// Every parameter and buffer takes the fill of its own checkpoint name.
inline void fill_state(Module& m) {
  std::map<std::string, Tensor> state = m.state();
  for (auto& [name, t] : state) t.copy_from(fill_parameter(name, t.shape()));
}

/// Passes its input on and keeps the last one.
struct Probe final : Transform {
  Variable last;
  Variable apply(const Variable& x) override { return last = x; }
};

inline std::shared_ptr<Probe> probe(Module& m, const std::string& slot_name) {
  for (auto& s : m.slots())
    if (s.name == slot_name) {
      auto p = std::make_shared<Probe>();
      s.slot->set(p, "");
      return p;
    }
  return nullptr;
}

/// Arguments of a fill written in metadata: "fill('init.input', [2, 3, 224, 224], 0, 2)".
Tensor fill_expression(const std::string& text);

}  // namespace lowbit::test
