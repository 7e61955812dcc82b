#include "data/core/loader.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "data/core/random.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {

namespace {

/// Signals are for the main thread: workers inherit a mask that blocks all but those a fault raises.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&blocked, s);
    pthread_sigmask(SIG_BLOCK, &blocked, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

struct Slot {
  std::vector<Tensor> fields;
  std::vector<View> views;
  Tensor bytes;  ///< of its blob
  std::unique_ptr<Blob> blob;
  int64_t remaining = 0;  ///< samples still to be read
  int64_t error_at = 0;   ///< position in the batch of the first sample that failed
  std::exception_ptr error;
};

}  // namespace

// `mine` lists the batches of this share that the epoch still has, and they are counted by their place in the
// list. Tasks are samples, handed out in order: task t is sample t mod batch of batch t / batch, which lives
// in slot (t / batch) mod slots. `mutex` guards everything below it but the pixels.
struct Loader::Impl {
  std::shared_ptr<const Dataset> dataset;
  std::shared_ptr<const Sampler> sampler;
  LoaderOptions o;
  Dataset::BlobSize blob;
  std::vector<Slot> slots;
  std::vector<std::thread> workers;
  Stats stats;

  std::mutex mutex;
  std::condition_variable may_read, progress;
  bool stop = false;
  std::vector<int64_t> order;
  std::vector<int32_t> visit;  ///< how often the sample at a place of the order came before in this epoch
  std::vector<int64_t> mine;   ///< numbers in the epoch
  int64_t epoch = 0, next_task = 0, end_task = 0;
  int64_t next_batch = 0;  ///< that next() will return; the one before it is in the consumer's hands
  int64_t in_flight = 0;

