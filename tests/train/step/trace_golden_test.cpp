// Our trainer with --compat reference against the published training traces: losses, rates and weights of
// ofq/train_*, step by step.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/ops/cross_entropy.h"
#include "nn/loss/distillation.h"
#include "nn/models/swin.h"
#include "nn/models/vit.h"
#include "quant/scheme/scheme.h"
#include "tests/support/ofq.h"
#include "tests/train/step/recorded.h"

namespace lowbit::test {
namespace {

VitConfig golden_config(const nlohmann::json& c) {
  VitConfig v;
  v.name = "golden", v.distilled = true;
  v.image_size = c.value("img", 32), v.patch = c.value("patch_size", 8);
  v.width = c.at("C"), v.depth = c.at("depth"), v.heads = c.at("H"), v.classes = c.at("ncls");
  v.qk_reparam = c.value("qkr", false);
  return v;
}

/// The network of a training trace, or its float teacher.
std::unique_ptr<ImageModel> golden_model(const nlohmann::json& c, bool teacher) {
  if (c.at("model") != "swin") {
    VitConfig v = golden_config(c);
    v.qk_reparam = v.qk_reparam && !teacher;
    return std::make_unique<VisionTransformer>(v, 0);
  }
  SwinConfig s;
  s.name = "golden", s.image_size = 32, s.patch = c.at("ps"), s.window = c.at("ws"), s.width = c.at("C");
  s.depths = c.at("depths").get<std::vector<int64_t>>(), s.heads = c.at("H").get<std::vector<int64_t>>();
  s.heads.resize(s.depths.size());  // the file lists those of a stage that is not there
  s.classes = c.at("ncls"), s.qk_reparam = c.at("qkr") && !teacher;
  s.layout = teacher ? SwinLayout::torchvision : SwinLayout::ofq;
  return std::make_unique<SwinTransformer>(s, 0);
}

// ---- ofq/model_small_deit: every float case

TEST(TrainingGolden, SmallDistilledModels) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/model_small_deit.safetensors");
  const GoldenFile file(path);
  int checked = 0;
  for (const auto& [name, c] : file.cases()) {
    if (!c.at("wbits").is_null()) continue;
    SCOPED_TRACE(name);
    ++checked;
    VisionTransformer model(golden_config(c), 0);
    placed(model).load(part_of(file, name + "/p/"));
    const double tolerance = 1e-4;  // of the largest magnitude of each tensor
    model.train();
    Variable x(file.tensor(name + "/in/x"));
    x.set_requires_grad(true);
    const auto h = model.heads(x);
    const Variable loss = distillation_loss(h.cls, h.dist, Variable(file.tensor(name + "/in/teacher_logits")),
                                            file.tensor(name + "/in/label"));
    expect_close_to_largest(loss.data(), file.tensor(name + "/out/loss"), tolerance, "loss");
    expect_close_to_largest(h.cls.data(), file.tensor(name + "/out/cls"), tolerance, "cls");
    expect_close_to_largest(h.dist.data(), file.tensor(name + "/out/dist"), tolerance, "dist");
    loss.backward();
    expect_close_to_largest(x.grad(), file.tensor(name + "/g_in/x"), tolerance, "dx");
    const auto expected = part_of(file, name + "/g_p/");
    const auto parameters = model.parameters();
    EXPECT_EQ(expected.size(), parameters.size());
    for (const auto& p : parameters) {
      if (p.name.ends_with("qkv.bias")) {  // the key part is zero in exact arithmetic, the file has noise
        expect_close(p.parameter->var.grad(), expected.at(p.name), 1e-4, 1e-6, p.name);
        continue;
      }
      expect_close_to_largest(p.parameter->var.grad(), expected.at(p.name), tolerance, p.name);
    }
    model.eval();
    expect_close_to_largest(model(Variable(file.tensor(name + "/in/x"))).data(),
                            file.tensor(name + "/out/eval_logits"), tolerance, "evaluation");
  }
  EXPECT_GT(checked, 0);
}

// ---- ofq/train_*

/// Puts OFQ's quantizers into a model of the files, which keep the patch embedding in float.
void quantize_as_published(ImageModel& model, const nlohmann::json& c) {
  if (c.at("wbits").is_null()) return;
  SchemeOptions o;
  o.wbits = c.at("wbits"), o.abits = c.at("abits"), o.qk_reparam = c.at("qkr");
  Scheme scheme = load_scheme("ofq", o);
  scheme.rules.push_back({R"((patch_embed|features\.0)\..*)", {{"quantizer", "none"}}});
  install(model, scheme);
}

/// A file says how many epochs were run. The schedule may have been planned for more: for the fewest that
/// give the file's last rate.
int64_t planned_epochs(const nlohmann::json& c, double last_rate) {
  ScheduleOptions s;
  s.kind = c.at("sched"), s.lr = c.at("lr"), s.min_lr = c.at("min_lr");
  s.warmup = c.at("warmup_epochs"), s.warmup_lr = c.at("warmup_lr");
  const int64_t epochs = c.at("epochs"), last = c.at("start_epoch").get<int64_t>() + epochs - 1;
  for (s.total = double(epochs); s.total < double(4 * epochs); ++s.total)
    if (std::fabs(Schedule(s).lr(double(last)) - last_rate) <= 1e-12) break;
  return int64_t(s.total);
}

/// Softmax cancels what is added to all keys; of the shift before, only clipped values pass a gradient on.
/// AdamW makes steps of full size of the rounding noise that is left.
bool moved_by_noise(const std::string& name) {
  return name.ends_with("move_qkx_aft.bias") || name.ends_with("move_k_aft.bias") ||
         name.ends_with("move_qkx_b4.bias");
}

/// One run of the published trainer, repeated by ours.
struct Trace {
  const GoldenFile& file;
  std::string name;
  nlohmann::json c;
  TempDir dir;
  Log log{silent()};
  Options options{*find_verb("train")};
  std::unique_ptr<ImageModel> teacher;
  DataSets data;
  std::vector<double> losses, rates;
  int64_t steps, each;  // of the run, of an epoch
  int runs = 0;

