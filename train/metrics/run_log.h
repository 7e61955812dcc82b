#pragma once
// The files of a run folder that programs read: metrics.jsonl, summary.csv, TensorBoard events, args.json,
// manifest.json.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/metrics/append_file.h"
#include "train/metrics/event_writer.h"

namespace lowbit {

using Metrics = std::vector<std::pair<std::string, double>>;
using MetricLists = std::vector<std::pair<std::string, std::vector<double>>>;

/// One row of summary.csv: epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,img_per_s,osc_share. What is
/// absent stays empty.
struct EpochSummary {
  int64_t epoch = 0;
  std::optional<double> train_loss, eval_loss, eval_top1, eval_top5, lr, img_per_s, osc_share;
};

struct RunLogOptions {
  std::string folder;  ///< exists
  bool tensorboard = true;
  int64_t resume_epoch = 0;  ///< rows of summary.csv from this epoch on are written again
  int64_t resume_step = 0;   ///< lines of metrics.jsonl after this step are written again, and evaluations
                             ///< at it unless their epoch is finished
};

class RunLog {
 public:
  explicit RunLog(const RunLogOptions& o);
  /// One line {"t", "step", "epoch", "split", metrics…}; every metric also as scalar "<split>/<name>".
  /// Numbers that are not finite are written as strings ("nan", "inf", "-inf").
  /// `lists` become arrays, in metrics.jsonl only.
  void event(int64_t step, int64_t epoch, const std::string& split, const Metrics& metrics,
             const MetricLists& lists = {});
  void histogram(const std::string& tag, int64_t step, std::span<const float> values);
  void epoch(const EpochSummary& s);

 private:
  std::unique_ptr<AppendFile> metrics_, summary_;
  std::unique_ptr<EventWriter> events_;
};

/// Creates `<output>/<run>` (run empty: "20260301-123456-<model>", made unique by a suffix) and returns its
/// path. Throws Error(run) when it cannot be created or written.
std::string make_run_folder(const std::string& output, const std::string& run, const std::string& model);

/// Products of equal operands.
struct BitMapRow {
  std::string products;       ///< "blocks.0-11.attn.qkv"
  bool weights;               ///< the right operand is a weight
  int left_bits, right_bits;  ///< 32: float
  double macs;                ///< multiply-adds for one image
};

struct Manifest {
  std::vector<std::string> command_line;
  double start_time = 0;
  std::string decoder;                         ///< e.g. "libjpeg-turbo 2.1.5"
  std::map<std::string, std::string> digests;  ///< what → SHA-256
  std::map<std::string, std::string> extra;    ///< e.g. data index, seeds, device
  std::vector<BitMapRow> bit_map;
  double weight_bits = 0;
};
std::string manifest_json(const Manifest& m);

}  // namespace lowbit
