#include "data/core/loader.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <numeric>
#include <set>
#include <thread>

#include "data/core/random.h"
#include "data/core/synthetic.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

/// Writes the index and two draws; sleeps so that samples finish out of order. Sample `bad` fails.
class ProbeDataset final : public Dataset {
 public:
  explicit ProbeDataset(int64_t n, std::set<int64_t> bad = {}) : n_(n), bad_(std::move(bad)) {}
  int64_t size() const override { return n_; }
  std::vector<Field> fields() const override {
    return {{"draws", Shape{2, 1}, DType::f32}, {"label", Shape{}, DType::i64}};
  }
  void read(int64_t index, const RngKey& key, std::span<const View> out) const override {
    ++reads;
    std::this_thread::sleep_for(std::chrono::microseconds(philox_below(key, 0, 300)));
    LOWBIT_CHECK(!bad_.count(index), io, "probe", "sample ", index, " is bad");
    EXPECT_EQ(out[0].ndim, 2);
    EXPECT_EQ(out[1].ndim, 0);
    for (uint64_t i = 0; i < 2; ++i) out[0].as<float>()[i] = philox_uniform(key, 1 + i);
    *out[1].as<int64_t>() = index;
  }
  mutable std::atomic<int64_t> reads{0};

 private:
  int64_t n_;
  std::set<int64_t> bad_;
};

struct Copy {
  Tensor draws, label;
  int64_t index;
};

std::vector<Copy> rest(Loader& loader) {
  std::vector<Copy> all;
  while (auto b = loader.next()) {
    EXPECT_EQ(b->fields[0].size(0), b->size);
    all.push_back({b->fields[0].clone(), b->fields[1].clone(), b->index});
  }
  return all;
}

void expect_equal(const std::vector<Copy>& a, const std::vector<Copy>& b, size_t skip = 0) {
  ASSERT_EQ(a.size(), b.size() + skip);
  for (size_t i = 0; i < b.size(); ++i) {
    EXPECT_EQ(a[i + skip].index, b[i].index);
    EXPECT_TRUE(equal_bits(a[i + skip].draws, b[i].draws)) << i;
    EXPECT_TRUE(equal_bits(a[i + skip].label, b[i].label)) << i;
  }
}

std::unique_ptr<Loader> make_loader(int64_t samples, int workers, bool drop_last = false, int slots = 3) {
  LoaderOptions o;
  o.batch = 7;
  o.workers = workers;
  o.slots = slots;
  o.seed = 5;
  o.drop_last = drop_last;
  return std::make_unique<Loader>(std::make_shared<ProbeDataset>(samples),
                                  std::make_shared<ShuffleSampler>(samples, 5), o);
}

TEST(Loader, BytesDoNotDependOnWorkersOrSlots) {
  const auto reference = make_loader(100, 0);
  for (int workers : {0, 1, 2, 3}) {
    for (int slots : {2, 4}) {
      const auto loader = make_loader(100, workers, false, slots);
      for (int64_t epoch : {0, 1, 7}) {
        reference->start(epoch);
        loader->start(epoch);
        const std::vector<Copy> expected = rest(*reference), actual = rest(*loader);
        ASSERT_EQ(expected.size(), 15u);
        EXPECT_EQ(expected.back().label.numel(), 2);
        expect_equal(expected, actual);
      }
    }
  }
}

TEST(Loader, ResumesInTheMiddleOfAnEpoch) {
  for (int workers : {0, 2}) {
    const auto loader = make_loader(100, workers);
    loader->start(3);
    const std::vector<Copy> whole = rest(*loader);
    for (int64_t first : {1, 6, 14, 15}) {
      const auto fresh = make_loader(100, workers);
      fresh->start(3, first);
      expect_equal(whole, rest(*fresh), size_t(first));
      loader->start(3, first);  // and without a new loader
      expect_equal(whole, rest(*loader), size_t(first));
    }
  }
}

TEST(Loader, SharesTogetherAreTheEpoch) {
  const auto whole = make_loader(100, 2);
  for (const auto& [group, count] :
       std::vector<std::pair<int64_t, int64_t>>{{2, 1}, {4, 2}, {3, 1}, {16, 4}}) {
    for (const int64_t first_batch : {0, 1, 7}) {
      SCOPED_TRACE(str_cat("group ", group, " count ", count, " from ", first_batch));
      whole->start(4, first_batch);
      std::vector<Copy> expected = rest(*whole), got;
      for (int64_t first = 0; first < group; first += count) {
        LoaderOptions o;
        o.batch = 7, o.workers = int(first % 3), o.slots = 3, o.seed = 5, o.drop_last = false;
        o.share = {group, first, count};
        Loader part(std::make_shared<ProbeDataset>(100), std::make_shared<ShuffleSampler>(100, 5), o);
        EXPECT_EQ(part.batches(), 15);
        part.start(4, first_batch);
        for (Copy& c : rest(part)) {
          EXPECT_GE(c.index % group, first);
          EXPECT_LT(c.index % group, first + count);
          got.push_back(std::move(c));
        }
      }
      std::sort(got.begin(), got.end(), [](const Copy& a, const Copy& b) { return a.index < b.index; });
      ASSERT_EQ(got.size(), expected.size());
      expect_equal(expected, got);
    }
  }
}

