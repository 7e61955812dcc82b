#include "train/checkpoint/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tensor/io/npy.h"
#include "tensor/io/torch_file.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;
using testing::ElementsAre;
using testing::HasSubstr;

TensorMap attention(bool split) {
  TensorMap m;
  const Tensor w = test::fill("w", {6, 2}, 0, 1), b = test::fill("b", {6}, 0, 1);
  if (!split) return {{"blocks.0.attn.qkv.weight", w}, {"blocks.0.attn.qkv.bias", b}};
  const char* names[] = {"q", "k", "v"};
  for (int i = 0; i < 3; ++i) {
    const std::string p = std::string("blocks.0.attn.proj_") + names[i];
    m[p + ".weight"] = w.slice(0, 2 * i, 2 * i + 2).packed();
    m[p + ".bias"] = b.slice(0, 2 * i, 2 * i + 2).packed();
  }
  return m;
}

WeightFile file_of(TensorMap tensors) {
  WeightFile f;
  f.path = "file";
  f.tensors = std::move(tensors);
  return f;
}

void expect_equal(const TensorMap& a, const TensorMap& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, t] : a) EXPECT_TRUE(b.count(name) && equal_bits(t, b.at(name))) << name;
}

TEST(Weights, FusedAndSplitAttentionConvertBothWays) {
  for (bool split : {false, true}) {
    const WeightMatch m = match_weights(attention(split), file_of(attention(!split)));
    EXPECT_TRUE(m.complete()) << m.table();
    expect_equal(m.matched, attention(split));
  }
  TensorMap two = attention(true);
  two.erase("blocks.0.attn.proj_k.bias");
  const WeightMatch m = match_weights(attention(false), file_of(two));
  EXPECT_THAT(m.missing, ElementsAre("blocks.0.attn.qkv.bias"));
  EXPECT_THAT(m.unexpected, ElementsAre("blocks.0.attn.proj_q.bias", "blocks.0.attn.proj_v.bias"));
}

TEST(Weights, PublishedSwinFilesFit) {
  const Tensor w = test::fill("w", {2, 2}, 0, 1);
  const TensorMap vvtq = {{"patch_embed.norm.weight", w}, {"layers.0.blocks.1.attn.proj.weight", w}};
  TensorMap file = vvtq;
  file["patch_embed.quant.alpha"] = file["layers.0.blocks.1.attn_mask"] = w;
  const WeightMatch m = match_weights(vvtq, file_of(file));
  EXPECT_TRUE(m.complete()) << m.table();
  const TensorMap ofq = {{"features.1.0.mlp.fc1.weight", w}, {"features.1.0.mlp.fc2.weight", w}};
  const TensorMap torchvision = {{"features.1.0.mlp.0.weight", w}, {"features.1.0.mlp.3.weight", w}};
  EXPECT_TRUE(match_weights(ofq, file_of(torchvision)).complete());
  TensorMap merging = ofq;  // the bias that quantizing adds
  merging["features.2.reduction.weight"] = merging["features.2.reduction.bias"] = w;
  EXPECT_THAT(match_weights(merging, file_of(torchvision)).missing,
              ElementsAre("features.2.reduction.bias", "features.2.reduction.weight"));
  file = torchvision;
  file["features.2.reduction.weight"] = w;
  const WeightMatch added = match_weights(merging, file_of(file));
  EXPECT_TRUE(added.complete()) << added.table();
  EXPECT_EQ(added.matched.at("features.2.reduction.bias").to_vector<float>(), std::vector<float>(4, 0));
  EXPECT_TRUE(match_weights(torchvision, file_of(torchvision)).complete());
  EXPECT_THAT(match_weights(ofq, file_of({{"patch_embed.quant.alpha", w}})).unexpected,
              ElementsAre("patch_embed.quant.alpha"));
}

