// What a training step of each method costs beside plain LSQ, and what it keeps for backward: rounds of one
// step of every method, ratios of processor time within a round.
//   method_bench [--batch N] [--rounds R] [--model NAME] [--only PART]    JSON lines, then a table
//   LOWBIT_THREADS=1 method_bench --only ofq                              lsq, and methods with ofq in the
//   name

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "autograd/core/node.h"
#include "autograd/ops/broadcast.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/pointwise.h"
#include "nn/models/factory.h"
#include "quant/annealing.h"
#include "quant/freezing.h"
#include "quant/oscillation.h"
#include "quant/scheme/scheme.h"
#include "quant/weight_regularizer.h"
#include "tensor/core/allocator.h"
#include "tensor/core/thread_pool.h"
#include "train/apps/run_main.h"
#include "train/config/backward.h"
#include "train/optim/optimizer.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

struct Method {
  const char *name, *scheme;  // scheme null: float
  SchemeOptions options = {};
  bool bins = false, anneal = false, track = false, recompute = false, dampen = false, freeze = false;
};

const Method kMethods[] = {
    {"lsq", "lsq"},
    {"float", nullptr},
    {"minmax", "minmax"},
    {"lsq+", "lsq+"},
    {"vvtq", "vvtq"},
    {"vvtq, offsets", "vvtq", {.offset = true}},
    {.name = "vvtq, bin regularizer", .scheme = "vvtq", .bins = true},
    {"vvtq, 1 bit", "vvtq", {.wbits = 1, .abits = 1}},
    {"ofq", "ofq"},
    {"ofq, qk reparam", "ofq", {.qk_reparam = true}},
    {.name = "ofq, qk reparam, cga", .scheme = "ofq", .options = {.qk_reparam = true}, .anneal = true},
    {.name = "lsq, cga", .scheme = "lsq", .anneal = true},
    {.name = "lsq, dampened", .scheme = "lsq", .dampen = true},
    {.name = "lsq, frozen", .scheme = "lsq", .freeze = true},
    {.name = "lsq, tracked", .scheme = "lsq", .track = true},
    {.name = "lsq, recompute", .scheme = "lsq", .recompute = true},
};

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

Tensor images_of(const ImageConfig& c, int64_t n) {
  Tensor t = Tensor::empty({n, c.in_channels, c.image_size, c.image_size});
  float* p = t.data<float>();
  for (int64_t i = 0; i < t.numel(); ++i) p[i] = float(uint64_t(i) * 2654435761u % 1000) * 0.004f - 2.f;
  return t;
}

/// One model under one method.
class Training {
 public:
  Training(const Method& m, const std::string& model, int64_t batch) : method_(m) {
    ModelChanges changes;
    changes.qk_reparam = m.options.qk_reparam;
    model_ = plan_model(model, changes).build(0);
    if (m.scheme) install(*model_, load_scheme(m.scheme, m.options));
    model_->recompute_blocks = m.recompute;
    images_ = Variable(images_of(model_->config(), batch));
    labels_ = Tensor::empty({batch}, DType::i64);
    for (int64_t i = 0; i < batch; ++i) labels_.data<int64_t>()[i] = i % model_->config().classes;
    arena_.emplace(model_->parameters());
    optimizer_.emplace(*arena_, OptimizerOptions{});
    model_->train();
    {
      const NoGrad off;  // ranges and first scales
      (*model_)(images_);
    }
    for (const auto& [slot, q] : quantizers(*model_))
      if (q->quant_state() == QuantState::observe) q->set_quant_state(QuantState::fixed, "observed");
    if (m.anneal) annealing_.emplace(*model_, 0.005);
    if (m.track) watch_.emplace(*model_);
    if (m.freeze) freezing_.emplace(*model_, OscillationSettings{.freeze_threshold = 0.02});
  }

  void step() {
    const size_t live = allocator({}).stats().live;
    allocator({}).reset_peak();
    const double begin = processor_seconds();
    optimizer_->zero_grad();
    const double remedies = processor_seconds();
    if (watch_) watch_->step();
    watch_seconds += processor_seconds() - remedies;
    if (freezing_) freezing_->before_step();
    Variable loss = cross_entropy((*model_)(images_), labels_);
    if (method_.bins) loss = add(loss, scale(weight_regularizer(*model_), 0.01));
    if (method_.dampen) loss = add(loss, scale(dampening_regularizer(*model_), 0.01));
    saved_ = 0;
    for (const auto& [op, bytes] : saved_memory(loss)) saved_ += bytes;
    loss.backward();
    loss = {};
    if (annealing_) annealing_->before_update();
    if (freezing_) freezing_->before_update();
    optimizer_->step(1e-5);
    if (annealing_) annealing_->after_update();
    if (freezing_) freezing_->after_update();
    seconds.push_back(processor_seconds() - begin);
    peak_ = allocator({}).stats().peak - live;
  }