  int64_t batch_size(int64_t b) const { return std::min(o.batch, end_task - b * o.batch); }
  void choose(int64_t first_batch, int64_t count);
  Slot& slot(int64_t b) { return slots[size_t(b % o.slots)]; }
  /// The slot of the batch in the consumer's hands must not be written.
  bool task_ready() const { return next_task < end_task && next_task / o.batch < next_batch - 1 + o.slots; }
  void allocate();
  void recycle(int64_t b);
  void run_task(std::unique_lock<std::mutex>& lock);
  void work();
  void abandon(std::unique_lock<std::mutex>& lock);
};

/// Fills `mine` from the batches first_batch … count − 1 of the epoch. Only its very last can be short.
void Loader::Impl::choose(int64_t first_batch, int64_t count) {
  mine.clear();
  for (int64_t b = first_batch; b < count; ++b) {
    const int64_t place = b % o.share.group - o.share.first;
    if (place >= 0 && place < o.share.count) mine.push_back(b);
  }
  next_task = next_batch = 0;
  end_task = int64_t(mine.size()) * o.batch;
  if (!mine.empty()) end_task -= std::max<int64_t>(0, (mine.back() + 1) * o.batch - int64_t(order.size()));
}

void Loader::Impl::allocate() {
  slots.resize(size_t(o.slots));
  for (Slot& s : slots) {
    for (const Dataset::Field& f : dataset->fields()) {
      Shape shape{o.batch};
      for (int64_t extent : f.shape) shape.append(extent);
      s.fields.push_back(Tensor::empty(shape, f.dtype));
      s.views.push_back(s.fields.back().mutable_view());
    }
    if (blob.average > 0) {
      s.blob = std::make_unique<Blob>();
      s.bytes = Tensor::empty({o.batch * Blob::padded(std::max(blob.least, blob.average))}, DType::u8);
    }
  }
}

/// Prepares the slot of batch b for its samples. The pixels count as modified from here on, so that a graph
/// that still refers to the old batch reports it.
void Loader::Impl::recycle(int64_t b) {
  Slot& s = slot(b);
  s.remaining = batch_size(b);
  s.error = nullptr;
  for (Tensor& t : s.fields) t.mutable_view();
  if (s.blob) s.blob->reset(s.bytes.data<uint8_t>(), s.bytes.numel(), s.remaining, blob.least);
}

/// Takes the next task and carries it out; the lock is released meanwhile.
void Loader::Impl::run_task(std::unique_lock<std::mutex>& lock) {
  const int64_t task = next_task++, batch = task / o.batch, position = task % o.batch;
  const size_t place = size_t(mine[size_t(batch)] * o.batch + position);
  const int64_t index = order[place];
  RngKey key = sample_key(o.seed, epoch, index);
  key.offset = uint64_t(visit[place]) << 32;  // a repeated sample draws anew
  Slot& s = slot(batch);
  ++in_flight;
  lock.unlock();
  std::exception_ptr error;
  try {
    std::array<View, 8> out;
    for (size_t f = 0; f < s.views.size(); ++f) {
      View v = s.views[f];
      v.data = v.as<char>() + position * v.stride[0] * int64_t(dtype_size(v.dtype));
      std::copy(v.shape + 1, v.shape + v.ndim, v.shape);
      std::copy(v.stride + 1, v.stride + v.ndim, v.stride);
      --v.ndim;
      out[f] = v;
    }
    const std::span<const View> views{out.data(), s.views.size()};
    if (s.blob)
      dataset->read_with_bytes(index, key, views, *s.blob);
    else
      dataset->read(index, key, views);
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  --in_flight;
  if (error && (!s.error || position < s.error_at)) {
    s.error = error;
    s.error_at = position;
  }
  if (--s.remaining == 0 || next_task >= end_task) progress.notify_all();
}

void Loader::Impl::work() {
  enable_flush_to_zero();
  std::unique_lock lock(mutex);
  for (;;) {
    may_read.wait(lock, [&] { return stop || task_ready(); });
    if (stop) return;
    run_task(lock);
  }
}

/// No task is handed out any more and none is under way.
void Loader::Impl::abandon(std::unique_lock<std::mutex>& lock) {
  end_task = next_task = 0;
  progress.wait(lock, [&] { return in_flight == 0; });
}

Loader::Loader(std::shared_ptr<const Dataset> dataset, std::shared_ptr<const Sampler> sampler,
               const LoaderOptions& options)
    : impl_(std::make_unique<Impl>()) {
  LOWBIT_CHECK(options.batch > 0 && options.workers >= 0 && options.slots >= 2, value, "loader",
               "batch must be positive, workers not negative, slots at least 2 (got ", options.batch, ", ",
               options.workers, ", ", options.slots, ")");
  const LoaderOptions::Share& share = options.share;
  LOWBIT_CHECK(share.first >= 0 && share.count > 0 && share.first + share.count <= share.group, value,
               "loader", "a share must lie inside its group (got ", share.count, " from ", share.first,
               " of ", share.group, ")");
  Impl& m = *impl_;
  m.dataset = std::move(dataset);
  m.sampler = std::move(sampler);
  m.o = options;
  LOWBIT_CHECK(m.dataset->fields().size() <= 8, value, "loader", "a data set has at most 8 fields");
  m.blob = m.dataset->blob_size();
  m.allocate();
  const BlockedSignals blocked;
  for (int i = 0; i < options.workers; ++i) m.workers.emplace_back([&m] { m.work(); });
}

Loader::~Loader() {
  {
    std::unique_lock lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->may_read.notify_all();
  for (std::thread& t : impl_->workers) t.join();
}

const Dataset& Loader::dataset() const { return *impl_->dataset; }
const LoaderOptions& Loader::options() const { return impl_->o; }
const Loader::Stats& Loader::stats() const { return impl_->stats; }

int64_t Loader::batches() const {
  const int64_t n = impl_->sampler->size(), b = impl_->o.batch;
  return impl_->o.drop_last ? n / b : (n + b - 1) / b;
}

void Loader::start(int64_t epoch, int64_t first_batch) {
  Impl& m = *impl_;
  const int64_t count = batches();
  LOWBIT_CHECK(first_batch >= 0 && first_batch <= count, value, "loader", "first batch must be 0 … ", count,
               " (got ", first_batch, ")");
  std::vector<int64_t> order = m.sampler->epoch(epoch);
  std::vector<int32_t> visit, seen(size_t(m.dataset->size()));
  visit.reserve(order.size());
  for (int64_t i : order) {
    LOWBIT_CHECK(i >= 0 && i < m.dataset->size(), value, "loader", "sampler must name existing samples (got ",
                 i, " of ", m.dataset->size(), ")");
    visit.push_back(seen[size_t(i)]++);
  }
  std::unique_lock lock(m.mutex);
  m.abandon(lock);
  m.order = std::move(order);
  m.visit = std::move(visit);
  m.epoch = epoch;
  m.choose(first_batch, count);
  for (int64_t b = 0; b < m.o.slots; ++b) m.recycle(b);
  m.may_read.notify_all();
}

std::optional<Loader::Batch> Loader::next() {
  Impl& m = *impl_;
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(m.mutex);
  const int64_t b = m.next_batch;
  if (b * m.o.batch >= m.end_task) return std::nullopt;
  m.recycle(b - 1 + m.o.slots);
  m.next_batch = b + 1;
  m.may_read.notify_all();
  Slot& s = m.slot(b);
  while (s.remaining > 0) {
    if (m.workers.empty()) {
      m.run_task(lock);
    } else {
      m.progress.wait(lock, [&] { return s.remaining == 0; });
    }
  }
  if (s.error) {
    m.abandon(lock);
    std::rethrow_exception(s.error);
  }
  Batch batch{{}, m.mine[size_t(b)], m.batch_size(b)};
  for (const Tensor& t : s.fields) batch.fields.push_back(t.slice(0, 0, batch.size).to(m.o.device));
  if (s.blob) m.dataset->finish(batch.fields, s.bytes.slice(0, 0, s.blob->used()).to(m.o.device));
  m.stats.wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ++m.stats.batches;
  m.stats.samples += batch.size;
  return batch;
}

}  // namespace lowbit
