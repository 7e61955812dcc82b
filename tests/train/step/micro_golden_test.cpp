// Our trainer with --compat reference repeats the complete run of VVTQ's published trainer in
// vvtq/run_micro_w4a4: stored labels, passes, rates, regularizer, losses, weights.

#include <gtest/gtest.h>

#include <cmath>

#include "data/soft_label/replay_dataset.h"
#include "nn/models/vit.h"
#include "quant/quantizer/lsq_quantizer.h"
#include "quant/weight_regularizer.h"
#include "tests/train/step/recorded.h"
#include "train/schedule/epoch_plan.h"
#include "train/step/quantize.h"

namespace lowbit::test {
namespace {

/// The images and crops of the published run: sample 8·i + j is the j-th image of iteration i.
class RecordedCrops final : public Dataset {
 public:
  RecordedCrops(const GoldenFile& run, const std::string& root, int64_t crops)
      : images_(run.tensor("image_order").to(Device{})),
        which_(run.tensor("crop_order").to(Device{})),
        crops_(crops),
        root_(root),
        labels_(open_labels(root + "/soft_k5")) {
    for (const auto& f : run.meta_json("files")) files_.push_back(f);
  }
  int64_t size() const override { return images_.numel(); }
  std::vector<Field> fields() const override {
    return {{"image", Shape{crops_, 3, 224, 224}, DType::f32},
            {"label", Shape{}, DType::i64},
            {"target", Shape{crops_, 1000}, DType::f32}};
  }
  void read(int64_t index, const RngKey&, std::span<const View> out) const override {
    const auto image = size_t(value(images_, index));
    const std::string path = root_ + "/imagenet/train/" + files_.at(image);
    std::vector<uint8_t> bytes;
    lowbit::read_file(path, bytes);
    Image source, cut, crop(224, 224);
    decode_image(bytes, path, source);
    ResizeScratch scratch;
    std::vector<int64_t> which;
    for (int64_t k = 0; k < crops_; ++k) which.push_back(value(which_, index * 4 + k));
    const CropLabels l = labels_->read(label_key(path), which);
    for (int64_t k = 0; k < crops_; ++k) {
      replay_crop(source.view(), l.crops[size_t(k)], Filter::bilinear, scratch, cut, crop);
      normalize_chw(crop, {}, out[0].as<float>() + k * 3 * 224 * 224);
      recover_soft_label(l, k, 1000, path, out[2].as<float>() + k * 1000);
    }
    *out[1].as<int64_t>() = int64_t(image) / 4;
  }

 private:
  static int64_t value(const Tensor& t, int64_t i) {
    return t.cast(DType::i64).packed().data_const<int64_t>()[i];
  }
  Tensor images_, which_;
  int64_t crops_;
  std::string root_;
  std::vector<std::string> files_;
  std::unique_ptr<LabelStore> labels_;
};

/// The iterations of each published call.
class RecordedPasses final : public Sampler {
 public:
  explicit RecordedPasses(const GoldenFile& run) {
    const auto rows = run.tensor("epochs").cast(DType::i64).to_vector<int64_t>();
    const auto images = run.tensor("image_order").cast(DType::i64).to_vector<int64_t>();
    int64_t first = 0;
    for (size_t i = 0; i < rows.size(); i += 2) {
      for (int64_t at = first * 8; at < (first + rows[i + 1]) * 8; ++at)
        if (images[size_t(at)] >= 0) order_[rows[i]].push_back(at);
      first += rows[i + 1];
    }
  }
  int64_t size() const override { return int64_t(order_.begin()->second.size()); }
  std::vector<int64_t> epoch(int64_t e) const override { return order_.at(e); }

 private:
  std::map<int64_t, std::vector<int64_t>> order_;
};

struct Micro {
  GoldenFile run;
  TempDir dir;
  Log log{silent()};
  Options options{*find_verb("train")};
  DataSets data;

