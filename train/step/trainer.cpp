#include "train/step/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "quant/weight_regularizer.h"
#include "tensor/core/context.h"
#include "train/config/device.h"
#include "train/report/report.h"
#include "train/step/quantize.h"

namespace lowbit {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr double kStepsToJudgeLoader = 10, kReportSeconds = 20, kPublishedCooldown = 10, kGlanceSeconds = 0.5;

/// VVTQ's trainer of float models, followed to the letter.
bool published_float(const Options& o) {
  return compat(o) == Compat::vvtq && o.integer("wbits") == 32 && o.integer("abits") == 32;
}

LoaderOptions loader_options(const Options& o, int64_t batch, bool drop_last, LoaderOptions::Share share) {
  LoaderOptions l;
  l.batch = batch;
  l.workers = int(o.integer("workers"));
  l.slots = std::max(3, l.workers + 2);
  l.seed = uint64_t(o.integer("seed"));
  l.drop_last = drop_last;
  l.device = run_device(o);
  l.share = share;
  return l;
}

TensorMap part_of(const TensorMap& all, const std::string& prefix) {
  TensorMap m;
  for (const auto& [name, t] : all)
    if (name.starts_with(prefix)) m[name.substr(prefix.size())] = t;
  return m;
}

int64_t eval_batch(const Options& o) {
  return o.integer("eval-batch-size") > 0 ? o.integer("eval-batch-size") : o.integer("batch-size");
}

}  // namespace

ScheduleOptions schedule_options(const Options& o, int64_t steps_per_epoch) {
  ScheduleOptions s;
  s.kind = o.text("sched");
  s.lr = o.real("lr"), s.min_lr = o.real("min-lr");
  s.total = double(o.integer("epochs"));
  s.warmup = double(o.integer("warmup-epochs")), s.warmup_lr = o.real("warmup-lr");
  s.warmup_scales = o.text("warmup-mode") == "scale";
  s.interval = o.flag("sched-per-step") ? 1.0 / double(std::max<int64_t>(steps_per_epoch, 1)) : 1;
  const bool published_end = compat(o) == Compat::ofq && !o.given("cooldown-epochs");
  s.cooldown = published_end ? kPublishedCooldown : double(o.integer("cooldown-epochs"));
  s.cycle_mul = o.real("lr-cycle-mul"), s.cycle_limit = int(o.integer("lr-cycle-limit"));
  s.decay_interval = o.real("decay-epochs"), s.decay_rate = o.real("decay-rate");
  s.milestones = o.reals("milestones");
  s.patience = int(o.integer("patience-epochs"));
  const std::vector<double> noise = o.reals("lr-noise");
  LOWBIT_CHECK(noise.size() <= 2, usage, o.verb().name, "--lr-noise takes one or two shares: A[,B] (got '",
               o.raw("lr-noise"), "')");
  if (!noise.empty()) s.noise_from = noise[0] * s.total;
  if (noise.size() > 1) s.noise_to = noise[1] * s.total;
  s.noise_bound = o.real("lr-noise-pct");
  return s;
}

OptimizerOptions optimizer_options(const Options& o) {
  OptimizerOptions p;
  p.kind = o.text("opt");
  p.weight_decay = o.real("weight-decay");
  const std::vector<double> betas = o.reals("opt-betas", 2);
  p.beta1 = betas[0], p.beta2 = betas[1];
  p.eps = o.real("opt-eps");
  p.momentum = o.real("momentum");
  return p;
}

