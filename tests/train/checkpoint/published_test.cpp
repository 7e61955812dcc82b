// Quantized checkpoints in the form in which VVTQ's and OFQ's trainers save them load into our quantized
// models: names, wrappers, prefixes, shared modules and the state of every quantizer.

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "tensor/io/torch_file.h"
#include "tests/support/ofq.h"
#include "tests/support/temp_dir.h"
#include "tests/support/vvtq.h"
#include "train/step/build.h"

namespace lowbit::test {
namespace {

/// Loads strictly; then every floating tensor is the file's. `expected` by our names.
void check_loads(ImageModel& model, const std::string& path, const TensorMap& expected) {
  for (auto& [name, t] : model.state())
    if (t.dtype() == DType::f32 && !name.ends_with("attn_mask")) {
      Tensor value = t;
      value.fill(-7);
    }
  (void)load_into(model, load_weights(path), false, false);
  for (const auto& [name, t] : model.state()) {
    if (t.dtype() != DType::f32 || name.ends_with("attn_mask")) continue;
    ASSERT_TRUE(expected.count(name)) << name;
    EXPECT_EQ(t.to_vector<float>(), expected.at(name).to_vector<float>()) << name;
  }
  for (const auto& [name, q] : quantizers(model)) EXPECT_TRUE(q->initialised()) << name;
}

TEST(PublishedGolden, VvtqCheckpointOfATrainingRun) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd/micro_checkpoint.pth.tar");
  LOWBIT_GOLDEN_OR_SKIP(run, "vvtq/run_micro_w4a4.safetensors");
  VitConfig c;
  c.width = 24, c.depth = 2, c.heads = 3, c.mlp_ratio = 2, c.split_qkv = true;
  const auto model = quantized(c, {.wbits = 4, .abits = 4});
  const GoldenFile g(run);
  TensorMap expected;
  for (const std::string& key : g.names_with_prefix("final.")) expected[key.substr(6)] = g.tensor(key);
  check_loads(*model, path, expected);
}

/// Parameters and buffers of a small network, saved as a data-parallel run does. A block of SReT that runs
/// twice is in such a file under both its names.
void check_vvtq(const std::string& file, std::unique_ptr<ImageModel> (*make)(const GoldenFile&)) {
  LOWBIT_GOLDEN_OR_SKIP(path, file);
  const GoldenFile g(path);
  const auto model = make(g);
  TensorMap expected;
  for (const char* prefix : {"param.", "buffer."})
    for (const std::string& key : g.names_with_prefix(prefix))
      expected[key.substr(std::string(prefix).size())] = g.tensor(key);
  for (const auto& [name, t] : model->state()) {
    const size_t at = name.find(".blocks.");
    if (expected.count(name) || !name.starts_with("transformers.")) continue;
    const size_t end = name.find('.', at + 8);
    const int second = std::stoi(name.substr(at + 8, end - at - 8));
    expected[name] = expected.at(str_cat(name.substr(0, at + 8), second - 2, name.substr(end)));
  }
  TensorMap saved;
  for (const auto& [name, t] : expected) saved["module." + name] = t;
  const TempDir dir;
  save_torch(dir / "checkpoint.pth.tar", saved);
  check_loads(*model, dir / "checkpoint.pth.tar", expected);
}

TEST(PublishedGolden, VvtqDeit) { check_vvtq("vvtq/model_deit_w4a4.safetensors", small_deit); }
TEST(PublishedGolden, VvtqSwin) { check_vvtq("vvtq/model_swin_w4a4.safetensors", small_swin); }
TEST(PublishedGolden, VvtqSret) { check_vvtq("vvtq/model_sret_w2a2.safetensors", small_sret); }

/// tests/train/checkpoint/ofq_swin.pth.tar is the fourth step of the golden trace, written by PyTorch 1.13 in
/// the form of timm's CheckpointSaver, which OFQ uses: epoch, arch, state_dict, optimizer, version, args (an
/// object of its own class) and metric.
TEST(PublishedGolden, OfqSwin) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/train_swin_w2a2.safetensors");
  SwinConfig c;
  c.image_size = 32, c.patch = 4, c.width = 12, c.window = 4, c.depths = {2}, c.heads = {2}, c.classes = 10;
  c.layout = SwinLayout::ofq, c.qk_reparam = true;
  SwinTransformer model(c, 0);
  Scheme scheme = load_scheme("ofq", {.wbits = 2, .abits = 2, .qk_reparam = true});
  scheme.rules.push_back({R"(features\.0\..*)", {{"quantizer", "none"}}});  // float in this file
  install(model, scheme);
  const std::string file = std::string(LOWBIT_SOURCE_DIR) + "/tests/train/checkpoint/ofq_swin.pth.tar";
  EXPECT_EQ(load_weights(file).section, "state_dict");
  EXPECT_EQ(load_weights(file).metadata.at("epoch"), "1");
  check_loads(model, file, part_of(GoldenFile(path), "kd/step_4/p/"));
}

/// Without reparameterization one shift of the file is three of ours.
TEST(PublishedGolden, OfqDeit) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_deit.safetensors");
  const GoldenFile g(path);
  int checked = 0;
  for (const auto& [name, s] : g.cases()) {
    if (s.at("wbits").is_null()) continue;
    SCOPED_TRACE(name);
    VitConfig c;
    c.image_size = s.at("img"), c.patch = s.at("patch_size"), c.width = s.at("C"), c.depth = s.at("depth");
    c.heads = s.at("H"), c.classes = s.at("ncls"), c.distilled = true, c.qk_reparam = s.at("qkr");
    VisionTransformer model(c, 0);
    SchemeOptions o = bits_of(s);
    o.qk_reparam = c.qk_reparam;
    Scheme scheme = load_scheme("ofq", o);
    scheme.rules.push_back({R"(patch_embed\..*)", {{"quantizer", "none"}}});
    install(model, scheme);
    TensorMap saved;
    for (const std::string& key : g.names_with_prefix(name + "/p/"))
      saved["module." + key.substr(name.size() + 3)] = g.tensor(key);
    const TempDir dir;
    save_torch(dir / "model_best.pth.tar", saved);
    check_loads(model, dir / "model_best.pth.tar", part_of(g, name + "/p/"));
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

}  // namespace
}  // namespace lowbit::test
