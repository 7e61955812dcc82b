#include "train/apps/experiment.h"

#include <algorithm>

#include "data/image/decode.h"
#include "train/config/device.h"
#include "train/step/quantize.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

/// Number of outputs: --num-classes, else the data's when training, else the weights', else the data's.
int64_t class_count(const Options& o, const DataSets& data, bool training, bool from_weights) {
  const int64_t asked = o.integer("num-classes");
  if (asked > 0 && (o.given("num-classes") || !training) && (from_weights || o.given("num-classes")))
    return asked;
  return data.classes;
}

}  // namespace

LogOptions log_options(const Options& o, const Communicator& ranks) {
  LogOptions l;
  l.rank = ranks.rank();
  l.keep = ranks.lead() || (find_option("log-ranks", o.verb().mask) && o.text("log-ranks") == "all");
  l.threshold = o.flag("quiet") ? LogLevel::warning : o.flag("verbose") ? LogLevel::debug : LogLevel::info;
  return l;
}

Experiment open_experiment(const Options& given, bool training, Log& log) {
  Experiment e{given, {}, nullptr};
  Options& o = e.options;
  WeightFile weights;
  const bool have_weights = !o.text("weights").empty();
  bool classes_in_file = false;
  if (have_weights) {
    weights = load_weights(o.text("weights"));
    classes_in_file = take_saved_settings(o, weights, !training && !o.given("num-classes"));
  }
  e.data = open_data(o, model_plan(o, o.integer("num-classes")).config, training);
  const ModelPlan plan = model_plan(o, class_count(o, e.data, training, classes_in_file));
  LOWBIT_CHECK(e.data.classes <= plan.config.classes, usage, "", "the data have ", e.data.classes,
               " classes, the model ", plan.config.classes,
               training ? "; check --num-classes" : "; these weights belong to other data");
  e.model = plan.build(uint64_t(o.integer("seed")));
  log.info("data: " + e.data.description + ", decoder " + decoder_name());
  const Report q = quantize(*e.model, o);
  if (have_weights) {
    for (const std::string& note : load_into(*e.model, weights, training, o.flag("allow-partial")))
      log.info(note);
    log.info(str_cat("weights: ", o.text("weights"), " (", format_name(weights.format), ")"));
    const std::set<std::string> quantized = quantizer_state(*e.model);
    const bool from_float = std::none_of(weights.tensors.begin(), weights.tensors.end(),
                                         [&](const auto& t) { return quantized.contains(t.first); });
    if (training && from_float && !quantized.empty())
      for (const std::string& name : reinitialise_as_published(*e.model, o))
        log.info("not taken from the weights, as published: " + name);
  }
  e.model->to(run_device(o));
  calibrate(*e.model, o, e.data, log);
  log.info("model: " + model_line(*e.model));
  if (!q.installed.empty()) log.write(LogLevel::info, "bit map:\n" + bit_map_text(*e.model));
  return e;
}

}  // namespace lowbit