Trainer::Trainer(const Options& o, ImageModel& model, ImageModel* teacher, const DataSets& data, Log& log,
                 Communicator& ranks)
    : o_(o),
      model_(model),
      objective_(o, model, teacher),
      data_(data),
      log_(log),
      ranks_(ranks),
      settings_(settings_to_save(o, model.config())),
      arena_((choose_decay(model, o), model.parameters())),
      sum_(arena_, model.state(), ranks, o.integer("accumulate"), o.flag("deterministic")),
      optimizer_(arena_, optimizer_options(o)),
      schedule_(
          schedule_options(o, data.train_order->size() / (o.integer("batch-size") * sum_.micro_batches()))),
      val_(data.val, data.val_order,
           loader_options(o, eval_batch(o), false, {ranks.size(), ranks.rank(), 1})),
      values_(int64_t(arena_.size()) * kHyperColumns, model.device()),
      runner_(o.text("graph") == "off" ? StepRunner::Mode::eager : StepRunner::Mode::graph, model.device(),
              o.text("graph") == "on", log),
      widths_(model, arena_),
      monitor_(model, o.flag("track-oscillation"), log),
      epochs_(int64_t(std::llround(schedule_.run_length()))) {
  LOWBIT_CHECK(steps_of(pass_at(0)) > 0, usage, "",
               "an epoch needs at least one step: lower --batch-size or --accumulate (got ",
               data.train_order->size(), " training images, batches of ", o.integer("batch-size"), ", ",
               sum_.micro_batches(), " a step)");
  make_remedies();
  if (o.flag("model-ema")) ema_.emplace(arena_, model.state(), o.real("model-ema-decay"));
  model_.recompute_blocks = o.flag("recompute");
  for (const auto& [slot, q] : quantizers(model)) quantizers_.push_back(q);
  if (model.device().is_cuda()) lsq_pass_.emplace(model);
  if (const std::string why = why_eager(); !why.empty()) runner_.give_up(why);
  context().generator = Generator(uint64_t(o.integer("seed")), 1);
}

/// What acts on quantized weights beside the optimizer.
void Trainer::make_remedies() {
  LOWBIT_CHECK(!o_.flag("bin-regularizer") || weight_regularizer(model_).defined(), usage, "",
               "--bin-regularizer needs weights with LSQ quantizers (--wbits, --quantizer vvtq or lsq)");
  const bool dampened = o_.real("dampening") > 0 || o_.real("dampening-final") > 0;
  LOWBIT_CHECK(!dampened || dampening_regularizer(model_).defined(), usage, "",
               "--dampening needs weights with trained quantizers (--wbits, --quantizer vvtq, lsq or ofq)");
  if (o_.real("cga-range") > 0) {
    annealing_.emplace(model_, o_.real("cga-range"));
    LOWBIT_CHECK(!annealing_->empty(), usage, "",
                 "--cga-range needs weights of 2 to 7 bits with a quantizer (--wbits)");
  }
  if (o_.real("freeze-threshold") > 0) {
    OscillationSettings s;
    s.momentum = o_.real("freeze-momentum"), s.freeze_threshold = o_.real("freeze-threshold");
    freezing_.emplace(model_, s);
    LOWBIT_CHECK(
        !freezing_->empty(), usage, "",
        "--freeze-threshold needs weights with trained scales (--wbits, --quantizer vvtq, lsq or lsq+, "
        "without --fixed-scale)");
  }
}

EpochCall Trainer::pass_at(int64_t epoch) const {
  // Published: the rate of an epoch is set after it.
  if (data_.crops == 0 && published_float(o_)) return {epoch, 1, std::max(0.0, double(epoch) - 1), 0, 0};
  if (data_.crops == 0)
    return {epoch, 1, double(epoch), 0, bin_regulariser_weight(double(epoch), double(epochs_))};
  return epoch_call({epochs_, o_.integer("warmup-epochs"), int(data_.crops)}, schedule_, epoch);
}

/// A step sees as many crops in every pass.
int64_t Trainer::images_each(const EpochCall& pass) const {
  return o_.integer("batch-size") * std::max<int64_t>(data_.crops, 1) / pass.crops;
}

int64_t Trainer::images_per_step() const {
  return o_.integer("batch-size") * std::max<int64_t>(data_.crops, 1) * sum_.micro_batches();
}

int64_t Trainer::steps_of(const EpochCall& pass) const {
  const int64_t n = data_.train_order->size(), each = images_each(pass);
  // The published trainer with stored labels keeps the last, short batch.
  const int64_t batches = data_.crops > 0 ? (n + each - 1) / each : n / each;
  return batches / sum_.micro_batches();
}

int64_t Trainer::steps() const {
  int64_t n = -step_in_epoch_;
  for (int64_t e = epoch_; e < epochs_;) {
    const EpochCall pass = pass_at(e);
    n += steps_of(pass), e += pass.crops;
  }
  return n;
}

