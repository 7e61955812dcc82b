// The verb that finds out which part of a model quantization hurts.

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "autograd/core/node.h"
#include "tensor/core/error.h"
#include "tensor/io/atomic_file.h"
#include "train/apps/experiment.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/metrics/format.h"
#include "train/metrics/progress.h"
#include "train/report/report.h"
#include "train/step/sensitivity.h"
#include "train/step/stop.h"

namespace lowbit {
namespace {

using Json = nlohmann::ordered_json;

Json row_json(const SensitivityRow& r) {
  return {{"group", r.group}, {"top1", r.top1}, {"loss", r.loss}, {"effect", r.effect}};
}

Json result_json(const Sensitivity& s, const std::vector<SlotSpread>& spreads, const std::string& by,
                 int64_t images) {
  Json j = {{"mode", s.spare ? "spare" : "only"},
            {"by", by},
            {"images", images},
            {"none", row_json(s.none)},
            {"all", row_json(s.all)}};
  for (const SensitivityRow& r : s.rows) j["rows"].push_back(row_json(r));
  j["sdam"] = spread_of_means(spreads);
  for (const SlotSpread& p : spreads)
    j["spreads"].push_back({{"slot", p.slot},
                            {"weight", p.weight},
                            {"mean_abs", p.mean_abs},
                            {"deviation", p.deviation},
                            {"largest", p.largest},
                            {"reach", p.reach()},
                            {"kurtosis", p.kurtosis}});
  return j;
}

std::string table(const Sensitivity& s) {
  const char* effect = s.spare ? "won" : "lost";
  std::string t =
      format("%-32s %8s %8s %8s\n", s.spare ? "not quantized" : "quantized", "top-1 %", effect, "loss");
  const auto line = [&](const SensitivityRow& r, bool with_effect) {
    t += format("%-32s %8.2f %8s %8.3f\n", r.group.c_str(), r.top1,
                with_effect ? format("%.2f", r.effect).c_str() : "", r.loss);
  };
  line(s.none, false), line(s.all, false);
  for (const SensitivityRow& r : s.rows) line(r, true);
  return t;
}

/// --result, else beside the run's weights; "" for neither.
std::string result_file(const Options& o) {
  if (!o.text("result").empty()) return o.text("result");
  const std::filesystem::path folder = std::filesystem::absolute(o.text("weights")).parent_path();
  const bool is_run = !o.text("weights").empty() && std::filesystem::exists(folder / "metrics.jsonl");
  return is_run ? (folder / "sensitivity.json").string() : "";
}

}  // namespace

int run_sensitivity(const Options& given, const std::vector<std::string>&) {
  install_stop_signals();
  Log log(log_options(given));
  Experiment e = open_experiment(given, false, log);
  const Options& o = e.options;
  LoaderOptions l;
  l.batch = o.integer("batch-size"), l.workers = int(o.integer("workers")), l.drop_last = false,
  l.device = e.model->device();
  Loader loader(e.data.val, e.data.val_order, l);
  const auto groups = quantizer_groups(*e.model, o.text("by"));
  int64_t images = 0;
  size_t done = 0;
  const Sensitivity s = measure_sensitivity(*e.model, groups, o.flag("spare"), [&](SensitivityRow& row) {
    const EvalResult r =
        evaluate(*e.model, loader, [](const EvalResult&, int64_t) { return stop_signal() == 0; });
    row.top1 = r.counts.percent1(), row.loss = r.loss, images = r.counts.total;
    log.info(
        str_cat(++done, " of ", groups.size() + 2, ": ", row.group, ", ", eval_result(r.counts, r.loss)));
    return stop_signal() == 0;
  });
  if (stop_signal() != 0) {
    log.warning("stopped by a signal; no result");
    return kExitStopped;
  }
  loader.start(0);
  const auto batch = loader.next();
  e.model->eval();
  const auto spreads = slot_spreads(*e.model, [&] {
    NoGrad off;
    (*e.model)(Variable(batch->fields[0]));
  });
  const Json j = result_json(s, spreads, o.text("by"), images);
  if (const std::string file = result_file(o); !file.empty()) {
    write_file_atomic(file, j.dump(1) + "\n");
    const std::filesystem::path folder = std::filesystem::absolute(file).parent_path();
    if (std::filesystem::exists(folder / "metrics.jsonl")) write_report(folder.string());
    log.info("written: " + file);
  }
  std::fputs((o.flag("json") ? j.dump() + "\n" : table(s)).c_str(), stdout);
  return kExitSuccess;
}

}  // namespace lowbit
