// Full-size quantized DeiT and Swin of OFQ against the published code: every block alone on a given input,
// the scales of a first forward, and the whole network with its ties resolved.

#include <gtest/gtest.h>

#include <cinttypes>
#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/pointwise.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "tests/support/ofq.h"
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

std::unique_ptr<ImageModel> plain_model(const Json& s) {
  if (s.at("model") == "swin_t") {
    SwinConfig c = swin_configs()[0];
    c.layout = SwinLayout::ofq, c.qk_reparam = s.at("qkr");
    return std::make_unique<SwinTransformer>(c, 0);
  }
  VitConfig c = vit_config(s.at("model"));
  c.qk_reparam = s.at("qkr");
  return std::make_unique<VisionTransformer>(c, 0);
}

/// Names of the blocks and patch mergings in their order.
std::vector<std::string> block_names(ImageModel& model) {
  std::vector<std::string> names;
  for (const auto& [name, m] : model.modules())
    if (dynamic_cast<VitBlock*>(m) || dynamic_cast<SwinBlock*>(m) || dynamic_cast<PatchMerging*>(m))
      names.push_back(name);
  return names;
}

TieNetwork published_network(const Json& s) {
  auto model = plain_model(s), twin = plain_model(s);
  SchemeOptions o = bits_of(s);
  o.qk_reparam = s.at("qkr");
  install(*model, load_scheme("ofq", o));
  placed(*model), placed(*twin);
  const bool separate = !o.qk_reparam;  // OFQ shifts v by its own parameter then
  for (auto& [name, t] : model->state()) {
    if (name.ends_with(".clip_val"))
      t.fill(2);
    else if (t.dtype() == DType::f32 && !name.ends_with(".s") && !name.ends_with(".signed"))
      t.copy_from(separate ? filled(name, t.shape()) : fill_parameter(name, t.shape()));
  }
  for (auto& [name, t] : twin->state())
    if (t.dtype() == DType::f32) t.copy_from(fill_parameter(name, t.shape()));
  std::vector<std::string> blocks = block_names(*twin);
  return {std::move(model), std::move(twin), std::move(blocks)};
}

Tensor run_block(Module& m, const Tensor& x) {
  if (auto* b = dynamic_cast<VitBlock*>(&m)) return (*b)(Variable(x)).data();
  if (auto* b = dynamic_cast<SwinBlock*>(&m)) return (*b)(Variable(x)).data();
  return dynamic_cast<PatchMerging&>(m)(Variable(x)).data();
}

/// [B, tokens, C] of any output.
Tensor as_tokens(const Tensor& y) {
  return y.packed().reshape({y.size(0), y.numel() / y.size(0) / y.size(-1), y.size(-1)});
}

double rms(const Tensor& t) {
  double squares = 0;
  for (const float v : t.to_vector<float>()) squares += double(v) * v;
  return std::sqrt(squares / double(t.numel()));
}

struct Difference {
  double worst, l2;  ///< relative to the largest value of the file's, to its norm
};
Difference difference(const Tensor& ours, const Tensor& theirs) {
  const std::vector<float> a = ours.to_vector<float>(), b = theirs.to_vector<float>();
  double worst = 0, largest = 0, squares = 0, sum = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = std::fabs(double(a[i]) - b[i]);
    worst = std::max(worst, d), largest = std::max(largest, std::fabs(double(b[i])));
    squares += d * d, sum += double(b[i]) * b[i];
  }
  return {worst / largest, std::sqrt(squares / sum)};
}

/// What the file allows for a block on its own: with a value next to a boundary it may round the other way.
double local_tolerance(double margin, int bits) { return margin > 1e-6 ? 1e-4 : bits >= 3 ? 5e-3 : 2e-2; }

constexpr double kClose = 1e-4, kSameL2 = 1e-5, kSameSize = 1e-6;

/// What decides the blocks of full_swin_t_qkr_w8a8 where our sums round as those of AVX2 do: values of M, of
/// which a block has up to 14 million. Found by the disabled test below, which prints them.
const std::vector<KnownTie> kKnownTies = {
    {"features.5.3.attn.qk.weight", 301513, 0.00510803098F},
    {"features.7.0.attn.qk.weight", 2877543, -0.00677968282F},
    {"features.7.0.attn.qk.weight", 4764449, 0.00492665591F},
    {"features.7.0.attn.qk.weight", 5761106, 0.00377161871F},
    {"features.7.1.attn.qk.weight", 9636958, -0.0118045518F},
    {"features.7.1.attn.qk.weight", 10203905, -0.00455719698F},
};

/// At 8 bits dozens of values of a block lie next to a boundary, too many to resolve all.
bool is_fine(const Json& s) { return s.at("abits").get<int>() >= 8; }