void Trainer::open_pass() {
  pass_ = pass_at(epoch_);
  steps_per_epoch_ = steps_of(pass_);
  if (loader_crops_ == pass_.crops) return;
  loader_crops_ = pass_.crops;
  LoaderOptions l = loader_options(o_, images_each(pass_), data_.crops == 0,
                                   {sum_.micro_batches(), sum_.first(), sum_.local()});
  if (data_.augment) l.device = {};  // prepare_batch mixes on the host
  train_.emplace(pass_.crops == 1 && data_.train_single ? data_.train_single : data_.train, data_.train_order,
                 l);
}

void Trainer::take_moments(const RunCheckpoints::Resume& from, const std::string& what) {
  const auto opt = from.state.meta.find("opt");
  LOWBIT_CHECK(opt == from.state.meta.end() || opt->second == o_.text("opt"), io, "resume", what,
               " was written with --opt ", opt->second);
  optimizer_.load(part_of(from.state.tensors, "optim/"));
}

void Trainer::resume(const RunCheckpoints::Resume& from, const std::string& what) {
  const auto number = [&](const char* key) {
    const auto it = from.state.meta.find(key);
    LOWBIT_CHECK(it != from.state.meta.end(), io, "resume", what, " lacks '", key, "'");
    return int64_t(std::strtoll(it->second.c_str(), nullptr, 10));
  };
  const auto values = [&](const char* key, size_t count) {
    const auto it = from.state.tensors.find(key);
    LOWBIT_CHECK(it != from.state.tensors.end() && it->second.dtype() == DType::f64 &&
                     it->second.numel() == int64_t(count),
                 io, "resume", what, " lacks '", key, "'");
    return it->second.to_vector<double>();
  };
  const auto part = [&](const char* prefix) { return part_of(from.state.tensors, prefix); };
  const WeightFile weights{what, FileFormat::safetensors, "", from.weights.tensors, {}};
  const WeightMatch match = match_weights(model_.state(), weights);
  LOWBIT_CHECK(match.complete(), io, "resume", what, " is the run of another model: ", match.examples());
  model_.load(from.weights.tensors);
  take_moments(from, what);
  monitor_.load(part("osc/"));
  const TensorMap average = part("ema/");
  LOWBIT_CHECK(ema_.has_value() == !average.empty(), io, "resume", what, " was written ",
               ema_ ? "without" : "with", " --model-ema");
  if (ema_) ema_->load(average);
  if (freezing_) freezing_->load(part("freeze/"));
  epoch_ = number("epoch"), step_in_epoch_ = number("step_in_epoch"), step_ = number("step");
  steps_per_epoch_ = steps_of(pass_at(epoch_));
  LOWBIT_CHECK(number("steps_per_epoch") == steps_per_epoch_, io, "resume", what, " has ",
               number("steps_per_epoch"), " steps in an epoch, now there are ", steps_per_epoch_,
               "; continue with the same images, --crops, --batch-size and --accumulate (--global-batch for "
               "any number of processes)");
  schedule_.load(values("schedule", schedule_.state().size()));
  const auto loss = values("loss", 3), top1 = values("top1", 3), results = values("results", 6);
  progress_.loss.load(loss[0], loss[1], loss[2]), progress_.top1.load(top1[0], top1[1], top1[2]);
  outcome_.steps = step_;
  outcome_.best_top1 = results[0];
  outcome_.last.counts = {int64_t(results[1]), int64_t(results[2]), int64_t(results[3])};
  evaluated_step_ = int64_t(results[4]);
  progress_.lr = results[5];
}

/// Making the page takes at most a hundredth of the time.
void Trainer::refresh_report(bool running) {
  const double begin = now();
  if (!ranks_.lead() || (running && begin < report_due_)) return;
  write_report(folder_, running);
  report_due_ = now() + std::max(kReportSeconds, 100 * (now() - begin));
}

void Trainer::save_last() {
  take_results();
  if (!ranks_.lead()) return;
  Checkpoint state;
  for (auto& [name, t] : optimizer_.state()) state.tensors["optim/" + name] = t;
  for (auto& [name, t] : monitor_.state()) state.tensors["osc/" + name] = t;
  if (ema_)
    for (auto& [name, t] : ema_->state()) state.tensors["ema/" + name] = t;
  if (freezing_)
    for (auto& [name, t] : freezing_->state()) state.tensors["freeze/" + name] = t;
  const auto keep = [&](const char* name, const std::vector<double>& v) {
    state.tensors[name] = Tensor::from(std::span<const double>(v), {int64_t(v.size())});
  };
  keep("schedule", schedule_.state());
  keep("loss", progress_.loss.state()), keep("top1", progress_.top1.state());
  const TopCounts& c = outcome_.last.counts;
  keep("results", {outcome_.best_top1, double(c.top1), double(c.top5), double(c.total),
                   double(evaluated_step_), progress_.lr});
  state.meta = {{"epoch", std::to_string(epoch_)},
                {"step_in_epoch", std::to_string(step_in_epoch_)},
                {"steps_per_epoch", std::to_string(steps_of(pass_at(epoch_)))},
                {"opt", o_.text("opt")},
                {"step", std::to_string(step_)}};
  checkpoints_->save_last(weights_checkpoint(), state);
}

