#pragma once
// The trainer on batches that a test gives it, one step at a time.

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"
#include "train/step/trainer.h"

namespace lowbit::test {

/// Batches of a published run: images [B, 3, S, S], and labels i64 [B] or soft labels [B, C].
class RecordedBatches final : public Dataset {
 public:
  struct Batch {
    Tensor images, labels;
  };
  explicit RecordedBatches(std::vector<Batch> batches) : all_(std::move(batches)) {
    for (Batch& b : all_) b = {b.images.to(Device{}), b.labels.to(Device{})};  // samples are read on the host
  }
  int64_t each() const { return all_[0].images.size(0); }
  int64_t size() const override { return int64_t(all_.size()) * each(); }
  std::vector<Field> fields() const override {
    const Tensor &x = all_[0].images, &y = all_[0].labels;
    const Shape image{x.size(1), x.size(2), x.size(3)};
    if (y.dtype() == DType::i64) return {{"image", image, DType::f32}, {"label", Shape{}, DType::i64}};
    return {{"image", Shape{1, image[0], image[1], image[2]}, DType::f32},
            {"label", Shape{}, DType::i64},
            {"target", Shape{1, y.size(1)}, DType::f32}};
  }
  void read(int64_t index, const RngKey&, std::span<const View> out) const override {
    const Batch& b = all_[size_t(index / each())];
    const int64_t i = index % each();
    const auto copy = [](const Tensor& from, void* to) {
      const Tensor packed = from.packed();
      std::memcpy(to, packed.view().data, packed.bytes());
    };
    copy(b.images.select(0, i), out[0].data);
    const bool hard = b.labels.dtype() == DType::i64;
    *out[1].as<int64_t>() = hard ? b.labels.data_const<int64_t>()[i] : 0;
    if (!hard) copy(b.labels.select(0, i), out[2].data);
  }

 private:
  std::vector<Batch> all_;
};

/// Epoch `first` begins with the first batch, and so on in order.
class RecordedOrder final : public Sampler {
 public:
  RecordedOrder(int64_t samples, int64_t epochs, int64_t first)
      : n_(samples / epochs), epochs_(epochs), first_(first) {}
  int64_t size() const override { return n_; }
  std::vector<int64_t> epoch(int64_t e) const override {
    std::vector<int64_t> order(static_cast<size_t>(n_));
    const int64_t at = (e - first_ % epochs_ + epochs_) % epochs_;
    for (int64_t i = 0; i < n_; ++i) order[size_t(i)] = at * n_ + i;
    return order;
  }

 private:
  int64_t n_, epochs_, first_;
};

inline DataSets recorded_data(std::vector<RecordedBatches::Batch> batches, int64_t epochs,
                              int64_t first_epoch) {
  DataSets d;
  const auto hard = batches[0].labels.dtype() == DType::i64;
  d.train = std::make_shared<RecordedBatches>(batches);
  d.train_order = std::make_shared<RecordedOrder>(d.train->size(), epochs, first_epoch);
  RecordedBatches::Batch val = batches[0];
  const std::vector<int64_t> zeros(static_cast<size_t>(val.images.size(0)));
  if (!hard) val.labels = Tensor::from(std::span<const int64_t>(zeros), {int64_t(zeros.size())});
  d.val = std::make_shared<RecordedBatches>(std::vector{val});
  d.val_order = std::make_shared<SequentialSampler>(d.val->size());
  return d;
}

/// The values of a metric in the training lines of a run folder.
inline std::vector<double> logged(const std::string& folder, const std::string& metric,
                                  const std::string& split = "train") {
  std::vector<double> all;
  std::istringstream in(read_file(folder + "/metrics.jsonl"));
  for (std::string line; std::getline(in, line);) {
    const auto j = nlohmann::json::parse(line);
    if (j.at("split") == split) all.push_back(j.at(metric));
  }
  return all;
}

inline LogOptions silent() {
  LogOptions l;
  l.threshold = LogLevel::error;
  return l;
}

}  // namespace lowbit::test
