// One update: forward, backward, optimizer, and what must be read of it. See train/step/step_runner.h for how
// it is run on a device.

#include <cmath>
#include <optional>

#include "autograd/ops/broadcast.h"
#include "quant/weight_regularizer.h"
#include "tensor/core/context.h"
#include "tensor/core/draws.h"
#include "train/optim/clip.h"
#include "train/step/trainer.h"

namespace lowbit {
namespace {

/// Random draws of a micro-batch begin here: a function of its number in the run, so that they do not depend
/// on who computes it. No model needs 2^36 blocks of four.
uint64_t first_draw(int64_t number) { return uint64_t(number) << 36; }

}  // namespace

double Trainer::rate() const {
  if (!o_.flag("sched-per-step")) return schedule_.lr(pass_.time);
  return schedule_.lr(pass_.time + double(pass_.crops) * double(step_in_epoch_) / double(steps_per_epoch_));
}

double Trainer::scheduled(const std::string& name) const {
  const double begin = o_.real(name);
  if (!o_.given(name + "-final")) return begin;
  const double passed = double(pass_.crops) * double(step_in_epoch_) / double(steps_per_epoch_);
  return annealed(begin, o_.real(name + "-final"), (double(epoch_) + passed) / double(epochs_));
}

void Trainer::stop_nonfinite(const Loader::Batch* b, const std::string& what) {
  std::string text = what + " at step " + std::to_string(step_ + 1);
  if (b) {
    Variable logits;
    const std::string cause = find_nonfinite(model_, b->fields[0], [&] { objective_(*b, logits); });
    const std::string file = str_cat("nonfinite-step", step_ + 1, ".safetensors");
    save_safetensors(
        checkpoints_->path(file), {{"images", b->fields[0]}, {"labels", b->fields[1]}},
        {{"step", std::to_string(step_ + 1)}, {"epoch", std::to_string(epoch_)}, {"cause", cause}});
    text += str_cat(" (", cause, "); the images and labels of the step are in ", file);
  }
  log_.error(text);
  fail(ErrorKind::numeric, "train", text + "; the last checkpoint of the run is kept");
}

/// Reads the results of this rank's batches; `b` is the batch of the last one, if it is at hand.
void Trainer::read_results(const Loader::Batch* b) {
  for (const Result& r : unread_) {
    const float value = r.loss.item<float>();
    if (!std::isfinite(value)) stop_nonfinite(b, "the loss is not finite");
    figures_.push_back({count_correct(r.logits, r.labels), value});
  }
  unread_.clear();
}

/// Takes the results of finished steps on all ranks into the averages, in the order of the batches.
void Trainer::take_results() {
  read_results(nullptr);
  const size_t mine = figures_.size(), local = size_t(sum_.local());
  const std::vector<Figures> all = gather(ranks_, std::span<const Figures>(figures_));
  for (size_t step = 0; step < mine; step += local)
    for (size_t rank = 0; rank < size_t(ranks_.size()); ++rank)
      for (size_t i = step; i < step + local; ++i) {
        const Figures& f = all[rank * mine + i];
        progress_.loss.add(f.loss, double(f.counts.total));
        progress_.top1.add(f.counts.percent1(), double(f.counts.total));
      }
  figures_.clear();
}

/// Gradients of what depends on the weights alone: once in an update, however many batches make it.
void Trainer::regularize() {
  if (values_.bins > 0) {
    const bool exact = o_.text("bin-membership") == "exact";
    const auto membership = exact ? MembershipTest::exact : MembershipTest::published;
    mul(weight_regularizer(model_, membership), Variable(values_.device_bins())).backward();
  }
  if (values_.dampening > 0)
    mul(dampening_regularizer(model_), Variable(values_.device_dampening())).backward();
  if (o_.flag("learn-bits") && o_.real("bitops-scaler") > 0) {
    const Variable over = bit_budget_penalty(model_, o_.real("bitops-scaler"), o_.real("bitops-budget"));
    if (over.requires_grad()) over.backward();
  }
}

/// Why steps cannot be captured; empty: they can.
std::string Trainer::why_eager() const {
  // It ends the run at the first operation whose result is not finite, with name and place, before anything
  // is computed from it. A graph could only tell afterwards, when the weights are updated already.
  if (model_.device().is_cuda() && context().check_finite) return "LOWBIT_CHECK_FINITE reads every result";
  return "";
}

/// Everything that decides which kernels a step starts: shapes, what is switched on, and trained widths.
std::string Trainer::step_key(const std::vector<Loader::Batch>& parts) {
  size_t notes = 0;  // a quantizer that was initialised, or changed its state
  for (const Quantizer* q : quantizers_) notes += q->history().size();
  std::string key =
      str_cat(notes, values_.bins > 0, values_.dampening > 0, model_.training(), widths_.look());
  for (const Loader::Batch& b : parts)
    for (const Tensor& t : b.fields) key += t.str();
  return key;
}

/// The batches in the places from which a graph reads them.
const std::vector<Loader::Batch>& Trainer::resident(Resident& r, const std::vector<Loader::Batch>& parts) {
  if (r.parts.empty()) {
    r.parts = parts;
    for (Loader::Batch& b : r.parts)
      for (Tensor& t : b.fields) t = t.clone();
    return r.parts;
  }
  for (size_t i = 0; i < parts.size(); ++i)
    for (size_t f = 0; f < parts[i].fields.size(); ++f) r.parts[i].fields[f].copy_from(parts[i].fields[f]);
  return r.parts;
}

void Trainer::compute(const std::vector<Loader::Batch>& parts) {
  const bool device = model_.device().is_cuda();
  const DeviceDraws draws(device ? values_.device_draws() : nullptr);
  const bool alone = sum_.micro_batches() == 1;  // nobody looks at gradients before backward has ended
  std::optional<LsqPass::Scope> scales;
  results_.clear();
  for (int64_t i = 0; i < sum_.local(); ++i) {
    const Loader::Batch& b = parts[size_t(i)];
    context().generator.set_state(first_draw(i) + (device ? 0 : values_.draws));
    sum_.begin(i);
    Variable logits, l;
    try {
      if (i == 0) {
        if (freezing_) freezing_->before_step();  // which puts frozen weights on their levels
        monitor_.before_step();
        scales.emplace(lsq_pass_ ? &*lsq_pass_ : nullptr, alone);
      }
      l = objective_(b, logits);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::numeric) stop_nonfinite(&b, e.what());
      throw;
    }
    results_.push_back({l.data(), logits.data(), b.fields[1]});
    // Where the device works on its own, the numbers are read when somebody wants to see them.
    if (!device) unread_ = {results_.back()}, read_results(&b);
    if (sum_.first() + i == 0) regularize();
    sum_.backward(i, l);
  }
  if (lsq_pass_) lsq_pass_->flush();
  sum_.finish_local();
}

