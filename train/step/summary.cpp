#include "train/step/summary.h"

#include <chrono>
#include <cstdio>
#include <map>
#include <set>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"
#include "nn/models/vit_cost.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/context.h"

namespace lowbit {
namespace {

std::string formatted(const char* form, double v, const char* unit) {
  char text[64];
  std::snprintf(text, sizeof text, form, v, unit);
  return text;
}

/// Bits of every slot that quantizes; anything absent is float.
std::map<std::string, int> slot_bits(VisionTransformer& model) {
  std::map<std::string, int> bits;
  for (const auto& [name, q] : quantizers(model))
    if (q->quant_state() != QuantState::off) bits[name] = q->bits();
  return bits;
}

int width_of(const std::map<std::string, int>& bits, const std::string& slot) {
  const auto it = bits.find(slot);
  return it == bits.end() ? 32 : it->second;
}

std::string width_text(int bits) { return bits == 32 ? "float" : std::to_string(bits) + " bit"; }

/// "blocks.3.attn.qkv" → {"blocks.*.attn.qkv", 3}; names without a block keep −1.
std::pair<std::string, int64_t> without_block(const std::string& name) {
  if (!name.starts_with("blocks.")) return {name, -1};
  const size_t dot = name.find('.', 7);
  return {"blocks.*" + name.substr(dot), std::stoll(name.substr(7, dot - 7))};
}

}  // namespace

std::string bytes_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB"};
  int u = 0;
  while (bytes >= 1024 && u < 3) bytes /= 1024, ++u;
  return formatted(u == 0 ? "%.0f %s" : "%.1f %s", bytes, units[u]);
}

std::string count_text(double count) {
  const char* units[] = {"", "k", "M", "G", "T"};
  int u = 0;
  while (count >= 1000 && u < 4) count /= 1000, ++u;
  return formatted(u == 0 ? "%.0f%s" : "%.2f %s", count, units[u]);
}

ModelSize model_size(VisionTransformer& model) {
  ModelSize size;
  const auto bits = slot_bits(model);
  const VisionTransformer plain(model.config(), 0);
  const auto bare = const_cast<VisionTransformer&>(plain).state();
  for (const NamedParameter& p : model.parameters())
    (bare.contains(p.name) ? size.parameters : size.quantizer_parameters) += p.parameter->var.numel();
  size.weight_bits = double(model_bits(model));
  for (const ProductCost& c : product_costs(model.config())) {
    const int left = width_of(bits, c.left), right = width_of(bits, c.right);
    size.macs += double(c.macs);
    size.bops += double(c.macs) * left * right;
  }
  return size;
}

std::string bit_map_text(VisionTransformer& model) {
  const auto bits = slot_bits(model);
  struct Group {
    int64_t first = -1, last = -1;
    double macs = 0;
    bool weights = false;
    int left = 32, right = 32;
  };
  std::vector<std::pair<std::string, Group>> groups;
  for (const ProductCost& c : product_costs(model.config())) {
    const auto [name, block] = without_block(c.name);
    const int left = width_of(bits, c.left), right = width_of(bits, c.right);
    auto it = std::find_if(groups.begin(), groups.end(), [&, n = name](const auto& g) {
      return g.first == n && g.second.left == left && g.second.right == right;
    });
    if (it == groups.end())
      it = groups.insert(groups.end(), {name, Group{block, block, 0, c.weights > 0, left, right}});
    it->second.last = block;
    it->second.macs += double(c.macs);
  }
  std::string text;
  for (const auto& [name, g] : groups) {
    std::string shown = name;
    if (g.first >= 0)
      shown.replace(7, 1, g.first == g.last ? std::to_string(g.first) : str_cat(g.first, "-", g.last));
    char line[160];
    std::snprintf(line, sizeof line, "  %-28s %s %-6s  activations %-6s  %9s multiply-adds\n", shown.c_str(),
                  g.weights ? "weights    " : "activations", width_text(g.right).c_str(),
                  width_text(g.left).c_str(), count_text(g.macs).c_str());
    text += line;
  }
  return text + "  norms, softmax, GELU, residual sums, biases and embeddings: float\n";
}

std::string model_line(VisionTransformer& model) {
  const ModelSize s = model_size(model);
  std::string line = str_cat(model.config().name, ", ", count_text(double(s.parameters)), " parameters");
  if (s.quantizer_parameters) line += str_cat(" + ", s.quantizer_parameters, " of quantizers");
  return line + str_cat(", ", count_text(s.macs), " multiply-adds, ", count_text(s.bops),
                        " bit operations, weights ", bytes_text(s.weight_bits / 8));
}

StepEstimate estimate_step(VisionTransformer& model, int64_t batch) {
  const VitConfig& c = model.config();
  const int64_t n = std::min<int64_t>(batch, 8);
  Tensor images = Tensor::empty({n, c.in_channels, c.image_size, c.image_size});
  float* p = images.data<float>();
  for (int64_t i = 0; i < images.numel(); ++i) p[i] = float((i * 2654435761u) % 1000) * 0.004f - 2.f;
  const Tensor labels = Tensor::zeros({n}, DType::i64);
  StepEstimate e;
  const double factor = double(batch) / double(n);
  const uint64_t generator = context().generator.state();
  for (int pass = 0; pass < 2; ++pass) {  // the first fills caches
    const auto start = std::chrono::steady_clock::now();
    const Variable loss = cross_entropy(model.heads(Variable(images)).cls, labels);
    if (pass == 1) {
      for (const auto& [op, bytes] : saved_memory(loss)) {
        e.saved_bytes += size_t(double(bytes) * factor);
        if (bytes > 0) e.per_op += str_cat("  ", op, ": ", bytes_text(double(bytes) * factor), "\n");
      }
    }
    loss.backward();
    e.seconds = factor * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (const NamedParameter& q : model.parameters()) q.parameter->var.zero_grad();
  }
  context().generator.set_state(generator);
  return e;
}

}  // namespace lowbit