TEST(Loader, StartAbandonsWhatIsUnderWay) {
  const auto loader = make_loader(100, 3);
  loader->start(1);
  const std::vector<Copy> whole = rest(*loader);
  for (int taken : {0, 1, 5}) {
    loader->start(9);
    for (int i = 0; i < taken; ++i) loader->next();
    loader->start(1);
    expect_equal(whole, rest(*loader));
  }
}

TEST(Loader, DropsTheShortBatchOnRequest) {
  const auto keep = make_loader(20, 2, false), drop = make_loader(20, 2, true);
  EXPECT_EQ(keep->batches(), 3);
  EXPECT_EQ(drop->batches(), 2);
  keep->start(0);
  drop->start(0);
  const std::vector<Copy> kept = rest(*keep), dropped = rest(*drop);
  ASSERT_EQ(kept.size(), 3u);
  ASSERT_EQ(dropped.size(), 2u);
  EXPECT_EQ(kept[2].label.numel(), 6);
  EXPECT_EQ(keep->stats().samples, 20);
  EXPECT_EQ(drop->stats().batches, 2);
  EXPECT_FALSE(keep->next());
}

TEST(Loader, EverySampleAppearsOnce) {
  const auto loader = make_loader(100, 2);
  loader->start(2);
  std::set<int64_t> seen;
  for (const Copy& c : rest(*loader)) {
    for (int64_t label : c.label.to_vector<int64_t>()) EXPECT_TRUE(seen.insert(label).second);
  }
  EXPECT_EQ(seen.size(), 100u);
}

TEST(Loader, BatchInUseIsNotOverwritten) {
  const auto loader = make_loader(100, 3, false, 2);
  loader->start(0);
  while (auto b = loader->next()) {
    const std::vector<float> before = b->fields[0].to_vector<float>();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    EXPECT_EQ(b->fields[0].to_vector<float>(), before);
  }
}

