#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "data/image/decode.h"
#include "tensor/core/context.h"
#include "tensor/io/atomic_file.h"
#include "train/apps/experiment.h"
#include "train/apps/ranks.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/config/backward.h"
#include "train/config/device.h"
#include "train/metrics/sha256.h"
#include "train/step/bench.h"
#include "train/step/quantize.h"
#include "train/step/stop.h"
#include "train/step/summary.h"
#include "train/step/trainer.h"

namespace lowbit {
namespace {

/// The teacher is what its weight file says, quantizers included; --teacher names the architecture of files
/// that do not say it. It sees the images of the student.
std::unique_ptr<ImageModel> open_teacher(const Options& o, const ImageConfig& student, const DataSets& data,
                                         Log& log) {
  if (o.text("teacher-weights").empty()) return nullptr;
  const WeightFile file = load_weights(o.text("teacher-weights"));
  Options t(*find_verb("eval"));
  take_saved_settings(t, file);
  if (!o.text("teacher").empty()) t.set("model", o.text("teacher"), OptionOrigin::command_line);
  LOWBIT_CHECK(t.given("model"), usage, "train", "--teacher-weights ", file.path,
               " does not say its model; it needs --teacher NAME");
  const ModelPlan plan = model_plan(t, student.classes, student.image_size);
  LOWBIT_CHECK(!t.given("num-classes") || t.integer("num-classes") == student.classes, usage, "train",
               "the teacher has ", t.integer("num-classes"), " classes, the student ", student.classes);
  for (const char* statistic : {"mean", "std"})
    LOWBIT_CHECK(!t.given(statistic) ||
                     input_statistic(t, plan.config, statistic) == input_statistic(o, student, statistic),
                 usage, "train", "the teacher was trained with --", statistic, " ", t.raw(statistic),
                 "; the student sees the same images, so give it the same");
  auto teacher = plan.build(0);
  quantize(*teacher, t);
  for (const std::string& note : load_into(*teacher, file, false, false)) log.info("teacher " + note);
  teacher->to(run_device(o));
  calibrate(*teacher, t, data, log);
  teacher->eval();
  log.info("teacher: " + model_line(*teacher) + ", " + file.path);
  return teacher;
}

/// What can be said before any file is read.
void check_training_options(const Options& o) {
  LOWBIT_CHECK(o.text("teacher").empty() || !o.text("teacher-weights").empty(), usage, "train",
               "--teacher needs --teacher-weights FILE");
  optimizer_options(o), schedule_options(o, 1);
}

void print_plan(const Options& o, ImageModel& model, const Trainer& trainer, const DataSets& data) {
  const int64_t batch = o.integer("batch-size") * std::max<int64_t>(data.crops, 1);
  const StepEstimate e = estimate_step(model, batch);
  const int64_t steps = trainer.steps(), epochs = o.integer("epochs");
  const double parameters = 4.0 * double(model_size(model).parameters);
  std::printf("model        %s\n", model_line(model).c_str());
  std::printf("bit map\n%s", bit_map_text(model).c_str());
  std::printf("data         %s; decoder %s\n", data.description.c_str(), decoder_name());
  std::printf("run          %lld epochs, %lld steps of %lld images, seed %lld\n",
              static_cast<long long>(epochs), static_cast<long long>(steps),
              static_cast<long long>(trainer.images_per_step()), static_cast<long long>(o.integer("seed")));
  std::printf("memory       parameters, gradients and moments %s, kept for backward %s\n",
              bytes_text(4 * parameters).c_str(), bytes_text(double(e.saved_bytes)).c_str());
  if (o.flag("report-memory")) std::printf("%s", e.per_op.c_str());
  const double total = e.seconds * double(o.integer("accumulate")) * double(steps);
  std::printf("time         %.2f s a step, %.1f img/s, about %s without evaluations\n", e.seconds,
              double(batch) / e.seconds, duration_text(total).c_str());
}

void write_identity(const Options& o, const std::vector<std::string>& command_line, const std::string& folder,
                    const DataSets& data, ImageModel& model, int processes) {
  Manifest m;
  m.command_line = command_line;
  m.start_time = unix_time();
  m.decoder = decoder_name();
  if (!o.text("weights").empty()) m.digests["weights"] = sha256_file(o.text("weights"));
  if (!o.text("teacher-weights").empty()) m.digests["teacher"] = sha256_file(o.text("teacher-weights"));
  m.weight_bits = model_size(model).weight_bits, m.bit_map = bit_map_rows(model);
  m.extra = {{"model", model_line(model)},
             {"data", data.description},
             {"seed", o.raw("seed")},
             {"device", o.text("device")},
             {"processes", std::to_string(processes)}};
  write_file_atomic(folder + "/manifest.json", manifest_json(m));
  write_file_atomic(folder + "/args.json", o.args_json());
}

/// A run folder, or one of its checkpoint files.
std::string run_folder(const std::string& path) {
  return std::filesystem::is_regular_file(path) ? std::filesystem::absolute(path).parent_path().string()
                                                : path;
}

/// The run folder that --resume names; empty for a fresh run.
std::string folder_to_resume(const Options& o) {
  const std::string& from = o.text("resume");
  if (from == "none" || (from == "auto" && o.text("run").empty())) return "";
  return run_folder(from == "auto" ? (std::filesystem::path(o.text("output")) / o.text("run")).string()
                                   : from);
}

/// What --resume names; nothing for a fresh run.
std::optional<RunCheckpoints::Resume> find_checkpoint(const Options& o, std::string& folder) {
  folder = folder_to_resume(o);
  if (folder.empty()) return std::nullopt;
  const std::string& from = o.text("resume");
  LOWBIT_CHECK(from == "auto" || std::filesystem::is_directory(folder), io, "resume", "'", folder,
               "' is no run folder; --resume takes auto, none or the folder of a run");
  auto found = RunCheckpoints(folder).load_last();
  LOWBIT_CHECK(found || from == "auto", io, "resume", "'", folder, "' holds no checkpoint");
  return found;
}

/// The options that a run on disk began with.
std::optional<Options> options_of_run(const VerbSpec& verb, const std::string& folder) {
  const std::string file = folder + "/args.json";
  if (!std::filesystem::exists(file)) return std::nullopt;
  return parse_options(verb, {"--config", file});
}

/// Settings that auto leaves open: those of the run that goes on, else those that suit the machine of rank 0.
Options with_settled_choices(const Options& o, Communicator& ranks) {
  std::string kind;
  if (ranks.lead()) {
    const std::string folder = folder_to_resume(o);
    const auto before = folder.empty() ? std::nullopt : options_of_run(o.verb(), folder);
    kind = with_backward(before ? *before : o, "").text("backward");
  }
  Options settled = with_backward(o, lead_text(ranks, kind));
  context().backward = backward_products(settled);
  return settled;
}

/// What --moments names.
void take_moments(const Options& o, Trainer& trainer, Log& log) {
  if (o.text("moments").empty()) return;
  const std::string folder = run_folder(o.text("moments"));
  LOWBIT_CHECK(std::filesystem::is_directory(folder), io, "moments", "'", folder, "' is no run folder");
  const auto found = RunCheckpoints(folder).load_last();
  LOWBIT_CHECK(found, io, "moments", "'", folder, "' holds no checkpoint");
  trainer.take_moments(*found, folder);
  log.info("the optimizer begins with the moments of " + folder);
}

/// Options that make the continued run another one than the run that is on disk.
void warn_of_changes(const Options& now, const std::string& folder, Log& log) {
  const auto run = options_of_run(now.verb(), folder);
  if (!run) return;
  const Options before = with_backward(*run, now.text("backward"));
  std::string changes;
  for (const OptionSpec& s : option_table()) {
    const std::string_view name = s.name;
    if (!(s.verbs & now.verb().mask) || s.transient || s.group >= OptionGroup::distributed ||
        name == "workers" || name == "augment-device" || name == "max-steps" ||
        (name == "accumulate" && now.integer("global-batch") > 0) || before.raw(name) == now.raw(name))
      continue;
    changes += str_cat(changes.empty() ? "" : ", ", "--", name, " ", before.raw(name), " -> ", now.raw(name));
  }
  if (!changes.empty()) log.warning("options differ from those that the run began with: " + changes);
}

void print_result(const std::string& folder, const TrainOutcome& r) {
  std::printf(
      "{\"run\": \"%s\", \"steps\": %lld, \"top1\": %.3f, \"top5\": %.3f, \"best_top1\": %.3f, "
      "\"train_img_per_s\": %.2f, \"peak_mib\": %.1f}\n",
      folder.c_str(), static_cast<long long>(r.steps), r.last.counts.percent1(), r.last.counts.percent5(),
      r.best_top1, r.train_img_per_s, peak_resident_mib());
}

/// Trains in `folder`; an exit code.
int train_in(const std::string& folder, const Options& o, Trainer& trainer, Log& log, bool lead,
             TrainOutcome& r) {
  const std::string run = std::filesystem::path(folder).filename().string();
  log.info("run folder: " + folder + "; to resume: the same command with --run " + run);
  StopControl control(o.seconds("time-limit"));
  double step_seconds = 0;
  auto last = std::chrono::steady_clock::now();
  r = trainer.run(folder, [&] {
    const auto now = std::chrono::steady_clock::now();
    step_seconds = std::chrono::duration<double>(now - last).count();
    last = now;
    return control.should_stop(step_seconds);
  });
  if (r.stopped) {
    log.warning(str_cat("stopped by ", control.reason().empty() ? "another rank" : control.reason(),
                        " after step ", r.steps, "; to continue: the same command",
                        o.text("run").empty() ? " with --run " + run : ""));
    return kExitStopped;
  }
  if (lead) print_result(folder, r);
  return kExitSuccess;
}

/// --global-batch says how many images an update has, whoever computes them.
Options with_divided_batch(Options o, int64_t ranks) {
  const int64_t all = o.integer("global-batch"), each = o.integer("batch-size") * ranks;
  if (all == 0) return o;
  LOWBIT_CHECK(all % each == 0, usage, o.verb().name,
               "--global-batch must be a multiple of --batch-size times processes (got ", all, ", ",
               o.integer("batch-size"), " x ", ranks, ")");
  o.set("accumulate", std::to_string(all / each), OptionOrigin::command_line);
  return o;
}

/// Different weights or images on the nodes would go unnoticed for a long time.
void check_ranks_agree(Communicator& ranks, const Trainer& trainer, const DataSets& data, ImageModel& model,
                       Log& log) {
  if (ranks.size() == 1) return;
  require_equal(ranks,
                str_cat("weights ", checksum(model.state()), ", ", data.train->size(), " images, ",
                        trainer.images_per_step(), " in an update"),
                "weights, data and batches");
  const bool detour = model.device().is_cuda() && ranks.transport() == "MPI";
  log.info(str_cat(ranks.size(), " processes, an update has ", trainer.images_per_step(),
                   " images; gradients are summed over ", ranks.transport(),
                   detour ? " and the host: NCCL is missing" : ""));
}

int train_as(const Options& asked, const std::vector<std::string>& command_line, Communicator& ranks,
             TrainOutcome& outcome) {
  const Options given = with_settled_choices(with_divided_batch(asked, ranks.size()), ranks);
  check_training_options(given);
  install_stop_signals();
  Log log(log_options(given, ranks));
  Experiment e = open_experiment(given, true, log);
  const Options& o = e.options;
  ImageModel& model = *e.model;
  const auto teacher = open_teacher(o, model.config(), e.data, log);
  Trainer trainer(o, model, teacher.get(), e.data, log, ranks);
  if (o.flag("dry-run")) {
    if (ranks.lead()) print_plan(o, model, trainer, e.data);
    return kExitSuccess;
  }
  std::string from;
  if (const auto found = find_checkpoint(o, from)) {
    if (!found->note.empty()) log.warning(found->note);
    trainer.resume(*found, from);
    if (trainer.finished()) {
      log.info(str_cat("the run in ", from, " is finished (", trainer.outcome().steps,
                       " steps): nothing to do; raise --epochs or --max-steps, or choose another --run"));
      outcome = trainer.outcome();
      if (ranks.lead()) print_result(from, outcome);
      return kExitSuccess;
    }
    log.info(str_cat("resumed after step ", trainer.outcome().steps));
    warn_of_changes(o, from, log);
  } else {
    take_moments(o, trainer, log);
  }
  check_ranks_agree(ranks, trainer, e.data, model, log);
  const auto make = [&] { return make_run_folder(o.text("output"), o.text("run"), model.config().name); };
  const std::string folder = lead_text(ranks, ranks.lead() ? make() : "");
  if (ranks.lead())
    log.open_file(folder + "/log.txt");
  else if (o.text("log-ranks") == "all")
    log.open_file(str_cat(folder, "/log.rank", ranks.rank(), ".txt"));
  if (ranks.lead()) write_identity(o, command_line, folder, e.data, model, ranks.size());
  return train_in(folder, o, trainer, log, ranks.lead(), outcome);
}

}  // namespace

int train_model(const Options& given, const std::vector<std::string>& command_line, TrainOutcome& outcome) {
  if (given.flag("eval-only")) return run_eval(given, command_line);
  return run_as_rank(given, [&](const Options& o, Communicator& ranks) {
    return train_as(o, command_line, ranks, outcome);
  });
}

int run_train(const Options& o, const std::vector<std::string>& command_line) {
  TrainOutcome outcome;
  return train_model(o, command_line, outcome);
}

}  // namespace lowbit