  Micro(const std::string& file, const std::string& root) : run(file) {
    for (const auto& [option, value] : std::map<std::string, std::string>{{"compat", "reference"},
                                                                          {"device", test_device().str()},
                                                                          {"quantizer", "vvtq"},
                                                                          {"wbits", "4"},
                                                                          {"abits", "4"},
                                                                          {"batch-size", "2"},
                                                                          {"crops", "4"},
                                                                          {"epochs", "12"},
                                                                          {"lr", "5e-4"},
                                                                          {"min-lr", "0"},
                                                                          {"warmup-epochs", "0"},
                                                                          {"weight-decay", "1e-4"},
                                                                          {"bin-regularizer", "on"},
                                                                          {"workers", "0"},
                                                                          {"tensorboard", "off"},
                                                                          {"log-every", "1"},
                                                                          {"track-oscillation", "off"},
                                                                          {"data", root + "/imagenet"},
                                                                          {"interpolation", "bilinear"}})
      options.set(option, value, OptionOrigin::command_line);
    data = open_data(options, model()->config(), false);
    data.crops = 4;
    data.train = std::make_shared<RecordedCrops>(run, root, 4);
    data.train_single = std::make_shared<RecordedCrops>(run, root, 1);
    data.train_order = std::make_shared<RecordedPasses>(run);
  }
  std::unique_ptr<VisionTransformer> model() const {
    VitConfig c;
    c.name = "micro", c.width = 24, c.depth = 2, c.heads = 3, c.mlp_ratio = 2, c.split_qkv = true;
    auto m = std::make_unique<VisionTransformer>(c, 0);
    quantize(*m, options);
    placed(*m);
    return m;
  }
  static TensorMap part(const GoldenFile& g, const std::string& prefix) {
    TensorMap m;
    for (const std::string& key : g.names_with_prefix(prefix)) m[key.substr(prefix.size())] = g.tensor(key);
    return m;
  }
  /// The checkpoint before iteration k of the published run.
  RunCheckpoints::Resume snapshot(const GoldenFile& step, int64_t k) {
    const auto m = model();
    const TensorMap before = part(step, "before.");
    TensorMap state = m->state();
    for (auto& [name, t] : state) {
      if (before.contains(name)) t.copy_from(before.at(name));
      if (name.ends_with("init_state")) t.fill(1);
    }
    const std::string folder = dir / "form";
    std::filesystem::create_directories(folder);
    Options one = options;
    one.set("max-steps", "1", OptionOrigin::command_line);
    Trainer(one, *m, nullptr, data, log).run(folder, {});
    RunCheckpoints::Resume r = *RunCheckpoints(folder).load_last();
    for (const auto& [name, t] : before) r.weights.tensors[name] = t;
    for (const std::string kind : {"exp_avg", "exp_avg_sq"})
      for (auto& [name, t] : r.state.tensors) {
        const std::string own = "optim/" + kind + "/";
        if (!name.starts_with(own)) continue;
        t = t.clone();
        const std::string theirs = kind + "." + name.substr(own.size());
        if (step.has(theirs))
          t.copy_from(step.tensor(theirs));
        else
          t.fill(0);
      }
    r.state.tensors["optim/steps"] = r.state.tensors["optim/steps"].clone();
    r.state.tensors["optim/steps"].fill(double(k));
    r.state.meta["epoch"] = k < 4 ? "0" : "4";
    r.state.meta["step_in_epoch"] = std::to_string(k % 4);
    r.state.meta["step"] = std::to_string(k);
    return r;
  }
};

/// One iteration from stored weights and moments: gradients of both losses, and the weights after it.
void check_step(const std::string& file, int64_t k) {
  LOWBIT_GOLDEN_OR_SKIP(run_path, "vvtq/run_micro_w4a4.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(step_path, file);
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  Micro micro(run_path, root);
  const GoldenFile step(step_path);
  const auto model = micro.model();
  micro.options.set("max-steps", std::to_string(k + 1), OptionOrigin::command_line);
  Trainer trainer(micro.options, *model, nullptr, micro.data, micro.log);
  trainer.resume(micro.snapshot(step, k), "the run");
  trainer.run(micro.dir.path(), {});
  EXPECT_NEAR(logged(micro.dir.path(), "loss").at(0), step.tensor("kd_loss").item<float>(), 1e-5);
  const double lr = micro.run.tensor("lr").cast(DType::f64).to_vector<double>().at(size_t(k));
  EXPECT_NEAR(logged(micro.dir.path(), "lr").at(0), lr, 1e-9);
  int compared = 0;
  for (const NamedParameter& p : model->parameters()) {
    if (!step.has("grad." + p.name)) continue;
    ++compared;
    const bool dead = p.name.ends_with("proj_k.bias");  // softmax cancels it: rounding noise
    if (dead)
      expect_close(p.parameter->var.grad(), step.tensor("grad." + p.name), 0, 1e-7, p.name);
    else
      expect_close_to_largest(p.parameter->var.grad(), step.tensor("grad." + p.name), 1e-3, p.name);
    const auto g = p.parameter->var.grad().to_vector<float>(),
               got = p.parameter->var.data().to_vector<float>(),
               want = step.tensor("after." + p.name).to_vector<float>();
    float largest = 0;
    for (const float v : g) largest = std::max(largest, std::fabs(v));
    for (size_t i = 0; i < got.size(); ++i) {
      const bool noise = std::fabs(g[i]) < 1e-5f * largest || dead;
      ASSERT_NEAR(got[i], want[i], (noise ? 2 : 2e-3) * lr + 1.2e-7 * std::fabs(want[i]))
          << p.name << "[" << i << "]";
    }
  }
  EXPECT_EQ(compared, int(step.names_with_prefix("grad.").size()));
}

TEST(MicroRunGolden, FirstStep) { check_step("vvtq/run_micro_w4a4_step0.safetensors", 0); }
TEST(MicroRunGolden, RegularizedStep) { check_step("vvtq/run_micro_w4a4_step6.safetensors", 6); }

TEST(MicroRunGolden, FirstScales) {
  LOWBIT_GOLDEN_OR_SKIP(run_path, "vvtq/run_micro_w4a4.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(step_path, "vvtq/run_micro_w4a4_step0.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  Micro micro(run_path, root);
  const GoldenFile step(step_path);
  const auto model = micro.model();
  load_into(*model, load_weights(root + "/micro_fp.pth"), false, true);
  calibrate(*model, micro.options, micro.data, micro.log);
  for (const auto& [name, t] : model->state())
    if (name.ends_with("alpha")) expect_close(t, step.tensor("before." + name), 1e-3, 0, name);
}

TEST(MicroRunGolden, WholeRun) {
  LOWBIT_GOLDEN_OR_SKIP(run_path, "vvtq/run_micro_w4a4.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(step_path, "vvtq/run_micro_w4a4_step0.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  Micro micro(run_path, root);
  const GoldenFile step(step_path);
  const auto model = micro.model();
  Trainer trainer(micro.options, *model, nullptr, micro.data, micro.log);
  trainer.resume(micro.snapshot(step, 0), "the run");
  trainer.run(micro.dir.path(), {});
  const auto loss = logged(micro.dir.path(), "loss"), lr = logged(micro.dir.path(), "lr");
  const auto column = [&](const char* name) {
    return micro.run.tensor(name).cast(DType::f64).to_vector<double>();
  };
  const auto kd = column("kd_loss"), rates = column("lr"), perturbed = column("kd_loss_perturbed");
  ASSERT_EQ(loss.size(), kd.size());
  double spread = 0;  // of two reference runs whose weights differ by 1e-6 at the start
  for (size_t k = 0; k < kd.size(); ++k) spread = std::max(spread, std::fabs(perturbed[k] - kd[k]));
  EXPECT_NEAR(loss[0], kd[0], 1e-5);
  for (size_t k = 0; k < kd.size(); ++k) {
    EXPECT_NEAR(lr[k], rates[k], 1e-9) << k;
    EXPECT_NEAR(loss[k], kd[k], spread) << k;
  }
  // After each pass; eight images of 1000 classes: the published run never hits one.
  EXPECT_EQ(logged(micro.dir.path(), "top1", "eval"), column("eval_acc1"));
}

/// R of a weight whose L1 norm is `ulps` floats from the rounded exact one.
double bin_loss(const Variable& w, const LsqQuantizer& q, int ulps) {
  const bool convolution = w.ndim() == 4;
  double norm = 0;
  for (const float v : w.data().to_vector<float>()) norm += std::fabs(v);
  float moved = convolution ? float(w.numel()) : float(norm);
  for (int i = 0; i < std::abs(ulps) && !convolution; ++i)
    moved = std::nextafter(moved, ulps < 0 ? 0 : INFINITY);
  BinRegularizerSettings s;
  s.levels = Levels::of(q.bits(), true), s.slot = q.bits() - LsqQuantizer::kMinBits;
  s.grad_scale = float(1 / std::sqrt(double(moved) * s.levels.hi));
  return bin_regularizer(w, q.alpha(), s).data().item<float>();
}

/// λ of every pass, and λ·R of the stored steps. Whether a bin counts hangs on the last bit of Σ|w|, which
/// the published code adds in float32 and ours exactly: one weight may have the sum that its order of
/// additions gives.
void check_regularizer(const std::string& file, size_t k) {
  LOWBIT_GOLDEN_OR_SKIP(run_path, "vvtq/run_micro_w4a4.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(step_path, file);
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  Micro micro(run_path, root);
  const GoldenFile step(step_path);
  const auto lambdas = micro.run.tensor("lambda").to_vector<float>(),
             reg = micro.run.tensor("reg_loss").to_vector<float>();
  const std::vector<int32_t> epochs = micro.run.tensor("epochs").to_vector<int32_t>();  // epoch, iterations
  size_t row = 0;
  for (size_t e = 0; e < epochs.size(); e += 2)
    for (int i = 0; i < epochs[e + 1]; ++i)
      EXPECT_NEAR(lambdas.at(row++), bin_regulariser_weight(epochs[e], micro.options.integer("epochs")),
                  1e-8);
  EXPECT_EQ(row, lambdas.size());
  EXPECT_EQ(step.tensor("reg_loss").item<float>(), reg.at(k));
  const auto model = micro.model();
  (void)model->load(micro.snapshot(step, int64_t(k)).weights.tensors, false);
  const double theirs = reg[k], ours = lambdas[k] * weight_regularizer(*model).data().item<float>();
  if (std::fabs(ours - theirs) <= 1e-5 * theirs) return;
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model->parameters()) weights[p.name] = p.parameter->var;
  for (const auto& [slot, q] : quantizers(*model)) {
    if (!weights.count(slot)) continue;
    const auto& lsq = dynamic_cast<const LsqQuantizer&>(*q);
    const double exact = bin_loss(weights[slot], lsq, 0);
    for (const int ulps : {-2, -1, 1, 2}) {
      const double moved = ours + lambdas[k] * (bin_loss(weights[slot], lsq, ulps) - exact);
      if (std::fabs(moved - theirs) <= 1e-5 * theirs) return;
    }
  }
  ADD_FAILURE() << "regularizer " << ours << ", expected " << theirs << ", and no last bit explains it";
}

TEST(MicroRunGolden, FirstRegularizer) { check_regularizer("vvtq/run_micro_w4a4_step0.safetensors", 0); }
TEST(MicroRunGolden, SeventhRegularizer) { check_regularizer("vvtq/run_micro_w4a4_step6.safetensors", 6); }

}  // namespace
}  // namespace lowbit::test
