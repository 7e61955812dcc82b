// Training steps of whole models: float, W4A4 and W4A4 with recomputation.
//   step_bench [--seconds S] [--batch N] [--model NAME] [--depth N] [--image-size N] [--variant NAME]
//                                                            one JSON line each, then a table
//   step_bench --model vit_base_patch16_224 --image-size 176 --depth 2
//                                                            two layers of BERT-base's shapes, 122 tokens
//   LOWBIT_THREADS=1 step_bench                              one thread
//   step_bench --scaling 1                                   steps of one thread and of all in turn, their
//   ratio

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "nn/models/factory.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/thread_pool.h"
#include "train/apps/run_main.h"
#include "train/config/backward.h"
#include "train/step/bench.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

struct Variant {
  const char* name;
  const char* scheme;  // null: float
  bool recompute;
};

int run(const std::vector<std::string>& args) {
  std::string model_name = "deit_tiny_patch16_224", only;
  double seconds = 5;
  int64_t batch = 8;
  bool scaling = false;
  ModelChanges changes;
  for (size_t i = 0; i + 1 < args.size(); i += 2) {
    if (args[i] == "--model")
      model_name = args[i + 1];
    else if (args[i] == "--variant")
      only = args[i + 1];
    else if (args[i] == "--seconds")
      seconds = std::atof(args[i + 1].c_str());
    else if (args[i] == "--batch")
      batch = std::atoll(args[i + 1].c_str());
    else if (args[i] == "--scaling")
      scaling = args[i + 1] != "0";
    else if (args[i] == "--depth")
      changes.depth = std::atoll(args[i + 1].c_str());
    else if (args[i] == "--image-size")
      changes.image_size = std::atoll(args[i + 1].c_str());
    else
      fail(ErrorKind::usage, "step_bench", "unknown option " + args[i]);
  }
  LOWBIT_CHECK(args.size() % 2 == 0 && batch > 0 && seconds > 0, usage, "step_bench",
               "options take positive values");
  context().backward = fastest_backward({});  // what `lowbit train` takes
  std::string table;
  for (const Variant& v : {Variant{"float", nullptr, false},
                           {"W4A4 lsq", "lsq", false},
                           {"W4A4 lsq, recompute", "lsq", true},
                           {"W4A4 vvtq", "vvtq", false}}) {
    if (!only.empty() && only != v.name) continue;
    const auto built = plan_model(model_name, changes).build(0);
    ImageModel& model = *built;
    if (v.scheme) install(model, load_scheme(v.scheme, {}));
    model.recompute_blocks = v.recompute;
    if (scaling) {
      const ThreadScaling t = time_threads(model, batch, seconds);
      std::printf(
          "{\"model\": \"%s\", \"variant\": \"%s\", \"batch\": %lld, \"threads\": %d, \"pairs\": %d, "
          "\"one_s\": %.5f, "
          "\"all_s\": %.5f, \"ratio\": %.3f, \"first_quartile\": %.3f, \"third_quartile\": %.3f}\n",
          model_name.c_str(), v.name, static_cast<long long>(batch), t.threads, t.pairs, t.one, t.all,
          t.ratio, t.first_quartile, t.third_quartile);
      char line[200];
      std::snprintf(line, sizeof line, "%-22s %9.1f %9.1f   %.2f (%.2f … %.2f) %6d\n", v.name, 1e3 * t.one,
                    1e3 * t.all, t.ratio, t.first_quartile, t.third_quartile, t.pairs);
      table += line;
      continue;
    }
    const StepTiming t = time_steps(model, batch, seconds);
    std::printf(
        "{\"model\": \"%s\", \"depth\": %lld, \"image_size\": %lld, \"variant\": \"%s\", \"batch\": %lld, "
        "\"threads\": %d, \"forward_s\": %.5f, "
        "\"backward_s\": %.5f, "
        "\"optimizer_s\": %.5f, \"eval_s\": %.5f, \"saved_bytes\": %zu, \"peak_bytes\": %zu}\n",
        model_name.c_str(), static_cast<long long>(changes.depth), static_cast<long long>(changes.image_size),
        v.name, static_cast<long long>(batch), threads(), t.forward, t.backward, t.optimizer, t.eval,
        t.saved_bytes, t.peak_bytes);
    char line[200];
    std::snprintf(line, sizeof line, "%-22s %9.1f %9.1f %9.1f %11.2f %12s %12s\n", v.name, 1e3 * t.forward,
                  1e3 * t.backward, 1e3 * t.optimizer, double(batch) / t.step(),
                  bytes_text(double(t.saved_bytes)).c_str(), bytes_text(double(t.peak_bytes)).c_str());
    table += line;
  }
  if (scaling)
    std::printf("%-22s %9s %9s   %-18s %6s\n%s", "variant", "1 ms", "all ms", "ratio, quartiles", "pairs",
                table.c_str());
  else
    std::printf("%-22s %9s %9s %9s %11s %12s %12s\n%s", "variant", "fwd ms", "bwd ms", "opt ms",
                "train img/s", "saved", "peak", table.c_str());
  return kExitSuccess;
}

}  // namespace
}  // namespace lowbit

int main(int argc, char** argv) {
  return lowbit::exit_code_of([&] { return lowbit::run({argv + 1, argv + argc}); });
}