  Trace(const GoldenFile& f, const std::string& n, const nlohmann::json& settings)
      : file(f),
        name(n),
        c(settings),
        losses(f.tensor(n + "/out/loss").to_vector<double>()),
        rates(f.tensor(n + "/out/lr").to_vector<double>()),
        steps(c.at("steps")),
        each(steps / c.at("epochs").get<int64_t>()) {
    if (const TensorMap weights = part_of(f, n + "/teacher/"); !weights.empty()) {
      teacher = golden_model(c, true);
      placed(*teacher).load(weights);
      teacher->eval();
    }
    set_options();
    const int64_t b = c.at("batch"), side = golden_model(c, true)->config().image_size;
    const Tensor labels = f.tensor(n + "/in/y");
    std::vector<RecordedBatches::Batch> batches;
    for (int64_t k = 0; k < steps; ++k)
      batches.push_back({fill(str_cat(n, "/x/", k), {b, 3, side, side}, 0, 2), labels.select(0, k).packed()});
    data = recorded_data(std::move(batches), c.at("epochs"), c.at("start_epoch"));
  }
  void set(const std::string& option, const std::string& value) {
    options.set(option, value, OptionOrigin::command_line);
  }
  void set_options() {
    const auto text = [&](const char* key) {
      return c.at(key).is_string() ? c.at(key).get<std::string>() : c.at(key).dump();
    };
    for (const auto& [option, value] : std::map<std::string, std::string>{{"compat", "reference"},
                                                                          {"device", test_device().str()},
                                                                          {"quantizer", "ofq"},
                                                                          {"workers", "0"},
                                                                          {"tensorboard", "off"},
                                                                          {"log-every", "1"},
                                                                          {"track-oscillation", "off"},
                                                                          {"distill", "ofq"},
                                                                          {"smoothing", "0.1"}})
      set(option, value);
    for (const auto& [option, key] : std::map<std::string, const char*>{{"batch-size", "batch"},
                                                                        {"opt", "opt"},
                                                                        {"lr", "lr"},
                                                                        {"weight-decay", "weight_decay"},
                                                                        {"sched", "sched"},
                                                                        {"warmup-epochs", "warmup_epochs"},
                                                                        {"warmup-lr", "warmup_lr"},
                                                                        {"min-lr", "min_lr"}})
      set(option, text(key));
    if (!c.at("clip_grad").is_null()) set("clip-grad", text("clip_grad"));
    set("epochs", std::to_string(planned_epochs(c, rates.back())));
    const std::string note = c.value("note", ""), range = "boundary_range ";
    if (const size_t at = note.find(range); at != std::string::npos)
      set("cga-range", std::to_string(std::stod(note.substr(at + range.size()))));
  }
  std::unique_ptr<ImageModel> student() const {
    auto model = golden_model(c, false);
    quantize_as_published(*model, c);
    placed(*model);
    return model;
  }
  bool has_snapshot(int64_t k) const {
    return !file.names_with_prefix(str_cat(name, "/step_", k, "/p/")).empty() &&
           (k == 0 || !file.names_with_prefix(str_cat(name, "/step_", k, "/m/")).empty());
  }
  /// The checkpoint that our trainer would have written after k steps, with the file's weights and moments.
  RunCheckpoints::Resume snapshot(int64_t k) {
    const auto model = student();
    const std::string folder = dir / "form";
    std::filesystem::create_directories(folder);
    Options one = options;
    one.set("max-steps", "1", OptionOrigin::command_line);
    Trainer(one, *model, teacher.get(), data, log).run(folder, {});
    RunCheckpoints::Resume r = *RunCheckpoints(folder).load_last();
    const std::string prefix = str_cat(name, "/step_", k, "/");
    for (const auto& [key, t] : part_of(file, prefix + "p/")) r.weights.tensors[key] = t;
    const TensorMap m = part_of(file, prefix + "m/"), v = part_of(file, prefix + "v/");
    for (auto& [key, t] : r.state.tensors) {
      if (!key.starts_with("optim/")) continue;
      const TensorMap& moments = key.starts_with("optim/exp_avg_sq/") ? v : m;
      const auto moment = moments.find(key.substr(key.find('/', 6) + 1));
      t = t.clone();
      if (key == "optim/steps")
        t.fill(double(k));
      else if (moment == moments.end())  // no step yet, or a parameter that no gradient reaches
        t.fill(0);
      else
        t.copy_from(moment->second);
    }
    r.state.meta["epoch"] = std::to_string(c.at("start_epoch").get<int64_t>() + k / each);
    r.state.meta["step_in_epoch"] = std::to_string(k % each);
    r.state.meta["step"] = std::to_string(k);
    return r;
  }
  /// Continues `start`, the state after `from` steps, until `to`; checks losses and rates, and with `weights`
  /// the parameters at the end. Returns the checkpoint.
  RunCheckpoints::Resume run(const RunCheckpoints::Resume& start, int64_t from, int64_t to,
                             const std::function<double(int64_t)>& loss_tolerance, bool weights) {
    const auto model = student();
    Options o = options;
    o.set("max-steps", std::to_string(to), OptionOrigin::command_line);
    Trainer trainer(o, *model, teacher.get(), data, log);
    trainer.resume(start, "the trace");
    const std::string folder = dir / str_cat("run", runs++);
    std::filesystem::create_directories(folder);
    trainer.run(folder, {});
    const std::vector<double> loss = logged(folder, "loss"), lr = logged(folder, "lr");
    EXPECT_EQ(int64_t(loss.size()), to - from);
    for (int64_t k = from; k < to; ++k) {
      EXPECT_NEAR(loss.at(size_t(k - from)), losses[size_t(k)], loss_tolerance(k) * losses[size_t(k)])
          << "loss " << k;
      EXPECT_NEAR(lr.at(size_t(k - from)), rates[size_t(k)], 1e-12) << "learning rate " << k;
    }
    if (weights) expect_parameters(*model, to);
    return *RunCheckpoints(folder).load_last();
  }
  /// After one step from a stored snapshot: 1e-3·lr, 2·lr where the gradient is rounding noise, and the
  /// rounding of the stored value.
  void expect_parameters(ImageModel& model, int64_t k) {
    const double lr = rates[size_t(k) - 1];
    const TensorMap expected = part_of(file, str_cat(name, "/step_", k, "/p/"));
    for (const NamedParameter& p : model.parameters()) {
      if (!p.parameter->var.requires_grad()) continue;
      const auto got = p.parameter->var.data().to_vector<float>();
      const auto g = p.parameter->var.grad().defined() ? p.parameter->var.grad().to_vector<float>()
                                                       : std::vector<float>(got.size());
      const auto want = expected.at(p.name).to_vector<float>();
      ASSERT_EQ(got.size(), want.size()) << p.name;
      float largest = 0;
      for (float v : g) largest = std::max(largest, std::fabs(v));
      for (size_t j = 0; j < got.size(); ++j) {
        const bool key_bias = p.name.ends_with("qkv.bias") && j >= got.size() / 3 && j < got.size() / 3 * 2;
        const bool dead = moved_by_noise(p.name);
        const bool noise = key_bias || dead || std::fabs(g[j]) < 1e-6f * largest;
        const double bound = (noise ? 2 : 1e-3) * lr + 1.2e-7 * std::fabs(double(want[j]));
        ASSERT_NEAR(got[j], want[j], bound) << p.name << "[" << j << "] after step " << k;
      }
    }
  }
};

void check_groups(const std::string& file_name) {
  LOWBIT_GOLDEN_OR_SKIP(path, file_name);
  const GoldenFile file(path);
  for (const auto& [name, c] : file.cases()) {
    SCOPED_TRACE(name);
    const auto model = golden_model(c, false);
    quantize_as_published(*model, c);
    std::map<std::string, double> expected, got;
    for (const auto& group : c.at("param_groups"))
      for (const auto& p : group.at("params")) expected[p] = group.at("weight_decay");
    for (const NamedParameter& p : model->parameters())
      if (p.parameter->var.requires_grad())
        got[p.name] = p.parameter->decay ? c.at("weight_decay").get<double>() : 0;
    EXPECT_EQ(got, expected);
  }
}

TEST(TrainingGolden, ParameterGroups) { check_groups("ofq/train_adamw_float.safetensors"); }
TEST(TrainingGolden, SwinParameterGroups) { check_groups("ofq/train_swin_w2a2.safetensors"); }

/// From every stored snapshot one step, which must give the weights of the next snapshot, and from these
/// weights of ours the next loss, the shifts that noise moves taken from the file: before their quantizer
/// they decide which way values round. Without such shifts the whole run too; quantized runs drift apart over
/// many steps, in the reference as well: loss_drift_1e7 is the distance of two of its runs whose inputs
/// differ by 1e-7.
void check_trace(const std::string& file_name) {
  LOWBIT_GOLDEN_OR_SKIP(path, file_name);
  const GoldenFile file(path);
  int checked = 0;
  for (const auto& [name, c] : file.cases()) {
    SCOPED_TRACE(name);
    const bool quantized = !c.at("wbits").is_null();
    const auto close = [quantized](int64_t) { return quantized ? 1e-4 : 1e-5; };
    const auto drift = [&](int64_t k) {
      return 1e-4 + (quantized ? 2 * c.at("loss_drift_1e7").at(size_t(k)).get<double>() : 0);
    };
    Trace t(file, name, c);
    for (int64_t k = 0; k < t.steps; ++k) {
      if (!t.has_snapshot(k)) continue;
      const TensorMap next = part_of(file, str_cat(name, "/step_", k + 1, "/p/"));
      RunCheckpoints::Resume after = t.run(t.snapshot(k), k, k + 1, close, !next.empty());
      if (next.empty() || k + 1 == t.steps) continue;
      for (auto& [key, tensor] : after.weights.tensors)
        if (moved_by_noise(key)) tensor = next.at(key);
      t.run(after, k + 1, k + 2, drift, false);
      ++checked;
    }
    if (c.at("qkr")) continue;
    t.run(t.snapshot(0), 0, t.steps, drift, false);
  }
  EXPECT_GT(checked, 0);
}

TEST(TrainingGolden, FloatTrace) { check_trace("ofq/train_adamw_float.safetensors"); }
TEST(TrainingGolden, TwoBitTrace) { check_trace("ofq/train_adamw_w2a2.safetensors"); }
TEST(TrainingGolden, MixedLabelTrace) { check_trace("ofq/train_adamw_w4a4_mixed.safetensors"); }
TEST(TrainingGolden, AnnealingTrace) { check_trace("ofq/train_cga_w2a2.safetensors"); }
TEST(TrainingGolden, SgdTrace) { check_trace("ofq/train_sgd_w3a3.safetensors"); }
TEST(TrainingGolden, SwinTrace) { check_trace("ofq/train_swin_w2a2.safetensors"); }

}  // namespace
}  // namespace lowbit::test
