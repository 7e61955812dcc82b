#include "train/step/bench.h"

#include <time.h>

#include <algorithm>
#include <map>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"
#include "tensor/core/allocator.h"
#include "tensor/core/backend.h"
#include "tensor/core/context.h"
#include "tensor/core/device_graph.h"
#include "tensor/core/thread_pool.h"
#include "tensor/engine/gemm_int8.h"
#include "train/optim/optimizer.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

double seconds_of(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

/// Seconds; of the processor when one thread does everything, so that other work on the machine costs little.
double now(Device d) {
  return seconds_of(threads() == 1 && !d.is_cuda() ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC);
}

/// The value that a share of all does not exceed.
double quantile(std::vector<double> v, double share) {
  const auto i = size_t(share * double(v.size()));
  std::nth_element(v.begin(), v.begin() + std::ptrdiff_t(i), v.end());
  return v[i];
}
double median(const std::vector<double>& v) { return quantile(v, 0.5); }

Tensor pattern(const Shape& s, Device d) {
  Tensor t = Tensor::empty(s);
  float* p = t.data<float>();
  for (int64_t i = 0; i < t.numel(); ++i) p[i] = float(uint64_t(i) * 2654435761u % 1000) * 0.004f - 2.f;
  return t.to(d);
}

/// Images and labels of a fixed pattern.
struct PatternBatch {
  Variable images;
  Tensor labels;
  PatternBatch(const ImageConfig& c, int64_t n, Device d)
      : images(pattern({n, c.in_channels, c.image_size, c.image_size}, d)),
        labels(Tensor::empty({n}, DType::i64)) {
    for (int64_t i = 0; i < n; ++i) labels.data<int64_t>()[i] = i % c.classes;
    labels = labels.to(d);
  }
};

struct Pass {
  double forward, backward;             ///< seconds
  std::map<std::string, size_t> saved;  ///< bytes kept for backward by op
};
Pass timed_pass(ImageModel& model, const PatternBatch& data) {
  const Device d = data.labels.device();
  const double begin = now(d);
  const Variable loss = cross_entropy(model(data.images), data.labels);
  synchronize(d);
  Pass p{now(d) - begin, 0, saved_memory(loss)};
  const double middle = now(d);
  loss.backward();
  synchronize(d);
  p.backward = now(d) - middle;
  return p;
}

/// Median seconds of f() and what it starts on a device, repeated for about `seconds`.
template <class F>
double timed(double seconds, Device d, F f) {
  f();
  synchronize(d);
  std::vector<double> t;
  const double end = now(d) + seconds;
  while (t.size() < 3 || now(d) < end) {
    const double begin = now(d);
    f();
    synchronize(d);
    t.push_back(now(d) - begin);
  }
  return median(t);
}

}  // namespace

namespace {

/// The step that time_steps() times in parts, recorded as one graph.
void time_graph(StepTiming& r, ImageModel& model, const PatternBatch& data, Optimizer& optimizer,
                double seconds) {
  const Device d = model.device();
  const std::vector<float> rows = optimizer.hyper(1e-5);
  const Tensor hyper =
      Tensor::from(std::span<const float>(rows), {int64_t(rows.size()) / kHyperColumns, kHyperColumns}, d);
  const auto step = [&] {
    optimizer.zero_grad();
    cross_entropy(model(data.images), data.labels).backward();
    optimizer.step(hyper);
  };
  const DevicePool pool(d);
  {
    const DevicePool::Scope memory(pool);
    step();
    const int64_t before = require_cuda_backend("bench").launches();
    step();
    r.launches = require_cuda_backend("bench").launches() - before;
  }
  DeviceGraph graph(pool);
  graph.capture(step);
  r.graph_nodes = graph.nodes();
  r.graph = timed(seconds, d, [&] { graph.launch(); });
}

}  // namespace

StepTiming time_steps(ImageModel& model, int64_t batch, double seconds, bool graph) {
  const Device d = model.device();
  const PatternBatch data(model.config(), batch, d);
  ParameterArena arena(model.parameters());
  Optimizer optimizer(arena, {});
  model.train();
  StepTiming r;
  std::vector<double> forward, backward, update;
  const double end = now(d) + seconds;
  for (int pass = 0; pass < 5 || now(d) < end; ++pass) {
    allocator(d).reset_peak();
    const size_t live = allocator(d).stats().live;
    optimizer.zero_grad();
    const Pass p = timed_pass(model, data);
    const double begin = now(d);
    optimizer.step(1e-5);
    synchronize(d);
    const double updated = now(d) - begin;
    if (pass < 2) continue;
    r.saved_bytes = 0;
    for (const auto& [op, bytes] : p.saved) r.saved_bytes += bytes;
    r.peak_bytes = std::max(r.peak_bytes, allocator(d).stats().peak - live);
    forward.push_back(p.forward), backward.push_back(p.backward), update.push_back(updated);
  }
  r.forward = median(forward), r.backward = median(backward), r.optimizer = median(update),
  r.repeats = int(forward.size());
  if (graph && d.is_cuda()) time_graph(r, model, data, optimizer, seconds / 2);
  model.eval();
  NoGrad off;
  r.eval = timed(seconds / 4, d, [&] { model(data.images); });
  return r;
}