  const Method& method() const { return method_; }
  size_t saved() const { return saved_; }
  size_t peak() const { return peak_; }
  std::vector<double> seconds;  ///< of every step
  double watch_seconds = 0;     ///< of the trackers in all of them

 private:
  const Method& method_;
  std::unique_ptr<ImageModel> model_;
  Variable images_;
  Tensor labels_;
  std::optional<ParameterArena> arena_;
  std::optional<Optimizer> optimizer_;
  std::optional<ConfidenceAnnealing> annealing_;
  std::optional<WeightWatch> watch_;
  std::optional<IterativeFreezing> freezing_;
  size_t saved_ = 0, peak_ = 0;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

std::string report(const Training& t, const Training& base, int64_t batch, const std::string& model) {
  std::vector<double> ratios;
  for (size_t i = 0; i < t.seconds.size(); ++i) ratios.push_back(t.seconds[i] / base.seconds[i]);
  const double images = double(batch), ms = 1e3 * median(t.seconds) / images;
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  std::printf(
      "{\"model\": \"%s\", \"method\": \"%s\", \"batch\": %lld, \"threads\": %d, \"image_s\": %.6f, "
      "\"ratio\": %.3f, \"ratio_min\": %.3f, \"ratio_max\": %.3f, \"saved_bytes\": %zu, "
      "\"peak_bytes\": %zu}\n",
      model.c_str(), t.method().name, static_cast<long long>(batch), threads(), 1e-3 * ms, median(ratios),
      *least, *most, t.saved(), t.peak());
  char line[200];
  std::snprintf(line, sizeof line, "%-24s %12.1f %8.2f (%.2f … %.2f) %18s %18s\n", t.method().name, ms,
                median(ratios), *least, *most, bytes_text(double(t.saved()) / images).c_str(),
                bytes_text(double(t.peak()) / images).c_str());
  return line;
}

int run(const std::vector<std::string>& args) {
  std::string model = "deit_tiny_patch16_224", only;
  int64_t batch = 8, rounds = 7;
  for (size_t i = 0; i + 1 < args.size(); i += 2) {
    if (args[i] == "--model")
      model = args[i + 1];
    else if (args[i] == "--only")
      only = args[i + 1];
    else if (args[i] == "--batch")
      batch = std::atoll(args[i + 1].c_str());
    else if (args[i] == "--rounds")
      rounds = std::atoll(args[i + 1].c_str());
    else
      fail(ErrorKind::usage, "method_bench", "unknown option " + args[i]);
  }
  LOWBIT_CHECK(args.size() % 2 == 0 && batch > 0 && rounds > 0, usage, "method_bench",
               "options take positive values");
  context().backward = fastest_backward({});  // what `lowbit train` takes
  std::vector<std::unique_ptr<Training>> all;
  for (const Method& m : kMethods)
    if (all.empty() || std::string(m.name).find(only) != std::string::npos)
      all.push_back(std::make_unique<Training>(m, model, batch));
  for (const auto& t : all) t->step(), t->seconds.clear(), t->watch_seconds = 0;
  for (int64_t r = 0; r < rounds; ++r)
    for (const auto& t : all) t->step();
  std::string table;
  for (const auto& t : all) table += report(*t, *all[0], batch, model);
  std::printf("%-24s %12s %8s %35s %18s\n%s", "method", "ms per image", "÷ lsq", "kept per image",
              "peak per image", table.c_str());
  for (const auto& t : all)
    if (t->method().track)
      std::printf("%s: the trackers take %.2f %% of the step\n", t->method().name,
                  100 * t->watch_seconds / std::accumulate(t->seconds.begin(), t->seconds.end(), 0.0));
  return kExitSuccess;
}

}  // namespace
}  // namespace lowbit

int main(int argc, char** argv) {
  return lowbit::exit_code_of([&] { return lowbit::run({argv + 1, argv + argc}); });
}
