#include "train/step/step_runner.h"

#include <algorithm>

#include "tensor/core/backend.h"
#include "tensor/core/error.h"

namespace lowbit {
namespace {

constexpr int kRehearsals = 2;  ///< the second one already replaces what the first has left behind

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
  if (!graphs_.empty()) synchronize(device_);  // with its guard, which the end of a graph has not
  graphs_.clear();
  pool_.reset();
  in_a_row_ = 0;
}

/// Rehearsed with the memory of the graph, but for the exchange, which takes its own.
void StepRunner::run_eagerly(const StepParts& parts, bool rehearse) {
  std::optional<DevicePool::Scope> memory;
  const auto enter = [&] {
    if (rehearse) memory.emplace(*pool_);
  };
  enter();
  parts.begin();
  parts.compute();
  memory.reset();
  if (parts.exchange) parts.exchange();
  enter();
  parts.prepare();
  parts.update();
}

bool StepRunner::run(const std::string& key, const StepParts& parts) {
  ++steps_;
  in_a_row_ = key == last_ ? in_a_row_ + 1 : 1;
  last_ = key;
  const auto known = graphs_.find(key);
  if (known != graphs_.end()) {
    Recorded& r = known->second;
    r.used = steps_;
    if (r.update) {
      parts.begin();
      r.compute->launch();
      parts.exchange();
      parts.prepare();
      r.update->launch();
    } else {
      launch_whole(*r.compute, parts);
    }
    return true;
  }
  if (mode_ == Mode::graph && in_a_row_ > warmup_ && first_launch(key, parts)) return false;
  const bool rehearse = mode_ == Mode::graph && in_a_row_ > warmup_ - kRehearsals;
  if (rehearse && !pool_) pool_ = std::make_unique<DevicePool>(device_);
  run_eagerly(parts, rehearse);
  return false;
}

/// Null and the reason: it cannot be captured, and nothing of it has run.
std::unique_ptr<DeviceGraph> StepRunner::capture(const std::function<void()>& work, std::string& why) {
  auto graph = std::make_unique<DeviceGraph>(*pool_);
  try {
    graph->capture(work);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::capture || strict_) throw;
    why = e.what();
    return nullptr;
  }
  return graph;
}

void StepRunner::launch_whole(DeviceGraph& graph, const StepParts& parts) {
  parts.prepare();
  graph.launch();
  if (parts.captured) parts.captured->launched();
}

void StepRunner::keep(const std::string& key, Recorded r, bool sums) {
  nodes_ = r.compute->nodes() + (r.update ? r.update->nodes() : 0);
  log_.info(str_cat("the step is captured as a graph of ", nodes_, " kernels and copies",
                    r.update ? ", in two parts around the sum over the processes"
                    : sums   ? ", sums over the processes included"
                             : ""));
  if (graphs_.size() == kMostKeys) {
    synchronize(device_);
    graphs_.erase(std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
      return a.second.used < b.second.used;
    }));
  }
  r.used = steps_;
  graphs_[key] = std::move(r);
}

/// Captures the step and runs it. False: it cannot be captured, and nothing has run.
bool StepRunner::first_launch(const std::string& key, const StepParts& parts) {
  Recorded r;
  std::string why;
  r.compute = capture(
      [&] {
        parts.compute();
        if (!parts.whole()) return;
        if (parts.exchange) parts.exchange();
        parts.update();
      },
      why);
  if (parts.captured && !parts.captured->agree(r.compute != nullptr)) {
    if (r.compute) why = "the step of another process cannot be recorded";
    r.compute.reset();
  }
  if (!r.compute) return give_up(why), false;
  if (parts.whole()) {
    keep(key, std::move(r), bool(parts.exchange));
    launch_whole(*graphs_.at(key).compute, parts);
    return true;
  }
  parts.begin();
  r.compute->launch();
  parts.exchange();
  parts.prepare();  // only now are the parameters known that any process has a gradient for
  r.update = capture(parts.update, why);
  if (!r.update) {
    r.compute.reset();
    give_up(why);
    parts.update();
    return true;
  }
  r.update->launch();
  keep(key, std::move(r), true);
  return true;
}

}  // namespace lowbit