ThreadScaling time_threads(ImageModel& model, int64_t batch, double seconds) {
  const PatternBatch data(model.config(), batch, {});
  ParameterArena arena(model.parameters());
  Optimizer optimizer(arena, {});
  model.train();
  ThreadScaling r{.threads = threads()};
  const auto step = [&](int n) {
    set_threads(n);
    const double begin = seconds_of(CLOCK_MONOTONIC);
    optimizer.zero_grad();
    timed_pass(model, data);
    optimizer.step(1e-5);
    return seconds_of(CLOCK_MONOTONIC) - begin;
  };
  std::vector<double> one, all, ratio;
  const double end = seconds_of(CLOCK_MONOTONIC) + seconds;
  for (int pair = 0; pair < 5 || seconds_of(CLOCK_MONOTONIC) < end; ++pair) {
    const bool swapped = pair % 2;  // a machine that gets slower favours neither
    const double first = step(swapped ? r.threads : 1), second = step(swapped ? 1 : r.threads);
    if (pair == 0) continue;
    one.push_back(swapped ? second : first), all.push_back(swapped ? first : second);
    ratio.push_back(one.back() / all.back());
  }
  set_threads(r.threads);
  r.pairs = int(ratio.size()), r.one = median(one), r.all = median(all), r.ratio = median(ratio);
  r.first_quartile = quantile(ratio, 0.25), r.third_quartile = quantile(ratio, 0.75);
  return r;
}

StepEstimate estimate_step(ImageModel& model, int64_t batch) {
  const PatternBatch data(model.config(), std::min<int64_t>(batch, 8), model.device());
  const double factor = double(batch) / double(data.labels.size(0));
  const uint64_t generator = context().generator.state();
  StepEstimate e;
  for (int i = 0; i < 2; ++i) {  // the first fills caches
    const Pass p = timed_pass(model, data);
    e = {factor * (p.forward + p.backward), 0, ""};
    for (const auto& [op, bytes] : p.saved) {
      e.saved_bytes += size_t(double(bytes) * factor);
      if (bytes > 0) e.per_op += str_cat("  ", op, ": ", bytes_text(double(bytes) * factor), "\n");
    }
    for (const NamedParameter& q : model.parameters()) q.parameter->var.zero_grad();
  }
  context().generator.set_state(generator);
  return e;
}

std::vector<ProductTiming> time_products(const ImageModel& model, int64_t batch, double seconds, Device dev) {
  std::vector<ProductTiming> all;
  std::vector<ProductCost> seen;
  for (ProductCost s : model.product_costs()) {
    const auto same = [&](const ProductCost& p) {
      return p.a == s.a && p.b == s.b && p.has_weight == s.has_weight;
    };
    if (std::any_of(seen.begin(), seen.end(), same)) continue;
    seen.push_back(s);
    s.a.set(s.has_weight ? -2 : 0, s.a[s.has_weight ? -2 : 0] * batch);
    if (!s.has_weight) s.b.set(0, s.b[0] * batch);
    const Tensor a = pattern(s.a, dev), b = pattern(s.b, dev);
    Shape out = s.a;
    out.set(-1, s.b[-2]);
    Tensor y = Tensor::empty(out, DType::f32, dev);
    const double flops = 2.0 * double(s.a.numel()) * double(s.b[-2]);
    ProductTiming p{s.name, 0, 0};
    p.f32 = flops /
            timed(seconds, dev,
                  [&] { gemm(y, a, GemmInput(b).t(), {}, 1, 0, {.library = context().library_products}); }) *
            1e-9;
    Coded ca, cb;
    ca.codes = Tensor::full(s.a, 7, DType::u8, dev), ca.lo = 0, ca.hi = 15;
    cb.codes = Tensor::full(s.b, 3, DType::i8, dev), cb.lo = -8, cb.hi = 7;
    ca.scale = cb.scale = Tensor::full({1}, 0.1, DType::f32, dev);
    p.int8 = flops / timed(seconds, dev, [&] { coded_gemm(y, ca, cb); }) * 1e-9;
    all.push_back(p);
  }
  return all;
}

}  // namespace lowbit
