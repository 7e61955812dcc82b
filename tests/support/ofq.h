#pragma once
// What the tests of OFQ's golden files share.

#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"

namespace lowbit::test {

using Json = nlohmann::json;

/// Scale gradients are sums with cancellation: relative to the largest, as the file's notes say.
inline void expect_gradient(const Tensor& ours, const Tensor& theirs, const GoldenFile& g,
                            const std::string& what) {
  // What no path reaches has no gradient here and zeros there.
  const Tensor grad = ours.defined() ? ours : Tensor::zeros(theirs.shape());
  if (what.ends_with(".s") || what.ends_with("/s"))
    expect_close_to_largest(grad, theirs, 1e-3, what);
  else
    expect_close(grad, theirs, g.rtol(), g.atol(), what);
}

/// Tensors "<prefix><name>" under our names: the shift of q, k and v is one parameter in the files.
inline TensorMap part_of(const GoldenFile& g, const std::string& prefix) {
  TensorMap all;
  for (const std::string& key : g.names_with_prefix(prefix)) {
    const std::string name = key.substr(prefix.size());
    const size_t at = name.find("move_qkv_b4");
    const Tensor t = g.tensor(key);
    if (at == std::string::npos) {
      all[name] = t;
      continue;
    }
    const int64_t c = t.size(0) / 3;
    for (int i = 0; i < 3; ++i)
      all[name.substr(0, at) + "move_" + "qkv"[i] + "_b4.bias"] = t.slice(0, i * c, (i + 1) * c).clone();
  }
  return all;
}

inline SchemeOptions bits_of(const Json& settings) {
  SchemeOptions o;
  o.wbits = settings.value("wbits", 32), o.abits = settings.value("abits", 32);
  return o;
}

/// The baseline: LSQ instead of StatsQ.
inline Scheme ofq_scheme(const SchemeOptions& o, bool lsq_weights) {
  Scheme scheme = load_scheme("ofq", o);
  if (!lsq_weights) return scheme;
  for (Rule& r : scheme.rules)
    if (auto& s = r.settings; s.count("quantizer") && s["quantizer"] == "statsq")
      s = {{"quantizer", "ofq"},
           {"bits", s["bits"]},
           {"granularity", "channel"},
           {"state", "."},
           {"name", "lsqw_fn"}};
  return scheme;
}

}  // namespace lowbit::test
