// Whole float models against the published code's logits, features and single blocks.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "nn/models/vit.h"
#include "tests/support/golden.h"
#include "tests/support/model.h"

namespace lowbit {
namespace {

using namespace test;

Tensor rms(const Tensor& x) {  // [B, ...] → [B]
  Tensor r = Tensor::empty({x.size(0)});
  for (int64_t b = 0; b < x.size(0); ++b) {
    double sum = 0;
    const std::vector<float> v = x.select(0, b).to_vector<float>();
    for (float e : v) sum += double(e) * e;
    r.data<float>()[b] = float(std::sqrt(sum / double(v.size())));
  }
  return r;
}

void check_evolq(const std::string& file, const std::string& model) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  VisionTransformer vit(vit_config(model), 0);
  fill_state(placed(vit));
  vit.eval();
  NoGrad off;
  const Tensor images = fill("fs.images", {4, 3, 224, 224}, 0, 2);
  expect_close_to_largest(vit(Variable(images)).data(), g.tensor("fp"), 1e-3, model);
}

TEST(VitGolden, EvolqDeitTiny) { check_evolq("evolq/full_deit_tiny.safetensors", "deit_tiny_patch16_224"); }
TEST(VitGolden, EvolqVitBase) { check_evolq("evolq/full_vit_base.safetensors", "vit_base_patch16_224"); }

TEST(VitGolden, VvtqDeitTiny) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/full_deit_t_fp.safetensors");
  const GoldenFile g(path);
  VitConfig c = vit_config("deit_tiny_patch16_224");
  c.split_qkv = c.clamp_gelu = true;
  VisionTransformer vit(c, 0);
  fill_state(placed(vit));
  vit.eval();
  NoGrad off;
  const auto norm = probe(vit, "norm.out");
  const Tensor logits = vit(Variable(fill("input", {2, 3, 224, 224}, 0, 2))).data();
  expect_close_to_largest(norm->last.data().select(1, 0), g.tensor("norm_cls"), g.rtol(), "norm_cls");
  expect_close_to_largest(logits, g.tensor("logits"), g.rtol(), "logits");
}

void check_ofq_blocks(VisionTransformer& vit, const GoldenFile& g, const std::string& name,
                      const nlohmann::json& settings) {
  for (const auto& [block, local] : settings.at("local").items()) {
    auto& b = dynamic_cast<VitBlock&>(vit.at(block));
    const Tensor y = b(Variable(fill_expression(local.at("input")))).data();
    const std::string at = name + "/local/" + block;
    const Tensor first = g.tensor(at + "/first_tokens");
    expect_close_to_largest(y.select(0, 0).slice(0, 0, first.size(0)), first, 1e-4, at);
    double sum = 0;
    for (float v : y.to_vector<float>()) sum += double(v) * v;
    expect_close_to_largest(Tensor::scalar(float(std::sqrt(sum))), g.tensor(at + "/norm"), 1e-4,
                            at + "/norm");
  }
}

void check_ofq(const std::string& file) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  for (const auto& [name, settings] : g.cases()) {
    VisionTransformer vit(vit_config(settings.at("model")), 0);
    fill_state(placed(vit));
    vit.eval();
    NoGrad off;
    std::vector<std::shared_ptr<Probe>> outputs;
    for (int64_t i = 0; i < vit.config().depth; ++i)
      outputs.push_back(probe(vit, "blocks." + std::to_string(i) + ".mlp_sum"));
    const Variable input{fill_expression(settings.at("input"))};
    const VisionTransformer::Heads heads = vit.heads(input);
    expect_close_to_largest(heads.cls.data(), g.tensor(name + "/out/cls"), 1e-4, name + " cls");
    expect_close_to_largest(heads.dist.data(), g.tensor(name + "/out/dist"), 1e-4, name + " dist");
    expect_close_to_largest(vit(input).data(), g.tensor(name + "/out/eval_logits"), 1e-4, name + " logits");
    for (size_t i = 0; i < outputs.size(); ++i) {
      const std::string at = name + "/layer/blocks." + std::to_string(i);
      const Tensor y = outputs[i]->last.data();  // [B, N, C]
      const Tensor first = g.tensor(at + "/first_tokens");
      expect_close_to_largest(y.slice(0, 0, 1).slice(1, 0, first.size(1)).slice(2, 0, first.size(2)), first,
                              1e-4, at);
      expect_close_to_largest(rms(y), g.tensor(at + "/rms_per_image"), 1e-4, at + " rms");
    }
    check_ofq_blocks(vit, g, name, settings);
  }
}

TEST(VitGolden, OfqDeitTinyDistilled) { check_ofq("ofq/full_deit_t_float.safetensors"); }
TEST(VitGolden, OfqDeitSmallDistilled) { check_ofq("ofq/full_deit_s_float.safetensors"); }

/// Logits of the pretrained DeiT-Tiny from stored pixels; the shipped half-precision file stays close to it.
void check_pretrained(const std::string& weights, double bound) {
  LOWBIT_DATA_OR_SKIP(reference, "weights/deit_tiny_reference.safetensors");
  const GoldenFile g(reference);
  VisionTransformer vit(vit_config("deit_tiny_patch16_224"), 0);
  placed(vit).load(load_safetensors(weights).tensors);
  vit.eval();
  NoGrad off;
  for (const std::string set : {"val", "train"}) {
    const Tensor pixels = g.tensor(set + ".pixels").to(Device{});  // u8 [8, 224, 224, 3]
    Tensor x = pixels.permute({0, 3, 1, 2}).cast(DType::f32).packed();
    float* p = x.data<float>();
    for (int64_t i = 0; i < x.numel(); ++i) {
      const int64_t c = i / (224 * 224) % 3;
      p[i] = (p[i] / 255.f - vit.config().mean[c]) / vit.config().std[c];
    }
    expect_close(vit(Variable(x.to(test_device()))).data(), g.tensor(set + ".logits").slice(0, 0, 8), 0,
                 bound, set + " logits");
  }
}

TEST(VitGolden, PretrainedDeitTinyReproducesLogits) {
  LOWBIT_DATA_OR_SKIP(weights, "weights/deit_tiny_patch16_224.safetensors");
  check_pretrained(weights, 2e-3);
}

TEST(VitGolden, ShippedHalfPrecisionWeightsStayClose) {
  check_pretrained(std::string(LOWBIT_SOURCE_DIR) + "/data/samples/deit_tiny_patch16_224.f16.safetensors",
                   2e-2);
}

}  // namespace
}  // namespace lowbit