/// Every block alone. Where ties cost more than the file allows for one, they are moved until it is within
/// kClose, at 8 bits until it is what the file allows; those of weights stay moved, those of this input do
/// not. Where the search may not go on to its end, a block that it gave up is only held to a tenth.
void check_blocks(TieNetwork& net, const GoldenFile& g, const std::string& name, const Json& s) {
  size_t moved = 0, beyond = 0;
  const bool fine = is_fine(s);
  for (const auto& [block, local] : s.at("local").items()) {
    SCOPED_TRACE(block);
    Module& m = net.twin->at(block);
    const std::string at = name + "/local/" + block;
    const Tensor x = fill_expression(local.at("input")), first = g.tensor(at + "/first_tokens");
    Tensor y;
    const auto run = [&] {
      net.rewind();
      y = run_block(m, x);
      return difference(as_tokens(y).select(0, 0).slice(0, 0, first.size(0)), first);
    };
    const double tolerance = local_tolerance(local.at("margin"), s.at("abits"));
    const double before = run().worst, norm = rms(y) * std::sqrt(double(y.numel()));
    EXPECT_NEAR(norm / g.tensor(at + "/norm").item<float>(), 1, tolerance);
    beyond += before > tolerance;
    const size_t earlier = net.moved();
    if (before > tolerance) {
      // Every tie that is moved back takes its share from the sum of squares; at 8 bits there are too many to
      // find all.
      const auto error = [&] {
        const Difference d = run();
        if (!fine) return d.l2 / kSameL2;
        return d.worst <= tolerance ? 0 : std::max(d.l2 / kSameL2, 1.01);
      };
      const bool found = net.resolve(
          error, [] { return 0; }, [] { return INT64_MAX; });
      const bool gave_up = !found && net.evaluations < INT64_MAX;
      if (gave_up) std::printf("%s: not resolved in %" PRId64 " trials\n", at.c_str(), net.evaluations);
      EXPECT_LE(run().worst, gave_up ? 0.1 : fine ? tolerance : kClose);
    }
    moved += net.moved() - earlier;
    for (const auto& breaker : net.breakers) {
      for (const TieBreaker::Call& call : breaker->calls)
        for (const auto& [i, tie] : call.moved)
          if (fine && net.known.empty())
            std::printf("{\"%s\", %" PRId64 ", %.9gF},\n", breaker->slot.c_str(), i, double(tie.level));
      if (!breaker->slot.ends_with(".weight")) breaker->calls.clear();
    }
  }
  std::printf("%s: %zu blocks, %zu of them with ties that cost more than the file allows, %zu ties moved\n",
              name.c_str(), s.at("local").size(), beyond, moved);
  EXPECT_LE(beyond, s.at("local").size() / 2);
}

/// Compares scales with those of the file's first forward, which the network then takes.
void check_scales(TieNetwork& net, const GoldenFile& g, const std::string& name) {
  for (auto& [own, t] : net.quantized->state()) {
    if (!own.ends_with(".s") && !own.ends_with(".signed")) continue;
    const Tensor theirs = g.tensor(name + "/s/" + own);
    // Up to the first attention nothing is behind a value that may round the other way.
    for (const char* early : {"patch_embed", "features.0.", "blocks.0.attn.quant_x", "blocks.0.attn.qkv",
                              "features.1.0.attn.quant_x"})
      if (own.starts_with(early)) expect_close(t, theirs, 1e-4, 0, own);
    t.copy_from(theirs);
  }
}

/// Of two tokens of the first image, from those that the file has of a block.
double token_difference(const TieNetwork& net, const GoldenFile& g, const std::string& at, size_t block) {
  const Tensor y = as_tokens(net.outputs.at(block)), part = g.tensor(at + "/first_tokens");
  const Tensor first = part.reshape({part.size(-2), part.size(-1)});
  return difference(y.select(0, 0).slice(0, 0, first.size(0)).slice(1, 0, first.size(1)), first).worst;
}

/// How far the output of a block in the whole network is from what the file has of it: two tokens of the
/// first image, root mean square and mean of each image, over what float rounding explains. At most 1: the
/// same.
double distance(const TieNetwork& net, const GoldenFile& g, const std::string& at, size_t block) {
  const Tensor y = as_tokens(net.outputs.at(block));
  const auto sizes = g.tensor(at + "/rms_per_image").to_vector<float>(),
             means = g.tensor(at + "/mean_per_image").to_vector<float>();
  double far = token_difference(net, g, at, block) / kClose;
  for (size_t b = 0; b < sizes.size(); ++b) {
    const Tensor image = y.select(0, int64_t(b));
    double sum = 0;
    for (const float v : image.to_vector<float>()) sum += v;
    const double mean = sum / double(image.numel());
    far = std::max({far, std::fabs(rms(image) / sizes[b] - 1) / kSameSize,
                    std::fabs(mean - means[b]) / (kSameSize * sizes[b])});
  }
  return far;
}

