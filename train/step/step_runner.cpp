#include "train/step/step_runner.h"

#include <optional>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

constexpr int kRehearsals = 2;  ///< the second one already replaces what the first has left behind

void run_eagerly(const StepParts& parts) {
  parts.begin();
  parts.compute();
  parts.prepare();
  parts.update();
}

}  // namespace

StepRunner::StepRunner(Mode mode, Device d, bool strict, Log& log, int warmup)
    : mode_(d.is_cuda() ? mode : Mode::eager), device_(d), strict_(strict), log_(log), warmup_(warmup) {
  LOWBIT_ASSERT(warmup >= kRehearsals);
}

void StepRunner::give_up(const std::string& why) {
  if (mode_ == Mode::eager) return;
  LOWBIT_CHECK(!strict_, usage, "", "--graph on: ", why);
  log_.info("the steps are not captured as a graph: " + why);
  mode_ = Mode::eager;
  reset();
}

void StepRunner::reset() {
  graphs_.clear();
  pool_.reset();
  in_a_row_ = 0;
}

bool StepRunner::run(const std::string& key, const StepParts& parts) {
  if (mode_ == Mode::eager) {
    run_eagerly(parts);
    return false;
  }
  in_a_row_ = key == last_ ? in_a_row_ + 1 : 1;
  last_ = key;
  const auto known = graphs_.find(key);
  if (known != graphs_.end()) {
    parts.prepare();
    known->second->launch();
    return true;
  }
  if (in_a_row_ > warmup_ && capture(key, parts)) {
    parts.prepare();
    graphs_.at(key)->launch();
    return false;
  }
  std::optional<DevicePool::Scope> memory;
  if (mode_ == Mode::graph && in_a_row_ > warmup_ - kRehearsals) {
    if (!pool_) pool_ = std::make_unique<DevicePool>(device_);
    memory.emplace(*pool_);
  }
  run_eagerly(parts);
  return false;
}

/// Nothing has run when it fails, so the step can still be run kernel by kernel.
bool StepRunner::capture(const std::string& key, const StepParts& parts) {
  auto graph = std::make_unique<DeviceGraph>(*pool_);
  try {
    graph->capture([&] {
      parts.compute();
      parts.update();
    });
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::capture || strict_) throw;
    give_up(e.what());
    return false;
  }
  nodes_ = graph->nodes();
  log_.info(str_cat("the step is captured as a graph of ", nodes_, " kernels and copies"));
  graphs_[key] = std::move(graph);
  return true;
}

}  // namespace lowbit
