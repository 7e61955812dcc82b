// liblowbit_nccl.so: a rank for every GPU over NCCL. The communicator does not block and every wait has an
// end. Host blobs go through `host` (MPI) where there is one.

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#include "tensor/core/backend.h"
#include "tensor/core/device_graph.h"
#include "tensor/core/error.h"
#include "tensor/core/kernel_slot.h"
#include "tensor/io/atomic_file.h"
#include "train/dist/plugins.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// Polls until `done` says so; false when the limit has passed.
template <class Done>
bool poll(double limit, const Done& done) {
  const auto begin = Clock::now();
  for (int turn = 0; !done(); ++turn) {
    if (std::chrono::duration<double>(Clock::now() - begin).count() > limit) return false;
    if (turn > 1000) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

/// The identifier of rank 0 by way of a file that all ranks see. Nothing of it stays once they have started.
std::string id_by_file(const std::string& file, bool lead, const std::string& id, double limit) {
  if (lead) {
    fs::create_directories(fs::path(file).parent_path());
    write_file_atomic(file, id);
    return id;
  }
  std::string read;
  const bool found = poll(limit, [&] {
    std::ifstream in(file, std::ios::binary);
    read.assign(std::istreambuf_iterator<char>(in), {});
    return read.size() == id.size();
  });
  if (!found)
    throw RankFailure(kExitRankLost, str_cat("rank 0 has not written ", file, " within ", limit,
                                             " s; --output must be a folder that all nodes share"));
  return read;
}

/// A file that goes at the end of the scope, however that ends.
struct Passing {
  std::string file;
  ~Passing() {
    std::error_code none;
    if (!file.empty()) fs::remove(file, none);
  }
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Launch& l, Device device, double limit, Communicator* host,
                   const std::string& folder)
      : rank_(l.rank), size_(l.size), device_(device), limit_(limit), host_(host) {
    check(cudaSetDevice(device.index), "device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    for (cudaEvent_t* e : {&ready_, &done_, &ends_[0], &ends_[1]})
      check(cudaEventCreateWithFlags(e, cudaEventDisableTiming), "event");
    ncclUniqueId id{};
    if (lead()) check(ncclGetUniqueId(&id), "identifier");
    const std::string file = folder + "/.nccl-id" + (l.id.empty() ? "" : "-" + l.id);
    const Passing written{!host_ && lead() ? file : ""};
    const std::string mine(id.internal, sizeof id.internal);
    const std::string text = host_ ? lead_text(*host_, mine) : id_by_file(file, lead(), mine, limit);
    text.copy(id.internal, sizeof id.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check(ncclCommInitRankConfig(&comm_, size_, id, rank_, &config), "start");
    settle("start");
    set_wait_guard([this](Device d) {
      if (d == device_) catch_up();
    });
  }
  /// Graphs with its sums must be gone: NCCL would wait for them.
  ~NcclCommunicator() override {
    set_wait_guard({});
    if (farewell_.joinable()) {
      if (poll(limit_, [&] { return aborted_->load(); }))
        farewell_.join();
      else
        farewell_.detach();
    }
    if (comm_ && !failed_ && ncclCommFinalize(comm_) <= ncclInProgress) {
      ncclResult_t state = ncclInProgress;
      poll(limit_,
           [&] { return ncclCommGetAsyncError(comm_, &state) != ncclSuccess || state != ncclInProgress; });
      ncclCommDestroy(comm_);
    }
    for (cudaEvent_t e : {ready_, done_, ends_[0], ends_[1]}) cudaEventDestroy(e);
    cudaStreamDestroy(stream_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string transport() const override { return "NCCL"; }

  std::vector<std::byte> all_gather(std::span<const std::byte> mine) override {
    if (host_) return host_->all_gather(mine);
    const int64_t n = std::max<int64_t>(1, int64_t(mine.size()));  // a barrier sends a byte
    Tensor bytes = Tensor::zeros({n}, DType::u8);
    std::copy(mine.begin(), mine.end(), bytes.mutable_view().as<std::byte>());
    const Tensor from = bytes.to(device_);
    Tensor to = Tensor::empty({size_ * n}, DType::u8, device_);
    run("exchange", [&] {
      return ncclAllGather(from.view().data, to.mutable_view().data, size_t(n), ncclUint8, comm_, stream_);
    });
    const Tensor all = to.to(Device{});
    const std::byte* begin = all.view().as<std::byte>();
    return {begin, begin + size_t(size_) * mine.size()};
  }
  void all_to_all(const Tensor& from, Tensor& to) override {
    const size_t n = size_t(from.numel() / size_);
    const float* source = from.view().as<float>();
    float* target = to.mutable_view().as<float>();
    run("sum of gradients", [&] {
      ncclGroupStart();
      for (int r = 0; r < size_; ++r) {
        ncclSend(source + size_t(r) * n, n, ncclFloat, r, comm_, stream_);
        ncclRecv(target + size_t(r) * n, n, ncclFloat, r, comm_, stream_);
      }
      return ncclGroupEnd();
    });
  }
  void all_gather(const Tensor& mine, Tensor& all) override {
    run("sum of gradients", [&] {
      return ncclAllGather(mine.view().data, all.mutable_view().data, size_t(mine.numel()), ncclFloat, comm_,
                           stream_);
    });
  }
  /// While a graph is captured the stream of the sums belongs to it from its first sum, which begins behind
  /// an event of the compute stream, to finish_sums(), where that waits for an event of this one.
  bool captures() const override { return true; }
  void launched() override {
    std::swap(ends_[0], ends_[1]);
    check(cudaEventRecord(ends_[0], compute()), "event");
    if (behind_) await(ends_[1], "step with sums");
    behind_ = true;
  }
  void start_sum(Tensor part) override {
    captured_ = captured_ || capturing();
    follow_compute();
    float* p = part.mutable_view().as<float>();
    check(ncclAllReduce(p, p, size_t(part.numel()), ncclFloat, ncclSum, comm_, stream_), "all-reduce");
    settle("sum of gradients");  // the call, not the sum
  }
  void finish_sums() override {
    if (capturing())
      lead_compute();
    else
      wait("sum of gradients");
  }
  void fail(int code, const std::string& text) noexcept override {
    failed_ = true, behind_ = false;
    if (host_) host_->fail(code, text);
    if (comm_) abort();
    comm_ = nullptr;
  }

 private:
  void check(ncclResult_t r, const char* what) {
    if (r != ncclSuccess && r != ncclInProgress) refuse(str_cat("NCCL ", what, ": ", ncclGetErrorString(r)));
  }
  void check(cudaError_t r, const char* what) {
    if (r != cudaSuccess) refuse(str_cat("CUDA ", what, ": ", cudaGetErrorString(r)));
  }
  /// What cannot be captured may still run.
  [[noreturn]] void refuse(const std::string& text) {
    if (capturing()) lowbit::fail(ErrorKind::capture, "sum", text);
    give_up(text);
  }
  /// NCCL ends what runs on the device at once, but returns only when all graphs with its sums are gone;
  /// these belong to others, who wait for the device before they let them go.
  void abort() noexcept {
    try {
      if (captured_) {
        farewell_ = std::thread([comm = comm_, done = aborted_] { ncclCommAbort(comm), *done = true; });
        return;
      }
    } catch (const std::system_error&) {  // no thread: then this one waits
    }
    ncclCommAbort(comm_);
  }
  [[noreturn]] void give_up(const std::string& text) {
    fail(kExitRankLost, text);
    throw RankFailure(kExitRankLost, text);
  }
  [[noreturn]] void too_late(const char* what) {
    give_up(str_cat("no answer for ", int64_t(limit_), " s (", what,
                    "), a rank is dead or hung; the last checkpoint of the run is kept"));
  }
  /// A call has been accepted by all threads of the library.
  void settle(const char* what) {
    ncclResult_t state = ncclInProgress;
    const bool over = poll(limit_, [&] {
      check(ncclCommGetAsyncError(comm_, &state), what);
      return state != ncclInProgress;
    });
    if (!over) too_late(what);
    check(state, what);
  }
  cudaStream_t compute() const { return static_cast<cudaStream_t>(current_stream(device_).handle); }
  /// What comes next on the stream of the sums sees everything that was computed so far.
  void follow_compute() {
    check(cudaEventRecord(ready_, compute()), "event");
    check(cudaStreamWaitEvent(stream_, ready_, 0), "event");
  }
  /// The compute stream sees the result. The host waits too: otherwise it would hang in the next transfer,
  /// where nothing limits the time.
  void wait(const char* what) {
    lead_compute();
    await(done_, what);
  }
  void lead_compute() {
    check(cudaEventRecord(done_, stream_), "event");
    check(cudaStreamWaitEvent(compute(), done_, 0), "event");
  }
  /// For the last graph with sums in it.
  void catch_up() {
    if (!std::exchange(behind_, false)) return;
    await(ends_[0], "step with sums");
  }
  void await(cudaEvent_t event, const char* what) {
    const bool over = poll(limit_, [&] {
      ncclResult_t state = ncclSuccess;
      check(ncclCommGetAsyncError(comm_, &state), what);
      check(state, what);
      const cudaError_t r = cudaEventQuery(event);
      if (r != cudaErrorNotReady) check(r, what);
      return r == cudaSuccess;
    });
    if (!over) too_late(what);
  }
  template <class F>
  void run(const char* what, const F& f) {
    follow_compute();
    check(f(), what);
    settle(what);
    wait(what);
  }

  int rank_, size_;
  Device device_;
  double limit_;
  std::unique_ptr<Communicator> host_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t ready_ = nullptr, done_ = nullptr;
  std::array<cudaEvent_t, 2> ends_{};  ///< of the last two graphs with sums
  bool behind_ = false;                ///< nobody has waited for the last one
  bool captured_ = false;              ///< there may be such graphs
  bool failed_ = false;
  std::thread farewell_;
  std::shared_ptr<std::atomic<bool>> aborted_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace
}  // namespace lowbit

extern "C" __attribute__((visibility("default"))) lowbit::Communicator* lowbit_open_nccl(
    const lowbit::Launch& l, lowbit::Device device, double limit, lowbit::Communicator* host,
    const std::string& folder) {
  return new lowbit::NcclCommunicator(l, device, limit, host, folder);
}
