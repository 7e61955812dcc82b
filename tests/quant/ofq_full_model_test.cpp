// Full-size quantized DeiT of OFQ against the published code: every block alone on a given input, the scales
// of a first forward, and the whole network up to the first value that rounds the other way.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "nn/models/vit.h"
#include "quant/scheme/scheme.h"
#include "tests/support/golden.h"
#include "tests/support/model.h"
#include "tests/support/tie_breaker.h"

namespace lowbit::test {
namespace {

/// Fill of a parameter; q, k and v have a shift each where the file has one for the three.
Tensor filled(const std::string& name, const Shape& shape) {
  for (const int part : {0, 1, 2}) {
    const std::string own = std::string("move_") + "qkv"[part] + "_b4.bias";
    if (!name.ends_with(own)) continue;
    const int64_t c = shape[0];
    const std::string theirs = name.substr(0, name.size() - own.size()) + "move_qkv_b4.bias";
    return fill_parameter(theirs, {3 * c}).slice(0, part * c, (part + 1) * c).clone();
  }
  return fill_parameter(name, shape);
}

/// The quantizers live in `quantized`, the float twin computes with them.
struct Network {
  std::unique_ptr<VisionTransformer> quantized, twin;
  std::vector<std::pair<std::string, std::shared_ptr<TieBreaker>>> breakers;
};

Network published_model(const nlohmann::json& s) {
  VitConfig c = vit_config(s.at("model"));
  c.qk_reparam = s.at("qkr");
  Network n{std::make_unique<VisionTransformer>(c, 0), std::make_unique<VisionTransformer>(c, 0), {}};
  VisionTransformer* model = n.quantized.get();
  SchemeOptions o;
  o.wbits = s.at("wbits"), o.abits = s.at("abits"), o.qk_reparam = c.qk_reparam;
  install(*model, load_scheme("ofq", o));
  const bool separate = !c.qk_reparam;  // OFQ shifts v by its own parameter then
  for (auto& [name, t] : model->state()) {
    if (name.ends_with(".clip_val"))
      t.fill(2);
    else if (!name.ends_with(".s") && !name.ends_with(".signed"))
      t.copy_from(separate ? filled(name, t.shape()) : fill_parameter(name, t.shape()));
  }
  for (auto& [name, t] : n.twin->state()) t.copy_from(fill_parameter(name, t.shape()));
  n.breakers = break_ties(*n.quantized, *n.twin);
  n.quantized->eval(), n.twin->eval();
  return n;
}

struct BlockError {
  double worst, l2;  ///< of the stored part, relative to its largest value and to its norm
  double norm;       ///< of the norm of the whole output
};

BlockError block_error(VitBlock& block, const Tensor& x, const Tensor& first, double norm) {
  const Tensor y = block(Variable(x)).data();
  const auto ours = y.select(0, 0).slice(0, 0, first.size(0)).packed().to_vector<float>();
  const auto theirs = first.to_vector<float>();
  double worst = 0, largest = 0, difference = 0, squares = 0, sum = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double d = std::fabs(double(ours[i]) - theirs[i]);
    worst = std::max(worst, d), largest = std::max(largest, std::fabs(double(theirs[i])));
    difference += d * d, squares += double(theirs[i]) * theirs[i];
  }
  for (const float v : y.to_vector<float>()) sum += double(v) * v;
  return {worst / largest, std::sqrt(difference / squares), std::fabs(std::sqrt(sum) / norm - 1)};
}

/// What the file allows for a block on its own: with a value next to a boundary it may round the other way.
double local_tolerance(double margin, int bits) { return margin > 1e-6 ? 1e-4 : bits >= 3 ? 5e-3 : 2e-2; }

/// Every block alone. Where a tie costs more than the file allows for one, ties are moved until it is within
/// 1e-4.
void check_blocks(Network& n, const GoldenFile& g, const std::string& name, const nlohmann::json& s) {
  int64_t moved = 0;
  for (const auto& [block, local] : s.at("local").items()) {
    auto& b = dynamic_cast<VitBlock&>(n.twin->at(block));
    const std::string at = name + "/local/" + block, prefix = block + ".";
    const Tensor x = fill_expression(local.at("input")), first = g.tensor(at + "/first_tokens");
    const double norm = g.tensor(at + "/norm").item<float>();
    double tolerance = local_tolerance(local.at("margin"), s.at("abits"));
    BlockError error = block_error(b, x, first, norm);
    EXPECT_LE(error.norm, tolerance) << at;
    if (error.worst > tolerance) {
      const auto concerns = [&](const std::string& slot) { return slot.starts_with(prefix); };
      moved += resolve_ties(
          n.breakers, concerns, [&] { return block_error(b, x, first, norm).l2; }, 1e-5);
      error = block_error(b, x, first, norm);
      tolerance = 1e-4;
    }
    EXPECT_LE(error.worst, tolerance) << at;
    for (const auto& [slot, breaker] : n.breakers) breaker->moved.clear();
  }
  std::printf("%s: %zu blocks, %lld ties moved\n", name.c_str(), s.at("local").size(), (long long)moved);
}

/// Blocks of the whole network whose output is the file's, in order.
int64_t equal_blocks(const std::vector<std::shared_ptr<Probe>>& outputs, const GoldenFile& g,
                     const std::string& name) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const std::string at = name + "/layer/blocks." + std::to_string(i);
    const Tensor first = g.tensor(at + "/first_tokens"), rms = g.tensor(at + "/rms_per_image"),
                 y = outputs[i]->last.data();
    const auto ours =
        y.slice(0, 0, 1).slice(1, 0, first.size(1)).slice(2, 0, first.size(2)).to_vector<float>();
    const auto theirs = first.to_vector<float>();
    double largest = 0, worst = 0;
    for (size_t k = 0; k < ours.size(); ++k) {
      largest = std::max(largest, std::fabs(double(theirs[k])));
      worst = std::max(worst, std::fabs(double(ours[k]) - theirs[k]));
    }
    for (int64_t b = 0; b < rms.size(0); ++b) {
      double sum = 0;
      for (const float v : y.select(0, b).to_vector<float>()) sum += double(v) * v;
      const double expected = rms.to_vector<float>()[size_t(b)];
      worst = std::max(
          worst,
          largest * std::fabs(std::sqrt(sum * double(rms.size(0)) / double(y.numel())) / expected - 1));
    }
    if (worst > 1e-4 * largest) return int64_t(i);
  }
  return int64_t(outputs.size());
}

