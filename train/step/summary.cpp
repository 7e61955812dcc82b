#include "train/step/summary.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <regex>

#include "quant/scheme/scheme.h"

namespace lowbit {
namespace {

std::string formatted(const char* form, double v, const char* unit) {
  char text[64];
  std::snprintf(text, sizeof text, form, v, unit);
  return text;
}

constexpr int kFloatBits = 32;

int width_of(const std::map<std::string, int>& bits, const std::string& slot) {
  const auto it = bits.find(slot);
  return it == bits.end() ? kFloatBits : it->second;
}

std::string width_text(int bits) { return bits == kFloatBits ? "float" : std::to_string(bits) + " bit"; }

/// "blocks.3.attn.qkv" → {"blocks.*.attn.qkv", 3}; names without a block keep −1.
std::pair<std::string, int64_t> without_block(const std::string& name) {
  static const std::regex form(R"((.*blocks\.|features\.\d+\.)(\d+)(\..*))");
  std::smatch m;
  if (!std::regex_match(name, m, form)) return {name, -1};
  return {m[1].str() + "*" + m[3].str(), std::stoll(m[2])};
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

ModelSize model_size(ImageModel& model) {
  ModelSize size;
  const std::map<std::string, int> bits = slot_bits(model);
  const auto of_quantizers = quantizer_state(model);
  for (const NamedParameter& p : model.parameters())
    (of_quantizers.contains(p.name) ? size.quantizer_parameters : size.parameters) +=
        p.parameter->var.numel();
  size.weight_bits = double(model_bits(model));
  for (const ProductCost& c : model.product_costs()) {
    const int left = width_of(bits, c.left), right = width_of(bits, c.right);
    size.macs += double(c.macs());
    size.bops += double(c.macs()) * left * right;
  }
  return size;
}

std::vector<BitMapRow> bit_map_rows(ImageModel& model) {
  const std::map<std::string, int> bits = slot_bits(model);
  struct Group {
    std::string name;
    int64_t first, last;
    BitMapRow row;
  };
  std::vector<Group> groups;
  for (const ProductCost& c : model.product_costs()) {
    const auto [name, block] = without_block(c.name);
    const int left = width_of(bits, c.left), right = width_of(bits, c.right);
    auto it = std::find_if(groups.begin(), groups.end(), [&, n = name](const Group& g) {
      return g.name == n && g.row.left_bits == left && g.row.right_bits == right;
    });
    if (it == groups.end())
      it = groups.insert(groups.end(), {name, block, block, {name, c.has_weight, left, right, 0}});
    it->last = block;
    it->row.macs += double(c.macs());
  }
  std::vector<BitMapRow> rows;
  for (Group& g : groups) {
    if (g.first >= 0)
      g.row.products.replace(g.row.products.find('*'), 1,
                             g.first == g.last ? std::to_string(g.first) : str_cat(g.first, "-", g.last));
    rows.push_back(g.row);
  }
  return rows;
}

std::string bit_map_text(ImageModel& model) {
  std::string text;
  for (const BitMapRow& r : bit_map_rows(model)) {
    char line[160];
    std::snprintf(line, sizeof line, "  %-28s %s %-6s  activations %-6s  %9s multiply-adds\n",
                  r.products.c_str(), r.weights ? "weights    " : "activations",
                  width_text(r.right_bits).c_str(), width_text(r.left_bits).c_str(),
                  count_text(r.macs).c_str());
    text += line;
  }
  return text + "  norms, softmax, GELU, residual sums, biases and embeddings: float\n";
}

std::string model_line(ImageModel& model) {
  const ModelSize s = model_size(model);
  std::string line = str_cat(model.config().name, ", ", count_text(double(s.parameters)), " parameters");
  if (s.quantizer_parameters) line += str_cat(" + ", s.quantizer_parameters, " of quantizers");
  return line + str_cat(", ", count_text(s.macs), " multiply-adds, ", count_text(s.bops),
                        " bit operations, weights ", bytes_text(s.weight_bits / 8));
}

}  // namespace lowbit
