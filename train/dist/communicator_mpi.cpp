// liblowbit_mpi.so: ranks over MPI. Only non-blocking collectives, so that every wait has an end, notices a
// rank that failed, and answers those that ask whether this rank is alive. What lies on a GPU passes through
// the host, for machines without NCCL.

#include <dlfcn.h>
#include <mpi.h>
#include <sched.h>

#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <thread>

#include "tensor/core/error.h"
#include "train/dist/plugins.h"
#include "train/step/stop.h"

namespace lowbit {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

constexpr int kPing = 1, kPong = 2, kFail = 3;
constexpr double kAnswerSeconds = 2, kFarewellSeconds = 0.5, kNoticeSeconds = 0.3;

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(double limit) : limit_(limit) {
    // Parts that MPI loads itself may expect its symbols to be visible.
    Dl_info mpi{};
    if (dladdr(reinterpret_cast<void*>(&MPI_Init_thread), &mpi))
      dlopen(mpi.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    int level = 0, initialised = 0;
    MPI_Initialized(&initialised);
    if (!initialised) check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level), "start");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    check(MPI_Comm_dup(MPI_COMM_WORLD, &work_), "start");
    check(MPI_Comm_dup(MPI_COMM_WORLD, &notes_), "start");
    MPI_Comm_rank(work_, &rank_), MPI_Comm_size(work_, &size_);
    alive_.resize(size_t(size_));
  }
  ~MpiCommunicator() override {
    if (!failed_) MPI_Finalize();  // after a failure it would wait for ranks that are gone
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string transport() const override { return "MPI"; }

  std::vector<std::byte> all_gather(std::span<const std::byte> mine) override {
    const std::byte nothing[1] = {};
    const int n = count(int64_t(mine.size()));
    std::vector<std::byte> all(mine.size() * size_t(size_) + (n ? 0 : size_t(size_)));
    MPI_Request r;
    // A barrier sends a byte: collectives of nothing need not wait.
    check(MPI_Iallgather(n ? mine.data() : nothing, n ? n : 1, MPI_BYTE, all.data(), n ? n : 1, MPI_BYTE,
                         work_, &r),
          "all-gather");
    wait({&r, 1}, "exchange");
    if (n == 0) all.clear();
    return all;
  }
  void all_to_all(const Tensor& from, Tensor& to) override {
    const Tensor source = from.to(Device{});
    Tensor target = on_host(to);
    const int n = count(from.numel() / size_);
    MPI_Request r;
    check(MPI_Ialltoall(source.data_const<float>(), n, MPI_FLOAT, target.data<float>(), n, MPI_FLOAT, work_,
                        &r),
          "all-to-all");
    wait({&r, 1}, "sum of gradients");
    if (to.device().is_cuda()) to.copy_from(target);
  }
  void all_gather(const Tensor& mine, Tensor& all) override {
    const Tensor source = mine.to(Device{});
    Tensor target = on_host(all);
    const int n = count(mine.numel());
    MPI_Request r;
    check(MPI_Iallgather(source.data_const<float>(), n, MPI_FLOAT, target.data<float>(), n, MPI_FLOAT, work_,
                         &r),
          "all-gather");
    wait({&r, 1}, "sum of gradients");
    if (all.device().is_cuda()) all.copy_from(target);
  }
  void start_sum(Tensor part) override {
    Sum s{part, part.to(Device{})};
    MPI_Request r;
    check(MPI_Iallreduce(MPI_IN_PLACE, s.host.data<float>(), count(part.numel()), MPI_FLOAT, MPI_SUM, work_,
                         &r),
          "all-reduce");
    sums_.push_back(r), summed_.push_back(std::move(s));
    int done = 0;  // lets the sums before this one proceed
    check(MPI_Testall(int(sums_.size()), sums_.data(), &done, MPI_STATUSES_IGNORE), "all-reduce");
  }
  void finish_sums() override {
    wait(sums_, "sum of gradients");
    for (Sum& s : summed_)
      if (s.part.device().is_cuda()) s.part.copy_from(s.host);
    sums_.clear(), summed_.clear();
  }
  void fail(int code, const std::string& text) noexcept override;

 private:
  struct Sum {
    Tensor part, host;  ///< on the CPU the same memory
  };
  /// Where t is written: itself, or memory for what will be copied into it.
  static Tensor on_host(const Tensor& t) {
    return t.device().is_cuda() ? Tensor::empty(t.shape(), t.dtype()) : t;
  }
  static int count(int64_t n) {
    LOWBIT_CHECK(n <= INT_MAX, value, "mpi", "messages have at most 2^31 - 1 elements (got ", n, ")");
    return int(n);
  }
  void check(int result, const char* what) {
    if (result == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(result, text, &length);
    failed_ = true;
    throw RankFailure(kExitRankLost, str_cat("MPI ", what, ": ", text));
  }
  void wait(std::span<MPI_Request> requests, const char* what);
  void listen();
  void note(int to, int tag) {
    MPI_Request r;
    if (MPI_Isend(nullptr, 0, MPI_BYTE, to, tag, notes_, &r) == MPI_SUCCESS) MPI_Request_free(&r);
  }
  bool answers(int first, int last);
  void give_up(const char* what, double waited);

  double limit_;
  int rank_ = 0, size_ = 1;
  MPI_Comm work_ = MPI_COMM_NULL, notes_ = MPI_COMM_NULL;
  std::vector<MPI_Request> sums_;
  std::vector<Sum> summed_;  ///< what they belong to
  std::vector<char> alive_;  ///< has answered the last question
  std::string farewell_;     ///< stays while it is being sent, which a dead rank makes forever
  bool failed_ = false, signal_told_ = false;
};

/// Reads what other ranks have sent outside the collectives.
void MpiCommunicator::listen() {
  for (;;) {
    int here = 0;
    MPI_Status s;
    check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, notes_, &here, &s), "probe");
    if (!here) return;
    int n = 0;
    MPI_Get_count(&s, MPI_BYTE, &n);
    std::string text(size_t(n), ' ');
    check(MPI_Recv(text.data(), n, MPI_BYTE, s.MPI_SOURCE, s.MPI_TAG, notes_, MPI_STATUS_IGNORE), "receive");
    if (s.MPI_TAG == kPing) note(s.MPI_SOURCE, kPong);
    if (s.MPI_TAG == kPong) alive_[size_t(s.MPI_SOURCE)] = 1;
    if (s.MPI_TAG == kFail) {
      failed_ = true;
      throw RankFailure(text[0], str_cat("rank ", s.MPI_SOURCE, ": ", text.substr(1)));
    }
  }
}