TEST(Weights, FusedAttentionFillsAReparameterizedOne) {
  const TensorMap fused = attention(false);
  const Tensor all = fused.at("blocks.0.attn.qkv.weight"), bias = fused.at("blocks.0.attn.qkv.bias");
  const int64_t rows = all.size(0) / 3;
  TensorMap model;
  for (const char* part : {"q", "k", "v"})
    model[std::string("blocks.0.attn.") + part + ".weight"] = Tensor::zeros({rows, all.size(1)});
  model["blocks.0.attn.v.bias"] = Tensor::zeros({rows});
  const WeightMatch m = match_weights(model, file_of(fused));
  EXPECT_TRUE(m.missing.empty());
  EXPECT_TRUE(m.unexpected.empty());
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(equal_bits(m.matched.at(std::string("blocks.0.attn.") + "qkv"[i] + ".weight"),
                           all.slice(0, i * rows, (i + 1) * rows).packed()));
  EXPECT_TRUE(equal_bits(m.matched.at("blocks.0.attn.v.bias"), bias.slice(0, 2 * rows, 3 * rows).packed()));
}

TEST(Weights, OneShiftOfOfqBecomesThree) {
  const Tensor shift = test::fill("s", {6}, 0, 1);
  TensorMap model;
  for (const char part : {'q', 'k', 'v'})
    model[std::string("blocks.0.attn.move_") + part + "_b4.bias"] = Tensor::zeros({2});
  const WeightMatch m = match_weights(model, file_of({{"blocks.0.attn.move_qkv_b4.bias", shift}}));
  EXPECT_TRUE(m.complete());
  EXPECT_TRUE(equal_bits(m.matched.at("blocks.0.attn.move_k_b4.bias"), shift.slice(0, 2, 4).packed()));
}

TEST(Weights, ReportsEveryProblemAtOnce) {
  const TensorMap model = {{"a", Tensor::zeros({2})}, {"b", Tensor::zeros({3})}, {"c", Tensor::zeros({1})}};
  const WeightMatch m = match_weights(
      model,
      file_of({{"b", Tensor::zeros({4})}, {"c", Tensor::full(Shape{}, 2)}, {"d", Tensor::zeros({1})}}));
  EXPECT_EQ(m.table(), "missing     a\nunexpected  d\nmismatched  b  model [3]  file [4]\n");
  EXPECT_EQ(m.matched.at("c").shape(), (Shape{1}));
  try {
    require_match(m, "f.pth", false);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), HasSubstr("1 missing, 1 unexpected, 1 of another shape; --allow-partial"));
  }
  EXPECT_NO_THROW(require_match(m, "f.pth", true));
  EXPECT_THROW(require_match(match_weights(model, file_of({{"z", Tensor::zeros({1})}})), "f", true), Error);
}

TEST(Weights, AdaptsShapesThroughTheCallback) {
  const TensorMap model = {{"pos_embed", Tensor::zeros({1, 4, 1})}};
  const AdaptTensor repeat = [](const std::string& name, const Tensor& t, const Shape& target) {
    return name == "pos_embed" ? t.expand(target).packed() : Tensor{};
  };
  const WeightMatch m = match_weights(model, file_of({{"pos_embed", Tensor::full({1, 1, 1}, 3)}}), repeat);
  EXPECT_TRUE(m.complete());
  EXPECT_THAT(m.matched.at("pos_embed").to_vector<float>(), ElementsAre(3, 3, 3, 3));
}

TEST(Weights, RenamesOfOtherVersions) {
  const Tensor one = Tensor::full({1}, 1), two = Tensor::full({1}, 2), three = Tensor::full({1}, 3);
  auto matched = [](const TensorMap& model, const TensorMap& file) {
    const WeightMatch m = match_weights(model, file_of(file));
    EXPECT_TRUE(m.complete()) << m.table();
    return m.matched;
  };
  expect_equal(matched({{"head.weight", one}}, {{"head.fc.weight", two}}), {{"head.weight", two}});
  expect_equal(matched({{"e.LayerNorm.weight", one}, {"e.LayerNorm.bias", one}},
                       {{"e.LayerNorm.gamma", two}, {"e.LayerNorm.beta", three}}),
               {{"e.LayerNorm.weight", two}, {"e.LayerNorm.bias", three}});
  expect_equal(matched({{"b.ls1.gamma", one}}, {{"b.gamma_1", two}, {"b.attn_mask", three}}),
               {{"b.ls1.gamma", two}});
  expect_equal(matched({{"layers.0.downsample.w", one}, {"layers.1.downsample.w", one}},
                       {{"layers.1.downsample.w", two}, {"layers.2.downsample.w", three}}),
               {{"layers.0.downsample.w", two}, {"layers.1.downsample.w", three}});
}

