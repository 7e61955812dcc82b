// The verb on soft-label files.

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "data/soft_label/label_store.h"
#include "tensor/core/error.h"
#include "train/apps/experiment.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/config/device.h"
#include "train/metrics/format.h"
#include "train/metrics/progress.h"
#include "train/metrics/sha256.h"
#include "train/step/generate_labels.h"
#include "train/step/quantize.h"
#include "train/step/stop.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

void print_summary(const std::string& path, const LabelSummary& s) {
  std::printf("%s: %s, %lld images, %lld crops (%lld to %lld an image), highest class %d, %s\n", path.c_str(),
              soft_label_name(s.type, s.ids_each).c_str(), static_cast<long long>(s.images),
              static_cast<long long>(s.crops), static_cast<long long>(s.least_crops),
              static_cast<long long>(s.most_crops), int(s.highest_class),
              bytes_text(double(s.bytes)).c_str());
}

/// The model of --weights, as its file or the options describe it.
std::unique_ptr<ImageModel> open_labelling_teacher(Options& o, Log& log) {
  require_option(o, "weights");
  const WeightFile file = load_weights(o.text("weights"));
  take_saved_settings(o, file, !o.given("num-classes"));
  const ModelPlan plan = model_plan(o, o.integer("num-classes"));
  auto teacher = plan.build(0);
  quantize(*teacher, o);
  for (const std::string& note : load_into(*teacher, file, false, false)) log.info(note);
  for (const auto& [slot, q] : quantizers(*teacher)) {
    LOWBIT_CHECK(q->initialised(), usage, "labels", "the weights hold no scale for ", slot,
                 "; calibrate the model first ('lowbit train --epochs 0')");
    if (q->quant_state() == QuantState::observe) q->set_quant_state(QuantState::fixed, "ranges loaded");
  }
  teacher->to(run_device(o));
  log.info("teacher: " + model_line(*teacher) + ", " + file.path);
  return teacher;
}

GenerateOptions generate_options(const Options& o, const ImageConfig& c) {
  GenerateOptions g;
  std::tie(g.type, g.k) = soft_label_named(o.text("label-type"));
  g.temperature = o.real("temperature"), g.half = o.flag("fp16"), g.workers = int(o.integer("workers"));
  g.published = o.text("compat") == "reference";
  CropOptions& crops = g.crops;
  crops.crops = o.integer("label-crops"), crops.segment = std::min(o.integer("segment"), crops.crops);
  crops.size = int(c.image_size), crops.seed = uint64_t(o.integer("seed"));
  const std::vector<double> scale = o.reals("label-scale", 2);
  LOWBIT_CHECK(scale[0] > 0 && scale[0] <= scale[1], usage, "labels",
               "--label-scale takes two numbers LO,HI with 0 < LO <= HI");
  std::copy(scale.begin(), scale.end(), crops.scale);
  crops.filter = o.text("interpolation") == "bilinear" ? Filter::bilinear : Filter::bicubic;
  for (size_t i = 0; i < 3; ++i) {
    crops.normalization.mean[i] = o.given("mean") ? float(o.reals("mean", 3)[i]) : c.mean[i];
    crops.normalization.std[i] = o.given("std") ? float(o.reals("std", 3)[i]) : c.std[i];
  }
  if (!o.text("reference-labels").empty()) crops.reference = open_labels(o.text("reference-labels"));
  return g;
}

/// Everything that the labels depend on but the images.
std::string settings_of(const Options& o, const ImageConfig& c) {
  nlohmann::json j;
  for (const char* name : {"label-type", "label-crops", "temperature", "label-scale", "interpolation", "fp16",
                           "seed", "reference-labels", "compat"})
    j[name] = o.raw(name);
  if (o.text("compat") == "reference") j["segment"] = o.raw("segment");
  j["size"] = c.image_size, j["mean"] = input_statistic(o, c, "mean"),
  j["std"] = input_statistic(o, c, "std");
  j["teacher"] = c.name, j["weights_sha256"] = sha256_file(o.text("weights"));
  return j.dump();
}

int generate(const Options& given, const std::string& out) {
  install_stop_signals();
  Log log(log_options(given));
  Options o = given;
  require_option(o, "data");
  const auto teacher = open_labelling_teacher(o, log);
  const ImageConfig& config = teacher->config();
  ImageList list = open_image_split(o.text("data"), o.text("train-split"));
  std::set<std::string> keys;
  for (const std::string& path : list.paths)
    LOWBIT_CHECK(keys.insert(label_key(path)).second, io, "labels", "two images are called ", label_key(path),
                 " up to the first dot: their labels would overwrite each other");
  const GenerateOptions g = generate_options(o, config);
  const pack::Layout layout = label_layout(g, config.classes);
  const std::string settings = settings_of(o, config);
  const auto writer =
      o.flag("pack") ? pack_writer(out, layout, settings) : folder_writer(out, layout, settings);
  int64_t reported = 0;
  const bool whole = generate_labels(*teacher, list, g, *writer, [&](const GenerateProgress& p) {
    const double each = p.seconds / double(p.done);
    const std::string line = str_cat("labelled ", p.done, " of ", p.images, " images, ",
                                     format("%.1f", double(p.done * g.crops.crops) / p.seconds), " crops/s, ",
                                     duration_text(each * double(p.images - p.done)), " left");
    if (log.status_line())
      log.status(line);
    else if (p.done == p.images || p.done >= reported + o.integer("log-every"))
      log.info(line), reported = p.done;
    return stop_signal() == 0;
  });
  log.clear_status();
  if (!whole) {
    log.warning("stopped by a signal; to continue: the same command");
    return kExitStopped;
  }
  print_summary(out, verify_labels(out));
  return kExitSuccess;
}

}  // namespace

int run_labels(const Options& o, const std::vector<std::string>&) {
  const std::vector<std::string>& words = o.positional();
  const std::string& task = words[0];
  const size_t paths = task == "pack" ? 2 : 1;
  LOWBIT_CHECK(task == "info" || task == "verify" || task == "pack" || task == "gen", usage, "labels",
               "the task must be gen, info, verify or pack (got ", task, ")");
  LOWBIT_CHECK(words.size() == paths + 1, usage, "labels", task,
               paths == 1 ? " takes one path" : " takes FOLDER OUT");
  if (task == "gen") return generate(o, words[1]);
  Log log(log_options(o));
  if (task == "pack") {
    const LabelSummary s = pack_labels(words[1], words[2], [&](int64_t done, int64_t all) {
      if (done % 100 == 0 || done == all) log.status(str_cat("packed ", done, " of ", all, " files"));
    });
    log.clear_status();
    print_summary(words[2], s);
    return kExitSuccess;
  }
  print_summary(words[1], verify_labels(words[1]));
  if (task == "verify") std::printf("every record is sound\n");
  return kExitSuccess;
}

}  // namespace lowbit