TEST(Loader, ReadsNoFurtherAheadThanItsSlots) {
  LoaderOptions o;
  o.batch = 5;
  o.workers = 2;
  o.slots = 3;
  const auto data = std::make_shared<ProbeDataset>(100);
  Loader loader(data, std::make_shared<SequentialSampler>(100), o);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(data->reads, 0);
  loader.start(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(data->reads, 15);
  loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(data->reads, 15);
}

TEST(Loader, FailureReachesTheBatchItBelongsTo) {
  for (int workers : {0, 1, 3}) {
    LoaderOptions o;
    o.batch = 5;
    o.workers = workers;
    Loader loader(std::make_shared<ProbeDataset>(40, std::set<int64_t>{17, 18, 30}),
                  std::make_shared<SequentialSampler>(40), o);
    for (int round = 0; round < 3; ++round) {
      loader.start(0);
      for (int i = 0; i < 3; ++i) ASSERT_TRUE(loader.next());
      try {
        loader.next();
        FAIL();
      } catch (const Error& e) {
        EXPECT_STREQ(e.what(), "probe: sample 17 is bad");
        EXPECT_EQ(e.kind(), ErrorKind::io);
      }
      EXPECT_FALSE(loader.next());
    }
  }
}

TEST(Loader, CanBeDestroyedAtAnyMoment) {
  for (int taken : {0, 1, 4}) {
    const auto loader = make_loader(200, 3);
    loader->start(0);
    for (int i = 0; i < taken; ++i) loader->next();
  }
  make_loader(200, 2);  // never started
}

TEST(Loader, MisuseIsRefused) {
  const auto data = std::make_shared<ProbeDataset>(10);
  const auto refused = [&](auto&& change) {
    LoaderOptions o;
    change(o);
    EXPECT_THROW(Loader(data, std::make_shared<SequentialSampler>(10), o), Error);
  };
  refused([](LoaderOptions& o) { o.batch = 0; });
  refused([](LoaderOptions& o) { o.workers = -1; });
  refused([](LoaderOptions& o) { o.slots = 1; });
  LoaderOptions o;
  o.batch = 4;
  Loader loader(data, std::make_shared<SequentialSampler>(10), o);
  EXPECT_FALSE(loader.next());
  EXPECT_THROW(loader.start(0, 3), Error);
  EXPECT_THROW(loader.start(0, -1), Error);
  Loader beyond(data, std::make_shared<ListSampler>(std::vector<int64_t>{1, 2, 3, 10}), o);
  EXPECT_THROW(beyond.start(0), Error);
}

/// A signal for the process must find a thread, and that thread must not be a loader's.
TEST(Loader, WorkersBlockSignals) {
  static std::atomic<int> hits{0};
  static std::thread::id where;
  struct sigaction action {
  }, before{};
  action.sa_handler = [](int) {
    where = std::this_thread::get_id();
    ++hits;
  };
  sigaction(SIGUSR1, &action, &before);
  const auto loader = make_loader(100, 3);
  loader->start(0);
  for (int i = 0; i < 20; ++i) {
    const int seen = hits;
    kill(getpid(), SIGUSR1);
    while (hits == seen) std::this_thread::yield();
    EXPECT_EQ(where, std::this_thread::get_id());
  }
  sigaction(SIGUSR1, &before, nullptr);
}

TEST(Sampler, ShuffleIsAPermutationThatSeedAndEpochDetermine) {
  const ShuffleSampler a(1000, 1), same(1000, 1), other(1000, 2);
  EXPECT_EQ(a.epoch(4), same.epoch(4));
  EXPECT_NE(a.epoch(4), a.epoch(5));
  EXPECT_NE(a.epoch(4), other.epoch(4));
  std::vector<int64_t> order = a.epoch(4);
  int64_t fixed_points = 0;
  for (size_t i = 0; i < order.size(); ++i) fixed_points += order[i] == int64_t(i);
  EXPECT_LT(fixed_points, 8);  // one is expected
  std::sort(order.begin(), order.end());
  EXPECT_EQ(order, SequentialSampler(1000).epoch(0));
  EXPECT_TRUE(ShuffleSampler(0, 1).epoch(0).empty());
}

TEST(Sampler, ShuffleIsUniform) {
  int64_t counts[4][4] = {};
  for (int64_t e = 0; e < 8000; ++e) {
    const std::vector<int64_t> order = ShuffleSampler(4, 3).epoch(e);
    for (size_t i = 0; i < 4; ++i) ++counts[i][order[i]];
  }
  for (auto& row : counts) {
    for (int64_t c : row) EXPECT_NEAR(double(c), 2000, 5 * std::sqrt(8000 * 0.25 * 0.75));  // five deviations
  }
}

TEST(Random, SampleKeysAreDistinct) {
  const RngKey a = sample_key(1, 2, 3);
  EXPECT_NE(a.stream, sample_key(1, 3, 2).stream);
  EXPECT_NE(a.stream, epoch_key(1, 2).stream);
  EXPECT_EQ(a.seed, 1u);
  EXPECT_THROW(sample_key(0, -1, 0), Error);
  EXPECT_THROW(sample_key(0, 1 << 24, 0), Error);
  EXPECT_THROW(sample_key(0, 0, int64_t(1) << 32), Error);
}

std::vector<float> synthetic_image(const SyntheticDataset& data, int64_t index, int64_t* label = nullptr) {
  Tensor image = Tensor::empty(data.fields()[0].shape), id = Tensor::empty({1}, DType::i64);
  const View views[2] = {image.mutable_view(), id.mutable_view()};
  data.read(index, {}, views);
  if (label) *label = id.item<int64_t>();
  return image.to_vector<float>();
}

/// The class whose mean image over a training set is nearest is the label nearly always: the classes can be
/// learned.
TEST(Synthetic, ClassesAreLearnable) {
  SyntheticDataset::Options o;
  o.samples = 200;
  o.classes = 5;
  o.size = 18;
  const SyntheticDataset train(o);
  o.first = o.samples;
  const SyntheticDataset val(o);
  std::vector<std::vector<double>> mean(5, std::vector<double>(3 * 18 * 18));
  double squares = 0;
  for (int64_t i = 0; i < 200; ++i) {
    int64_t label = -1;
    const std::vector<float> x = synthetic_image(train, i, &label);
    ASSERT_EQ(label, i % 5);
    for (size_t k = 0; k < x.size(); ++k) mean[size_t(label)][k] += x[k] / 40;
    squares += std::inner_product(x.begin(), x.end(), x.begin(), 0.0) / double(x.size()) / 200;
  }
  EXPECT_NEAR(squares, 2, 0.3);  // grid 1, noise 1
  int correct = 0;
  for (int64_t i = 0; i < 200; ++i) {
    int64_t label = -1;
    const std::vector<float> x = synthetic_image(val, i, &label);
    EXPECT_NE(x, synthetic_image(train, i));
    EXPECT_EQ(x, synthetic_image(val, i));
    std::vector<double> distance;
    for (const auto& m : mean) {
      double d = 0;
      for (size_t k = 0; k < x.size(); ++k) d += (x[k] - m[k]) * (x[k] - m[k]);
      distance.push_back(d);
    }
    correct += std::min_element(distance.begin(), distance.end()) - distance.begin() == label;
  }
  EXPECT_GT(correct, 190);
}

}  // namespace
}  // namespace lowbit