/// Asks the ranks first … last − 1 and waits a little for the answers.
bool MpiCommunicator::answers(int first, int last) {
  std::fill(alive_.begin(), alive_.end(), 0);
  alive_[size_t(rank_)] = 1;
  for (int r = first; r < last; ++r)
    if (r != rank_) note(r, kPing);
  const auto all = [&] {
    return std::all_of(alive_.begin() + first, alive_.begin() + last, [](char a) { return a != 0; });
  };
  for (const auto begin = Clock::now(); !all() && since(begin) < kAnswerSeconds; sched_yield()) listen();
  return all();
}

/// Nothing came within the limit. Rank 0 finds out who is missing and tells the rest; they only watch rank 0.
void MpiCommunicator::give_up(const char* what, double waited) {
  std::vector<int> missing;
  if (rank_ == 0) {
    answers(0, size_);
    for (int r = 0; r < size_; ++r)
      if (!alive_[size_t(r)]) missing.push_back(r);
  } else if (answers(0, 1)) {
    return;
  } else {
    missing.push_back(0);
  }
  std::ostringstream text;
  for (const int r : missing) text << (r == missing[0] ? "" : ", ") << "rank " << r;
  if (missing.empty()) text << "the ranks wait for one another";
  text << ": no answer for " << int64_t(waited) << " s (" << what << ")";
  if (!missing.empty()) text << ", dead or hung";
  text << "; the last checkpoint of the run is kept";
  if (rank_ == 0) fail(kExitRankLost, text.str());
  failed_ = true;
  throw RankFailure(kExitRankLost, text.str());
}

void MpiCommunicator::wait(std::span<MPI_Request> requests, const char* what) {
  auto begin = Clock::now();
  for (int turn = 0;; ++turn) {
    int done = 0;
    check(MPI_Testall(int(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), what);
    if (done) return;
    listen();
    const double waited = since(begin);
    if (waited > limit_) {
      give_up(what, waited);
      begin = Clock::now();  // rank 0 is alive and watches the others
    }
    if (stop_signal() != 0 && waited > kNoticeSeconds && !signal_told_) {
      signal_told_ = true;
      std::fprintf(stderr, "lowbit: rank %d: a stop signal arrived; waiting for the other ranks (%s)\n",
                   rank_, what);
    }
    if (turn < 200)
      sched_yield();  // ranks may be more than processors
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

void MpiCommunicator::fail(int code, const std::string& text) noexcept {
  failed_ = true;
  farewell_ = char(code) + text;
  std::vector<MPI_Request> sent;
  for (int r = 0; r < size_; ++r)
    if (MPI_Request q; r != rank_ && MPI_Isend(farewell_.data(), int(farewell_.size()), MPI_BYTE, r, kFail,
                                               notes_, &q) == MPI_SUCCESS)
      sent.push_back(q);
  int done = 0;
  for (const auto begin = Clock::now(); !done && since(begin) < kFarewellSeconds; sched_yield())
    if (MPI_Testall(int(sent.size()), sent.data(), &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) return;
}

}  // namespace
}  // namespace lowbit

extern "C" __attribute__((visibility("default"))) lowbit::Communicator* lowbit_open_mpi(double limit) {
  return new lowbit::MpiCommunicator(limit);
}
