#include <cstdio>

#include "train/apps/experiment.h"
#include "train/apps/ranks.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/metrics/progress.h"
#include "train/step/evaluate.h"
#include "train/step/stop.h"
#include "train/step/summary.h"

namespace lowbit {

namespace {

int evaluate_as(const Options& given, Communicator& ranks) {
  install_stop_signals();
  Log log(log_options(given, ranks));
  if (given.text("weights").empty()) log.warning("no --weights: the model is as initialised");
  Experiment e = open_experiment(given, false, log);
  const Options& o = e.options;
  LoaderOptions l;
  l.batch = o.integer("batch-size");
  l.workers = int(o.integer("workers"));
  l.drop_last = false;
  l.device = e.model->device();
  l.share = {ranks.size(), ranks.rank(), 1};
  Loader loader(e.data.val, e.data.val_order, l);
  RunningMean time, loss;
  double before = 0;
  const EvalResult r = evaluate(
      *e.model, loader,
      [&](const EvalResult& now, int64_t batch) {
        time.add(now.seconds - before), loss.add(now.loss);
        before = now.seconds;
        const std::string line = eval_line(batch, loader.batches(), time, loss, now.counts);
        if (log.status_line())
          log.status(line);
        else if ((batch + 1) % o.integer("log-every") == 0)
          log.info(line);
        return stop_signal() == 0;
      },
      ranks);
  log.clear_status();
  if (any_rank(ranks, stop_signal() != 0)) {
    log.warning(str_cat("stopped by a signal after ", r.counts.total, " images; no result"));
    return kExitStopped;
  }
  if (!ranks.lead()) return kExitSuccess;
  const ModelSize size = model_size(*e.model);
  const bool json = find_option("json", o.verb().mask) && o.flag("json");  // train --eval-only has none
  if (json) {
    std::printf(
        "{\"top1\": %.3f, \"top5\": %.3f, \"loss\": %.6f, \"images\": %lld, \"correct\": %lld, "
        "\"img_per_s\": %.2f, "
        "\"peak_mib\": %.1f, \"weight_bits\": %.0f, \"bops\": %.0f}\n",
        r.counts.percent1(), r.counts.percent5(), r.loss, static_cast<long long>(r.counts.total),
        static_cast<long long>(r.counts.top1), r.img_per_s(), peak_resident_mib(), size.weight_bits,
        size.bops);
  } else {
    std::printf("%s\n", eval_result(r.counts, r.loss).c_str());
    std::printf("%lld of %lld images correct, %.1f img/s, weights %s\n",
                static_cast<long long>(r.counts.top1), static_cast<long long>(r.counts.total), r.img_per_s(),
                bytes_text(size.weight_bits / 8).c_str());
  }
  return kExitSuccess;
}

}  // namespace

int run_eval(const Options& given, const std::vector<std::string>&) {
  return run_as_rank(given, evaluate_as);
}

}  // namespace lowbit