TEST(Weights, PrefixesAndHalfPrecision) {
  const TempDir dir;
  const Tensor w = test::fill("w", {3}, 0, 1);
  save_safetensors(dir / "a",
                   {{"module.model.x.w", w.cast(DType::f16)}, {"module.model.y", w.cast(DType::bf16)}});
  const WeightFile f = load_weights(dir / "a");
  EXPECT_TRUE(equal_bits(f.tensors.at("x.w"), w.cast(DType::f16).cast(DType::f32)));
  EXPECT_TRUE(equal_bits(f.tensors.at("y"), w.cast(DType::bf16).cast(DType::f32)));
  EXPECT_EQ(load_weights(dir / "a", {"", false}).tensors.at("x.w").dtype(), DType::f16);
  save_safetensors(dir / "b", {{"model.x", w}, {"y", w}});
  EXPECT_TRUE(load_weights(dir / "b").tensors.count("model.x"))
      << "a prefix that not all names have belongs to the name";
}

TEST(Weights, FormatIsFoundByContent) {
  const TempDir dir;
  const Tensor w = test::fill("w", {3}, 0, 1);
  save_torch(dir / "a.safetensors", {{"w", w}});
  save_safetensors(dir / "a.pth", {{"w", w}});
  save_npy(dir / "w", w);
  EXPECT_EQ(load_weights(dir / "a.safetensors").format, FileFormat::torch);
  EXPECT_EQ(load_weights(dir / "a.pth").format, FileFormat::safetensors);
  EXPECT_EQ(load_weights(dir / "w").format, FileFormat::npy);
  for (const char* name : {"a.safetensors", "a.pth", "w"})
    EXPECT_TRUE(equal_bits(load_weights(dir / name).tensors.at("w"), w)) << name;
  test::write_file(dir / "text", "this is not a weight file");
  test::write_file(dir / "empty", "");
  for (const char* name : {"text", "empty", "none"}) {
    try {
      load_weights(dir / name);
      ADD_FAILURE() << name;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      EXPECT_THAT(e.what(), HasSubstr(dir / name));
    }
  }
}

TEST(Weights, GoldenCheckpoints) {
  LOWBIT_GOLDEN_OR_SKIP(quantized, "vvtq/fkd/micro_checkpoint.pth.tar");
  LOWBIT_GOLDEN_OR_SKIP(plain, "vvtq/fkd/micro_fp.pth");
  const WeightFile q = load_weights(quantized), f = load_weights(plain);
  EXPECT_EQ(q.section, "state_dict");
  EXPECT_EQ(q.metadata.at("epoch"), "12");
  EXPECT_EQ(q.metadata.at("arch"), "resnet50");
  EXPECT_EQ(f.section, "model");
  EXPECT_TRUE(f.tensors.count("cls_token"));
  EXPECT_TRUE(q.tensors.count("cls_token"));
  // The quantized checkpoint holds the float model's names and more: it loads into it with --allow-partial
  // only.
  const WeightMatch m = match_weights(f.tensors, q);
  EXPECT_TRUE(m.missing.empty()) << m.table();
  EXPECT_FALSE(m.unexpected.empty());
  EXPECT_TRUE(m.mismatched.empty()) << m.table();
  EXPECT_THAT(load_weights(quantized, {"optimizer.state", true}).tensors,
              testing::Contains(testing::Key("0.exp_avg")));
  EXPECT_THROW(load_weights(quantized, {"model_ema", true}), Error);
}

TEST(Weights, PretrainedDeitLoads) {
  LOWBIT_DATA_OR_SKIP(path, "weights/deit_tiny_patch16_224.safetensors");
  EXPECT_EQ(load_weights(path).tensors.size(), 152u);
}

}  // namespace
}  // namespace lowbit