void Trainer::update() {
  sum_.complete();
  if (annealing_) annealing_->before_update();
  if (freezing_) freezing_->before_update();
  if (o_.real("clip-grad") > 0)
    clip_gradients(arena_, clip_mode(o_.text("clip-mode")), o_.real("clip-grad"), 2);
  optimizer_.step(values_.device_update({int64_t(arena_.size()), kHyperColumns}));
  if (annealing_) annealing_->after_update();
  if (freezing_) freezing_->after_update();
  if (ema_) ema_->update();
}

void Trainer::step(const std::vector<Loader::Batch>& parts) {
  values_.draws = first_draw(step_ * sum_.micro_batches() + sum_.first());
  values_.bins = o_.flag("bin-regularizer") ? float(pass_.lambda) : 0;
  values_.dampening = float(scheduled("dampening"));
  if (freezing_) freezing_->set_threshold(scheduled("freeze-threshold"));
  progress_.lr = rate();
  // Gradients and scales are looked at in every step, of a device in those that write a line: it waits.
  const bool look = !model_.device().is_cuda() || (step_in_epoch_ + 1) % o_.integer("log-every") == 0;
  const bool graphs = runner_.graphs();
  const std::string key = graphs ? step_key(parts) : "";
  Resident* const mine = graphs ? &resident_[key] : nullptr;
  const std::vector<Loader::Batch>& batches = mine ? resident(*mine, parts) : parts;
  StepParts p;
  p.begin = [&] { values_.upload(); };
  p.compute = [&] { compute(batches); };
  // The parameters that a captured step gives a gradient are those of its capture.
  const auto recall = [&] {
    if (mine)
      for (size_t i = 0; i < mine->has_grad.size(); ++i) arena_.set_has_grad(i, mine->has_grad[i]);
  };
  if (ranks_.size() > 1)
    p.exchange = [&] {
      recall();
      sum_.exchange();
    };
  if (p.exchange && sum_.captures())
    p.captured = {.agree = [&](bool mine) { return !any_rank(ranks_, !mine); },
                  .launched = [&] { ranks_.launched(); }};
  p.prepare = [&] {
    if (p.whole()) recall();
    if (look && !runner_.captured(key)) monitor_.after_backward(step_ + 1, arena_);
    values_.update = optimizer_.hyper(progress_.lr);
    values_.upload();
  };
  p.update = [&] { update(); };
  const bool replayed = runner_.run(key, p);
  if (replayed) {
    arena_.values().touch();
    monitor_.replayed();
    if (look && !annealing_) monitor_.after_backward(step_ + 1, arena_);  // which changes the gradients
  } else if (mine && runner_.captured(key)) {
    mine->results = results_;
    for (size_t i = 0; i < arena_.size(); ++i) mine->has_grad.push_back(arena_.has_grad(i));
  }
  if (graphs)  // the next step writes to the same places
    for (const Result& r : replayed ? mine->results : results_)
      unread_.push_back({r.loss.clone(), r.logits.clone(), r.labels.clone()});
  else if (model_.device().is_cuda())
    unread_.insert(unread_.end(), results_.begin(), results_.end());
  results_.clear();
  if (graphs) std::erase_if(resident_, [&](const auto& r) { return !runner_.captured(r.first); });
  ++step_, ++step_in_epoch_;
  if (look) monitor_.after_update(step_);
}

}  // namespace lowbit
