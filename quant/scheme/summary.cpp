// What a quantized model looks like: its quantizers, bit map, size and clipping.

#include "quant/scheme/scheme.h"

namespace lowbit {
namespace {

/// Slot whose values a layer multiplies, by the layer's name; the layers of nn know their input only this
/// way.
std::string input_slot(const std::string& layer) {
  static constexpr std::pair<const char*, const char*> kInputs[] = {
      {"attn.qkv", "attn.in"},       {"attn.proj_q", "attn.in"},
      {"attn.proj_k", "attn.in"},    {"attn.proj_v", "attn.in"},
      {"attn.proj", "attn.context"}, {"mlp.fc1", "mlp.in"},
      {"mlp.fc2", "mlp.hidden"},     {"patch_embed.proj", "patch_embed.in"},
      {"head", "head_in"},           {"head_dist", "head_dist_in"}};
  for (const auto& [end, slot] : kInputs)
    if (layer == end || layer.ends_with(std::string(".") + end))
      return layer.substr(0, layer.size() - std::string_view(end).size()) + slot;
  return layer + ".in";
}

constexpr int kFloatBits = 32;

int bits_of(const std::map<std::string, int>& all, const std::string& slot) {
  const auto at = all.find(slot);
  return at == all.end() ? kFloatBits : at->second;
}

}  // namespace

std::vector<std::pair<std::string, Quantizer*>> quantizers(Module& model) {
  std::vector<std::pair<std::string, Quantizer*>> all;
  for (const NamedSlot& s : model.slots())
    if (auto* q = dynamic_cast<Quantizer*>(s.slot->get())) all.emplace_back(s.name, q);
  return all;
}

void set_quant_state(Module& model, QuantState s, std::string_view reason) {
  for (const auto& [name, q] : quantizers(model)) q->set_quant_state(s, reason);
}

std::set<std::string> quantizer_state(Module& model) {
  std::set<std::string> names;
  for (const auto& [path, m] : model.modules())
    if (dynamic_cast<Quantizer*>(m))
      for (const auto& [name, t] : m->state()) names.insert(join_name(path, name));
  return names;
}

std::map<std::string, int> slot_bits(Module& model) {
  std::map<std::string, int> bits;
  for (const auto& [name, q] : quantizers(model))
    if (q->quant_state() != QuantState::off) bits[name] = q->bits();
  return bits;
}

std::vector<LayerBits> bit_map(Module& model) {
  const std::map<std::string, int> all = slot_bits(model);
  std::map<std::string, int64_t> sizes;
  for (const NamedParameter& p : model.parameters()) sizes[p.name] = p.parameter->var.numel();
  std::vector<LayerBits> rows;
  for (const NamedSlot& s : model.slots()) {
    if (!s.name.ends_with(".weight")) continue;
    const std::string layer = s.name.substr(0, s.name.size() - 7);
    rows.push_back({layer, bits_of(all, s.name), bits_of(all, input_slot(layer)), sizes[s.name]});
  }
  return rows;
}

std::vector<std::string> float_slots(Module& model) {
  const std::map<std::string, int> quantized = slot_bits(model);
  std::vector<std::string> all;
  for (const NamedSlot& s : model.slots())
    if (!quantized.count(s.name)) all.push_back(s.name);
  return all;
}

int64_t model_bits(Module& model) {
  int64_t bits = 0;
  for (const NamedParameter& p : model.parameters()) bits += kFloatBits * p.parameter->var.numel();
  for (const auto& [name, q] : quantizers(model)) {
    // A table of scales for several widths counts with what the width in use needs.
    for (const NamedParameter& p : q->parameters()) bits -= kFloatBits * p.parameter->var.numel();
    bits += kFloatBits * q->stored_values();
  }
  for (const LayerBits& l : bit_map(model)) bits += (l.wbits - kFloatBits) * l.weights;
  return bits;
}

std::vector<std::pair<std::string, double>> clipped_weights(Module& model) {
  std::map<std::string, Tensor> values;
  for (const NamedParameter& p : model.parameters()) values[p.name] = p.parameter->var.data();
  std::vector<std::pair<std::string, double>> shares;
  for (const auto& [name, q] : quantizers(model))
    if (values.count(name) && q->initialised()) shares.emplace_back(name, q->clipped_share(values[name]));
  return shares;
}

}  // namespace lowbit
