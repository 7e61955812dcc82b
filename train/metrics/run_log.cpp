#include "train/metrics/run_log.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tensor/core/error.h"
#include "train/config/build_info.h"
#include "train/metrics/log.h"

namespace lowbit {
namespace {

using Json = nlohmann::ordered_json;
constexpr const char* kSummaryHeader =
    "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,img_per_s,osc_share";

Json number(double v) {
  if (std::isfinite(v)) return v;
  return std::isnan(v) ? "nan" : v > 0 ? "inf" : "-inf";
}

std::string dump(const Json& j, int indent = -1) {
  return j.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string cell(const std::optional<double>& v) {
  if (!v) return "";
  const Json j = number(*v);
  return j.is_string() ? j.get<std::string>() : j.dump();
}

bool is_header_or_before(const std::string& row, int64_t epoch) {
  return row == kSummaryHeader || std::strtoll(row.c_str(), nullptr, 10) < epoch;
}

/// An evaluation stands at the step of its epoch's end and is repeated unless the epoch was finished.
bool is_before_resume(const std::string& line, const RunLogOptions& o) {
  const auto j = Json::parse(line, nullptr, false);
  if (!j.is_object()) return false;
  const int64_t step = j.value("step", int64_t(0));
  if (step != o.resume_step || j.value("split", "") == "train") return step <= o.resume_step;
  return j.value("epoch", int64_t(0)) < o.resume_epoch;
}

}  // namespace

RunLog::RunLog(const RunLogOptions& o) {
  const std::string metrics = o.folder + "/metrics.jsonl", summary = o.folder + "/summary.csv";
  keep_lines(metrics, [&](const std::string& line) { return is_before_resume(line, o); });
  keep_lines(summary, [&](const std::string& row) { return is_header_or_before(row, o.resume_epoch); });
  metrics_ = std::make_unique<AppendFile>(metrics);
  summary_ = std::make_unique<AppendFile>(summary);
  if (std::filesystem::file_size(summary) == 0) summary_->write(std::string(kSummaryHeader) + "\n");
  if (o.tensorboard) events_ = std::make_unique<EventWriter>(o.folder);
}

void RunLog::event(int64_t step, int64_t epoch, const std::string& split, const Metrics& metrics,
                   const MetricLists& lists) {
  Json j;
  j["t"] = std::round(unix_time() * 1000) / 1000;
  j["step"] = step;
  j["epoch"] = epoch;
  j["split"] = split;
  for (const auto& [name, value] : metrics) {
    j[name] = number(value);
    if (events_) events_->scalar(split + "/" + name, step, value);
  }
  for (const auto& [name, values] : lists)
    for (const double v : values) j[name].push_back(number(v));
  metrics_->write(dump(j));
}

void RunLog::histogram(const std::string& tag, int64_t step, std::span<const float> values) {
  if (events_) events_->histogram(tag, step, values);
}

void RunLog::epoch(const EpochSummary& s) {
  std::string row = std::to_string(s.epoch);
  for (const auto& v : {s.train_loss, s.eval_loss, s.eval_top1, s.eval_top5, s.lr, s.img_per_s, s.osc_share})
    (row += ",") += cell(v);
  summary_->write(row + "\n");
}

std::string make_run_folder(const std::string& output, const std::string& run, const std::string& model) {
  namespace fs = std::filesystem;
  std::string name = run;
  if (name.empty()) {
    const std::time_t now = std::time_t(unix_time());
    std::tm tm{};
    localtime_r(&now, &tm);
    char text[32];
    std::strftime(text, sizeof text, "%Y%m%d-%H%M%S-", &tm);
    name = text + model;
    const std::string base = name;
    for (int k = 2; fs::exists(fs::path(output) / name); ++k) name = str_cat(base, "-", k);
  }
  const std::string folder = (fs::path(output) / name).string();
  std::error_code error;
  fs::create_directories(folder, error);
  LOWBIT_CHECK(!error && fs::is_directory(folder), run, "output", "cannot create the run folder '", folder,
               "': ", error ? error.message() : "not a folder");
  LOWBIT_CHECK(::access(folder.c_str(), W_OK | X_OK) == 0, run, "output", "cannot write to '", folder,
               "': ", std::strerror(errno));
  return folder;
}

std::string manifest_json(const Manifest& m) {
  Json j;
  for (const auto& [what, value] : build_info()) j[what] = value;
  j["host"] = host_name();
  j["pid"] = int64_t(getpid());
  j["start time"] = iso_time(m.start_time);
  j["command line"] = m.command_line;
  j["decoder"] = m.decoder;
  j["sha256"] = Json::object();
  for (const auto& [what, digest] : m.digests) j["sha256"][what] = digest;
  for (const auto& [what, value] : m.extra) j[what] = value;
  j["weight bits"] = m.weight_bits;
  for (const BitMapRow& r : m.bit_map)
    j["bit map"].push_back({{"products", r.products},
                            {"weights", r.weights},
                            {"left bits", r.left_bits},
                            {"right bits", r.right_bits},
                            {"multiply-adds", r.macs}});
  return dump(j, 1);
}

}  // namespace lowbit