Checkpoint Trainer::weights_checkpoint() {
  Checkpoint c{model_.state(), settings_};
  c.meta["lowbit.epoch"] = std::to_string(epoch_);
  c.meta["lowbit.step"] = std::to_string(step_);
  return c;
}

void Trainer::report_step(double seconds, double waited) {
  progress_.epoch = epoch_, progress_.epochs = epochs_, progress_.covered = pass_.crops;
  progress_.step = step_in_epoch_ - 1, progress_.steps = steps_per_epoch_;
  progress_.batch = images_per_step();
  progress_.step_time.add(seconds), progress_.data_time.add(waited);
  const bool line = step_in_epoch_ % o_.integer("log-every") == 0 || step_in_epoch_ == steps_per_epoch_;
  // Reading takes part of all ranks, and only the first may have a terminal; it also waits for a device.
  const bool glance = ranks_.size() == 1 && log_.status_line() && now() - last_read_ > kGlanceSeconds;
  if (line || !model_.device().is_cuda() || glance) {
    take_results(), last_read_ = now();
    progress_.flip_rate = monitor_.flip_rate();
  }
  if (log_.status_line())
    log_.status(status_text(progress_));
  else if (line)
    log_.info(train_line(progress_));
  if (!line) return;
  Metrics m = {{"loss", progress_.loss.last()},
               {"top1", progress_.top1.last()},
               {"lr", progress_.lr},
               {"img_per_s", double(progress_.batch) / seconds},
               {"data_wait", waited},
               {"mem_mib", resident_mib()}};
  if (annealing_) m.emplace_back("cga/free_share", annealing_->free_share());
  if (freezing_) m.emplace_back("freeze/share", freezing_->frozen_share());
  for (auto& metric : monitor_.metrics()) m.push_back(std::move(metric));
  if (run_log_) run_log_->event(step_, epoch_, "train", m);
  refresh_report(true);
  if (progress_.step_time.count() >= kStepsToJudgeLoader)
    monitor_.warnings().loader(step_, progress_.step_time.mean(), progress_.data_time.mean(),
                               o_.integer("workers"));
}

bool Trainer::at_limit() const { return o_.integer("max-steps") > 0 && step_ >= o_.integer("max-steps"); }

bool Trainer::finished() const { return epoch_ >= epochs_ || (at_limit() && evaluated_step_ == step_); }

Trainer::Pass Trainer::train_epoch(const StopRequest& stop) {
  model_.train(!(published_float(o_) && !o_.text("weights").empty()));  // published: --finetune evaluates
  open_pass();
  if (double(epoch_) >= std::floor(o_.real("learn-bits-until") * double(epochs_))) fix_bits(model_);
  train_->start(epoch_, step_in_epoch_ * sum_.micro_batches());
  progress_.step_time.reset(), progress_.data_time.reset();
  while (step_in_epoch_ < steps_per_epoch_ && !at_limit()) {
    const double begin = now();
    double waited = 0;
    std::vector<Loader::Batch> parts;
    for (int64_t i = 0; i < sum_.local(); ++i) {
      const double asked = now();
      auto batch = train_->next();
      LOWBIT_ASSERT(batch);
      waited += now() - asked;
      prepare_batch(*batch, data_.augment.get(), epoch_, model_.device());
      if (sum_.local() > 1)  // a batch is valid until the next one is taken
        for (Tensor& field : batch->fields) field = field.clone();
      parts.push_back(std::move(*batch));
    }
    step(parts);
    report_step(now() - begin, waited);
    const int64_t every = o_.integer("checkpoint-every");
    const bool stopping = any_rank(ranks_, stop && stop());
    if (stopping || (every > 0 && step_ % every == 0)) save_last();
    if (stopping) return Pass::stopped;
  }
  return step_in_epoch_ == steps_per_epoch_ ? Pass::whole : Pass::limit;
}

