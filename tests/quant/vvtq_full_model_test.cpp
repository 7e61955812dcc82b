// Whole models at W4A4 against the published code: every scale, and the logits.
//
// The bounds on the logits are the files' own. tests/support/tie_breaker.h resolves ties before.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "nn/models/sret.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "tests/support/tie_breaker.h"

namespace lowbit {
namespace {

using namespace test;

/// With quantizers as published.
struct Network : TieNetwork {
  std::map<std::string, Tensor> state;  ///< of both models, the quantizers' included

  using Make = std::function<std::unique_ptr<ImageModel>()>;
  Network(const Make& make, const std::vector<std::string>& blocks)
      : TieNetwork(installed(make()), filled(make()), blocks), state(quantized->state()) {
    for (auto& [name, t] : twin->state()) state[name] = t;
  }

 private:
  static std::unique_ptr<ImageModel> installed(std::unique_ptr<ImageModel> m) {
    Scheme scheme = load_scheme("vvtq", {});
    for (Rule& r : scheme.rules) r.settings["published_scale"] = "yes";
    install(*m, scheme);
    placed(*m);
    return m;
  }
  static std::unique_ptr<ImageModel> filled(std::unique_ptr<ImageModel> m) {
    fill_state(placed(*m));
    return m;
  }
};

/// Σ a·b as the SSE3 kernel of the BLAS library adds it under which the file was made: sixteen partial sums
/// in float32.
float published_dot(const std::vector<float>& a, const std::vector<float>& b) {
  std::array<float, 16> lane{};
  size_t i = 0;
  for (; i + lane.size() <= a.size(); i += lane.size())
    for (size_t j = 0; j < lane.size(); ++j) lane[j] += a[i + j] * b[i + j];
  for (size_t j = 0; j < 4; ++j) lane[j] = (lane[j] + lane[j + 4]) + (lane[j + 8] + lane[j + 12]);
  float sum = (lane[0] + lane[1]) + (lane[2] + lane[3]);
  for (; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// The scale search of vvtq.md 2.6 with those sums.
float published_scale_search(const std::vector<float>& w, Levels levels) {
  float largest = 0;
  for (const float x : w) largest = std::max(largest, std::fabs(x));
  float a = largest / float(levels.hi), before = -1;
  std::vector<float> q(w.size());
  while (std::fabs((a - before) / a) >= 1e-5F) {
    for (size_t i = 0; i < w.size(); ++i)
      q[i] = std::rint(std::max(std::min(w[i] / a, float(levels.hi)), float(levels.lo)));
    before = a;
    a = published_dot(w, q) / published_dot(q, q);
  }
  return a;
}

/// Initialises all scales and compares them with the file's, which the network then takes.
void check_scales(Network& net, const GoldenFile& g, const std::string& first_block) {
  const std::vector<float> alpha = g.tensor("alpha").to_vector<float>();
  const nlohmann::json names = g.meta_json("quantizers"), bits = g.meta_json("nbits");
  ASSERT_EQ(names.size(), alpha.size());
  ASSERT_EQ(names.size(), quantizers(*net.quantized).size());
  const auto scale = [&](size_t i) {  // a window on it
    const int64_t at = int64_t(bits[i]) - 2;
    return net.state.at(std::string(names[i]) + ".alpha").slice(0, at, at + 1);
  };
  const auto is_weight = [&](size_t i) { return net.state.contains(std::string(names[i]) + ".weight"); };
  for (const auto& [slot, quantizer] : quantizers(*net.quantized))
    if (slot.ends_with(".weight")) dynamic_cast<LsqQuantizer&>(*quantizer).initialise(net.state.at(slot));
  for (size_t i = 0; i < alpha.size(); ++i) {
    if (!is_weight(i)) continue;
    const std::string name = names[i];
    if (std::fabs(scale(i).item<float>() - alpha[i]) > 1e-4 * alpha[i]) {
      // Where the search drifts with the rounding of the sums (docs/methods/vvtq.md), the file holds what its
      // sums lead to; 1e-5 is where the search stops.
      const std::vector<float> w = net.state.at(name + ".weight").to_vector<float>();
      EXPECT_NEAR(published_scale_search(w, Levels::of(bits[i], true)), alpha[i], 1e-5 * alpha[i]) << name;
    }
    scale(i).fill(alpha[i]);
    net.state.at(name + ".init_state").fill(1);
  }
  net.forward(fill("input_init", {2, 3, 224, 224}, 0, 2));
  for (size_t i = 0; i < alpha.size(); ++i) {
    // Behind the first block a tie may have moved them.
    const std::string name = names[i];
    if (!is_weight(i) && (name.starts_with("patch_embed") || name.starts_with(first_block + "."))) {
      EXPECT_NEAR(scale(i).item<float>(), alpha[i], 1e-6 * alpha[i]) << name;
    }
    scale(i).fill(alpha[i]);
  }
}

/// Four tokens and eight channels of the first image.
std::vector<float> first_values(const Tensor& y) {
  const int64_t channels = y.size(-1), tokens = y.numel() / y.size(0) / channels;
  return y.select(0, 0).packed().reshape({tokens, channels}).slice(0, 0, 4).slice(1, 0, 8).to_vector<float>();
}

/// How far the output of a block is from the file's: its mean, deviation and stored values, over what float
/// rounding explains. At most 1: the same.
double distance(const Network& net, const GoldenFile& g, size_t block) {
  const Tensor& y = net.outputs.at(block);
  double sum = 0, squares = 0;
  for (const float v : y.to_vector<float>()) sum += v, squares += double(v) * v;
  const double n = double(y.numel()), mean = sum / n, deviation = std::sqrt((squares - sum * mean) / (n - 1));
  const auto theirs = g.tensor("block_stats").select(0, int64_t(block)).to_vector<float>();
  double far = std::max(std::fabs(mean - theirs[0]), std::fabs(deviation - theirs[1])) / 1e-6;
  const std::vector<float> ours = first_values(y);
  const auto part = g.tensor("block_probe").select(0, int64_t(block)).to_vector<float>();
  for (size_t i = 0; i < part.size(); ++i) far = std::max(far, std::fabs(double(ours[i]) - part[i]) / 1e-5);
  return far;
}

void check_full_model(const std::string& file,
                      const std::function<std::unique_ptr<ImageModel>(const GoldenFile&)>& make) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  std::vector<std::string> names;
  if (g.has_meta("blocks")) names = g.meta_json("blocks").get<std::vector<std::string>>();
  Network net([&] { return make(g); }, names);
  NoGrad off;
  check_scales(net, g, names[0]);
  const Tensor images = fill("input", {2, 3, 224, 224}, 0, 2);
  // Where the published code in float64 leaves its own float32 within the first block, that is the bound, and
  // there are more ties than can be told apart.
  const double apart = g.meta_json("float64_block_rel_l2").at(0);
  const bool comparable = apart < 1e-4;
  size_t block = 0;
  if (comparable)
    block = net.walk(images, [&](size_t b) { return distance(net, g, b); });
  else
    net.forward(images);
  const size_t moved = net.moved();
  std::printf("%zu of %zu blocks equal the file's, with %zu ties moved\n", block, net.depth, moved);
  if (comparable) {
    EXPECT_GE(block, 1U) << "the first block must be the file's";
  } else {
    const std::vector<float> ours = first_values(net.outputs[0]),
                             theirs = g.tensor("block_probe").select(0, 0).to_vector<float>();
    double difference = 0, size = 0;
    for (size_t i = 0; i < theirs.size(); ++i)
      difference += std::pow(double(ours[i]) - theirs[i], 2), size += std::pow(double(theirs[i]), 2);
    EXPECT_LE(std::sqrt(difference / size), 3 * apart) << "the first block";
  }
  EXPECT_LE(moved, 8U) << "more ties than float rounding explains";
  const Tensor logits = net.forward(images);
  const std::vector<float> ours = logits.to_vector<float>(), theirs = g.tensor("logits").to_vector<float>();
  double dot = 0, a = 0, b = 0, largest = 0, worst = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    dot += double(ours[i]) * theirs[i], a += double(ours[i]) * ours[i], b += double(theirs[i]) * theirs[i];
    largest = std::max(largest, std::fabs(double(theirs[i])));
    worst = std::max(worst, std::fabs(double(ours[i]) - theirs[i]));
  }
  std::printf("cosine %.6f, largest difference %.3g of %.3g\n", dot / std::sqrt(a * b), worst, largest);
  EXPECT_GE(dot / std::sqrt(a * b), 1 - 3 * (1 - std::stod(g.meta("float64_cosine"))));
  EXPECT_LE(worst, 3 * std::stod(g.meta("float64_rel_diff")) * largest);
}

TEST(VvtqGolden, FullDeitTinyW4A4) {
  check_full_model("vvtq/full_deit_t_w4a4.safetensors", [](const GoldenFile&) {
    VitConfig c = vit_config("deit_tiny_patch16_224");
    c.split_qkv = true;
    return std::make_unique<VisionTransformer>(c, 0);
  });
}

TEST(VvtqGolden, FullSwinTinyW4A4) {
  check_full_model("vvtq/full_swin_t_w4a4.safetensors", [](const GoldenFile&) {
    SwinConfig c = swin_configs()[0];
    c.split_qkv = true;
    return std::make_unique<SwinTransformer>(c, 0);
  });
}

TEST(VvtqGolden, FullSretTinyW4A4) {
  check_full_model("vvtq/full_sret_t_w4a4.safetensors", [](const GoldenFile& g) {
    auto sret = std::make_unique<SretTransformer>(sret_configs()[0], 0);
    sret->order = [&g](int64_t k, int64_t) { return g.tensor("perm" + std::to_string(k)).cast(DType::i64); };
    return sret;
  });
}

}  // namespace
}  // namespace lowbit