/// The tokens that the file has of the first block in the whole network.
void check_first_layer(TieNetwork& net, const GoldenFile& g, const std::string& name, const Tensor& images) {
  net.forward(images, 0);
  EXPECT_LE(token_difference(net, g, name + "/layer/" + net.blocks[0], 0), kClose);
  net.rewind();
}

/// The whole network, block by block. At 8 bits, where only the ties of blocks alone are resolved, the stored
/// tokens behind the first block must be the file's (other tokens already round the other way there), and the
/// logits are compared as a whole: by the file's own words one value that rounds the other way changes them
/// by 5 to 50 %.
void check_network(TieNetwork& net, const GoldenFile& g, const std::string& name, const Json& s) {
  const Tensor images = fill_expression(s.at("input"));
  const bool fine = is_fine(s);
  net.run_block = [&](const std::string& b, const Tensor& x) { return run_block(net.twin->at(b), x); };
  if (fine) {
    check_first_layer(net, g, name, images);
  } else {
    const size_t equal =
        net.walk(images, [&](size_t b) { return distance(net, g, name + "/layer/" + net.blocks[b], b); });
    std::printf("%s: %zu of %zu blocks of the whole network equal the file's, %zu ties moved\n", name.c_str(),
                equal, net.depth, net.moved());
    EXPECT_EQ(equal, net.depth);
  }
  net.rewind();
  const ImageModel::Heads heads = net.twin->heads(Variable(images));
  const auto check = [&](const Variable& ours, const char* what) {
    const Tensor theirs = g.tensor(name + "/out/" + what);
    if (fine) {
      EXPECT_LE(difference(ours.data(), theirs).l2, 0.2) << what;
    } else {
      expect_close_to_largest(ours.data(), theirs, kClose, what);
    }
  };
  if (!heads.dist.defined()) return check(heads.cls, "eval_logits");
  check(heads.cls, "cls"), check(heads.dist, "dist");
  check(scale(add(heads.cls, heads.dist), 0.5), "eval_logits");
}

enum class Part { blocks, both };

void check_full(const std::string& file, Part part, const std::vector<KnownTie>& known = {},
                int64_t evaluations = INT64_MAX) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  const NoGrad off;
  for (const auto& [name, s] : g.cases()) {
    SCOPED_TRACE(name);
    TieNetwork net = published_network(s);
    (void)(*net.quantized)(Variable(fill_expression(s.at("init_input"))));
    check_scales(net, g, name);
    net.known = known, net.evaluations = evaluations;
    check_blocks(net, g, name, s);
    if (part == Part::both)
      check_network(net, g, name, s);
    else
      check_first_layer(net, g, name, fill_expression(s.at("input")));
  }
}

TEST(OfqGolden, FullDeitTinyPlainW2A2) { check_full("ofq/full_deit_t_plain_w2a2.safetensors", Part::both); }
TEST(OfqGolden, FullDeitTinyW2A2) { check_full("ofq/full_deit_t_qkr_w2a2.safetensors", Part::both); }
TEST(OfqGolden, FullDeitTinyW4A4) { check_full("ofq/full_deit_t_qkr_w4a4.safetensors", Part::both); }
TEST(OfqGolden, FullDeitTinyW8A8) { check_full("ofq/full_deit_t_qkr_w8a8.safetensors", Part::both); }
TEST(OfqGolden, FullDeitSmallW2A2) { check_full("ofq/full_deit_s_qkr_w2a2.safetensors", Part::both); }
TEST(OfqGolden, FullDeitSmallW3A3) { check_full("ofq/full_deit_s_qkr_w3a3.safetensors", Part::both); }
TEST(OfqGolden, FullSwinTinyW2A2) { check_full("ofq/full_swin_t_qkr_w2a2.safetensors", Part::both); }
TEST(OfqGolden, FullSwinTinyW3A3) { check_full("ofq/full_swin_t_qkr_w3a3.safetensors", Part::blocks); }
/// A search without the known ties takes nine minutes, of which these trials are about one.
TEST(OfqGolden, FullSwinTinyW8A8) {
  check_full("ofq/full_swin_t_qkr_w8a8.safetensors", Part::blocks, kKnownTies, 400);
}
/// By hand, with --gtest_also_run_disabled_tests.
TEST(OfqGolden, DISABLED_FullSwinTinyW8A8WithTies) {
  check_full("ofq/full_swin_t_qkr_w8a8.safetensors", Part::blocks);
}

}  // namespace
}  // namespace lowbit::test
