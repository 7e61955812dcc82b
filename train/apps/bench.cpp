#include <cstdio>

#include "tensor/core/thread_pool.h"
#include "tensor/engine/isa.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/config/build_info.h"
#include "train/config/device.h"
#include "train/metrics/progress.h"
#include "train/step/bench.h"
#include "train/step/build.h"
#include "train/step/quantize.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

void bench_products(const Options& o, const ImageModel& model) {
  if (!o.flag("json")) std::printf("%-34s %12s %12s\n", "product", "f32 GFLOP/s", "int8 Gop/s");
  for (const ProductTiming& p :
       time_products(model, o.integer("batch-size"), o.real("seconds"), run_device(o))) {
    if (p.name.find(o.text("filter")) == std::string::npos) continue;
    std::printf(o.flag("json") ? "{\"product\": \"%s\", \"f32_gflops\": %.1f, \"int8_gops\": %.1f}\n"
                               : "%-34s %12.1f %12.1f\n",
                p.name.c_str(), p.f32, p.int8);
  }
}

void bench_step(const Options& o, ImageModel& model) {
  quantize(model, o);
  model.to(run_device(o));
  model.recompute_blocks = o.flag("recompute");
  const int64_t batch = o.integer("batch-size");
  const StepTiming t =
      time_steps(model, batch, std::max(2.0, 4 * o.real("seconds")), o.text("graph") != "off");
  const double images = double(batch);
  if (o.flag("json")) {
    std::printf(
        "{\"model\": \"%s\", \"wbits\": %s, \"abits\": %s, \"batch\": %lld, \"threads\": %d, \"forward_s\": "
        "%.5f, "
        "\"backward_s\": %.5f, \"optimizer_s\": %.5f, \"train_img_per_s\": %.2f, \"eval_img_per_s\": %.2f, "
        "\"saved_bytes\": %zu, \"peak_bytes\": %zu, \"launches\": %lld, \"graph_nodes\": %lld, \"graph_s\": "
        "%.5f}\n",
        model.config().name.c_str(), o.raw("wbits").c_str(), o.raw("abits").c_str(),
        static_cast<long long>(batch), threads(), t.forward, t.backward, t.optimizer, images / t.step(),
        images / t.eval, t.saved_bytes, t.peak_bytes, static_cast<long long>(t.launches),
        static_cast<long long>(t.graph_nodes), t.graph);
    return;
  }
  std::printf(
      "step, batch %lld, %d threads, median of %d: forward %.1f ms, backward %.1f ms, optimizer %.1f ms\n",
      static_cast<long long>(batch), threads(), t.repeats, 1e3 * t.forward, 1e3 * t.backward,
      1e3 * t.optimizer);
  std::printf("train %.1f img/s, evaluate %.1f img/s; kept for backward %s (%s an image), peak %s\n",
              images / t.step(), images / t.eval, bytes_text(double(t.saved_bytes)).c_str(),
              bytes_text(double(t.saved_bytes) / images).c_str(), bytes_text(double(t.peak_bytes)).c_str());
  if (t.graph > 0)
    std::printf("as one graph: %.1f ms, %.1f img/s, %lld kernels and copies; %lld kernels launched singly\n",
                1e3 * t.graph, images / t.graph, static_cast<long long>(t.graph_nodes),
                static_cast<long long>(t.launches));
}

}  // namespace

int run_bench(const Options& o, const std::vector<std::string>&) {
  const std::string what = o.positional().empty() ? "all" : o.positional()[0];
  LOWBIT_CHECK(what == "all" || what == "products" || what == "step", usage, "bench",
               "WHAT is products, step or all (got '", what,
               "'); single operations and the loader: build/release/benchmarks");
  const auto model = model_plan(o, o.integer("num-classes")).build(uint64_t(o.integer("seed")));
  if (!o.flag("json"))
    std::printf("%s on %s, kernels %s, W%s A%s\n", model->config().name.c_str(), cpu_name().c_str(),
                isa_name(current_isa()), o.raw("wbits").c_str(), o.raw("abits").c_str());
  if (what != "step") bench_products(o, *model);
  if (what != "products") bench_step(o, *model);
  return kExitSuccess;
}

}  // namespace lowbit