bool Trainer::evaluate_now(const StopRequest& stop) {
  bool stopped = false;
  if (ema_) ema_->swap();
  const EvalResult e = evaluate(
      model_, val_,
      [&](const EvalResult& r, int64_t) {
        if (log_.status_line())
          log_.status(str_cat("evaluating ", r.counts.total, " images, Acc@1 ", r.counts.percent1()));
        stopped = stop && stop();
        return !stopped;
      },
      ranks_);
  if (ema_) ema_->swap();
  runner_.interrupt();
  if (any_rank(ranks_, stopped)) return false;
  take_results();
  outcome_.last = e, evaluated_step_ = step_;
  progress_.eval_seconds = e.seconds;
  if (log_.status_line()) log_.info(train_line(progress_));  // otherwise the last step has printed it
  log_.info(eval_result(e.counts, e.loss));
  if (!run_log_) return true;
  run_log_->event(step_, epoch_, "eval",
                  {{"loss", e.loss},
                   {"top1", e.counts.percent1()},
                   {"top5", e.counts.percent5()},
                   {"img_per_s", e.img_per_s()},
                   {"peak_mib", peak_resident_mib()}});
  monitor_.placements(step_, epoch_, *run_log_);
  return true;
}

void Trainer::write_summary() {
  if (!run_log_) return;
  const EvalResult& e = outcome_.last;
  EpochSummary s;
  s.epoch = epoch_;
  s.train_loss = progress_.loss.mean(), s.eval_loss = e.loss;
  s.eval_top1 = e.counts.percent1(), s.eval_top5 = e.counts.percent5();
  s.lr = progress_.lr, s.img_per_s = outcome_.train_img_per_s;
  if (monitor_.share() >= 0) s.osc_share = monitor_.share();
  run_log_->epoch(s);
}

/// Evaluates and writes the checkpoints, the newest last: a crash in between repeats all of it.
bool Trainer::finish(bool whole_epoch, const StopRequest& stop) {
  if (progress_.step_time.mean() > 0)
    outcome_.train_img_per_s = double(progress_.batch) / progress_.step_time.mean();
  if (!evaluate_now(stop)) {
    save_last();
    return false;
  }
  const double top1 = outcome_.last.counts.percent1();
  const bool best = top1 > outcome_.best_top1;
  if (best) outcome_.best_top1 = top1;
  if (whole_epoch) {
    write_summary();
    schedule_.report(double(epoch_ + pass_.crops), top1);
    progress_.loss.reset(), progress_.top1.reset();
    epoch_ += pass_.crops, step_in_epoch_ = 0;
  }
  if (ema_) ema_->swap();
  if (best && ranks_.lead()) checkpoints_->save_best(weights_checkpoint());
  if (whole_epoch && ranks_.lead()) checkpoints_->save_epoch(epoch_ - 1, weights_checkpoint());
  if (ema_) ema_->swap();
  save_last();
  return true;
}

TrainOutcome Trainer::run(const std::string& folder, const StopRequest& stop) {
  folder_ = folder;
  checkpoints_.emplace(folder, int(o_.integer("keep")));
  // A run continued in another folder has no best weights there yet.
  if (!std::filesystem::exists(checkpoints_->path("best.safetensors"))) outcome_.best_top1 = -1;
  RunLogOptions r;
  r.folder = folder, r.tensorboard = o_.flag("tensorboard"), r.resume_epoch = epoch_, r.resume_step = step_;
  if (ranks_.lead()) run_log_.emplace(r);
  if (step_ == 0 && run_log_) monitor_.placements(step_, epoch_, *run_log_);
  if (step_ == 0) save_last();  // a crash in the first epoch can already be resumed
  while (!finished() && !outcome_.stopped) {
    const Pass pass = train_epoch(stop);
    outcome_.stopped = pass == Pass::stopped || !finish(pass == Pass::whole, stop);
    if (!outcome_.stopped && !finished()) outcome_.stopped = any_rank(ranks_, stop && stop());
  }
  log_.clear_status();
  refresh_report(false);
  outcome_.steps = step_;
  return outcome_;
}

}  // namespace lowbit