void check_full(const std::string& file) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  for (const auto& [name, s] : g.cases()) {
    SCOPED_TRACE(name);
    Network n = published_model(s);
    VisionTransformer* model = n.twin.get();
    const NoGrad off;
    (void)(*n.quantized)(Variable(fill_expression(s.at("init_input"))));
    for (auto& [own, t] : n.quantized->state()) {
      const std::string key = name + "/s/" + own;
      if (!own.ends_with(".s") && !own.ends_with(".signed")) continue;
      const Tensor theirs = g.tensor(key);
      // Up to the first attention nothing is behind a value that may round the other way.
      if (own.starts_with("patch_embed") || own.starts_with("blocks.0.attn.quant_x") ||
          own.starts_with("blocks.0.attn.qkv"))
        expect_close(t, theirs, 1e-4, 0, key);
      t.copy_from(theirs);
    }
    check_blocks(n, g, name, s);
    std::vector<std::shared_ptr<Probe>> outputs;
    for (int64_t i = 0; i < model->config().depth; ++i)
      outputs.push_back(probe(*model, "blocks." + std::to_string(i) + ".mlp_sum"));
    const Variable input{fill_expression(s.at("input"))};
    const VisionTransformer::Heads heads = model->heads(input);
    const int64_t equal = equal_blocks(outputs, g, name);
    std::printf("%s: %lld of %zu blocks of the whole network equal the file's\n", name.c_str(),
                (long long)equal, outputs.size());
    if (equal == std::ssize(outputs)) {
      expect_close_to_largest(heads.cls.data(), g.tensor(name + "/out/cls"), 1e-4, name + " cls");
      expect_close_to_largest(heads.dist.data(), g.tensor(name + "/out/dist"), 1e-4, name + " dist");
      expect_close_to_largest((*model)(input).data(), g.tensor(name + "/out/eval_logits"), 1e-4,
                              name + " logits");
    }
  }
}

TEST(OfqGolden, FullDeitTinyPlainW2A2) { check_full("ofq/full_deit_t_plain_w2a2.safetensors"); }
TEST(OfqGolden, FullDeitTinyW2A2) { check_full("ofq/full_deit_t_qkr_w2a2.safetensors"); }
TEST(OfqGolden, FullDeitTinyW4A4) { check_full("ofq/full_deit_t_qkr_w4a4.safetensors"); }
TEST(OfqGolden, FullDeitTinyW8A8) { check_full("ofq/full_deit_t_qkr_w8a8.safetensors"); }
TEST(OfqGolden, FullDeitSmallW2A2) { check_full("ofq/full_deit_s_qkr_w2a2.safetensors"); }
TEST(OfqGolden, FullDeitSmallW3A3) { check_full("ofq/full_deit_s_qkr_w3a3.safetensors"); }

}  // namespace
}  // namespace lowbit::test
