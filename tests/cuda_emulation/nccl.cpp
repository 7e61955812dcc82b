// Collective calls between processes by files; see nccl.h.

#include <nccl.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace {

namespace fs = std::filesystem;

enum class Kind : int { all_reduce, all_gather, send, receive };
struct Call {
  Kind kind;
  const void* from;
  void* to;
  size_t count;
  ncclDataType_t type;
  int peer;
  size_t bytes() const { return count * (type == ncclFloat ? sizeof(float) : 1); }
  /// What must be the same on the other side.
  std::string head() const {
    const bool alone = kind == Kind::send || kind == Kind::receive;
    return (alone ? "single " : "all " + std::to_string(int(kind)) + " ") + std::to_string(int(type)) + " " +
           std::to_string(count) + "\n";
  }
};

/// Others see the whole file or none.
bool write(const fs::path& file, const std::string& text) {
  const fs::path part = file.string() + ".part";
  std::ofstream out(part, std::ios::binary);
  out << text;
  out.close();
  std::error_code error;
  if (out) fs::rename(part, file, error);
  return out && !error;
}
bool read(const fs::path& file, std::string& text) {
  std::ifstream in(file, std::ios::binary);
  if (in) text.assign(std::istreambuf_iterator<char>(in), {});
  return bool(in);
}
void discard(const fs::path& path) {
  std::error_code none;
  fs::remove_all(path, none);
}

}  // namespace

struct EmulatedNccl {
  fs::path folder;
  int rank, size, device;
  bool blocking;
  enum class Phase { starting, working, ending } phase = Phase::starting;
  std::atomic<ncclResult_t> error = ncclSuccess;
  std::atomic<bool> aborted = false;
  bool unseen = false;                                   ///< the last call has not been seen to be accepted
  int64_t collectives = 0;                               ///< that were begun
  std::vector<int64_t> sent, received;                   ///< by the other rank
  std::shared_ptr<int> users = std::make_shared<int>();  ///< and by every call in a graph or under way

  fs::path file(const std::string& what, int64_t number, int from, int to = 0) const {
    return folder / (what + std::to_string(number) + "." + std::to_string(from) + "." + std::to_string(to));
  }
  bool idle() const { return users.use_count() == 1; }

  /// The last one removes the folder.
  void leave() const {
    write(file("end", 0, rank), "");
    for (int r = 0; r < size; ++r)
      if (!fs::exists(file("end", 0, r))) return;
    discard(folder);
  }
  void try_to_start() {
    std::vector<std::string> devices(static_cast<size_t>(size));
    for (int r = 0; r < size; ++r)
      if (!read(file("start", 0, r), devices[size_t(r)])) return;
    phase = Phase::working;
    const std::string sizes = "of " + std::to_string(size) + " ";
    for (int r = 0; r < size; ++r) {
      const std::string& d = devices[size_t(r)];
      if (!d.starts_with(sizes) || (r != rank && d == devices[size_t(rank)])) error = ncclInvalidUsage;
    }
  }
};

namespace {

/// What one call, or a group of them, gives the stream.
class Work {
 public:
  Work(ncclComm_t comm, std::vector<Call> calls)
      : comm_(comm), user_(comm->users), calls_(std::move(calls)) {}

  /// Whether it is over.
  bool run(bool first) {
    if (comm_->aborted) return true;
    if (comm_->error != ncclSuccess) return false;  // until somebody aborts
    if (first) {
      next_ = 0, begun_ = false;
      for (const Call& c : calls_)
        if (c.kind == Kind::send)
          post(c, comm_->file("p", comm_->sent[size_t(c.peer)]++, comm_->rank, c.peer));
    }
    for (; next_ < calls_.size(); ++next_, begun_ = false) {
      const Call& c = calls_[next_];
      if (!(c.kind == Kind::send || (c.kind == Kind::receive ? receive(c) : collect(c)))) return false;
    }
    return true;
  }

 private:
  void post(const Call& c, const fs::path& file) {
    std::string text = c.head();
    cuda_emulation::with_device_memory([&] { text.append(static_cast<const char*>(c.from), c.bytes()); });
    write(file, text);  // in vain where others have aborted: then nobody answers
  }
  bool fits(const Call& c, const std::string& text) {
    const bool same = text.starts_with(c.head());
    if (!same) comm_->error = ncclInvalidUsage;
    return same;
  }
  bool receive(const Call& c) {
    const auto file = comm_->file("p", comm_->received[size_t(c.peer)], c.peer, comm_->rank);
    std::string text;
    if (!read(file, text) || !fits(c, text)) return false;
    ++comm_->received[size_t(c.peer)];
    discard(file);
    cuda_emulation::with_device_memory([&] { std::memcpy(c.to, text.data() + c.head().size(), c.bytes()); });
    return true;
  }
  bool collect(const Call& c) {
    if (!begun_) post(c, comm_->file("c", comm_->collectives++, comm_->rank));
    begun_ = true;
    const int64_t number = comm_->collectives - 1;
    std::vector<std::string> of(size_t(comm_->size));
    for (int r = 0; r < comm_->size; ++r)
      if (!read(comm_->file("c", number, r), of[size_t(r)]) || !fits(c, of[size_t(r)])) return false;
    // All have come here, so all have read what came before.
    if (number > 0) discard(comm_->file("c", number - 1, comm_->rank));
    cuda_emulation::with_device_memory([&] { c.kind == Kind::all_reduce ? add(c, of) : append(c, of); });
    return true;
  }
  static void add(const Call& c, const std::vector<std::string>& of) {
    auto* to = static_cast<float*>(c.to);
    for (size_t i = 0; i < c.count; ++i) {
      float sum = 0;
      for (size_t r = of.size(); r-- > 0;) {
        float x;
        std::memcpy(&x, of[r].data() + c.head().size() + i * sizeof x, sizeof x);
        sum = r + 1 == of.size() ? x : sum + x;
      }
      to[i] = sum;
    }
  }
  static void append(const Call& c, const std::vector<std::string>& of) {
    for (size_t r = 0; r < of.size(); ++r)
      std::memcpy(static_cast<char*>(c.to) + r * c.bytes(), of[r].data() + c.head().size(), c.bytes());
  }

  ncclComm_t comm_;
  std::shared_ptr<int> user_;
  std::vector<Call> calls_;
  size_t next_ = 0;
  bool begun_ = false;
};

thread_local int group_depth = 0;
thread_local struct Group {
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<Call> calls;
  bool mixed = false;
} group;

ncclResult_t submit() {
  const Group g = std::exchange(group, {});
  if (g.calls.empty()) return ncclSuccess;
  ncclComm_t comm = g.comm;
  if (g.mixed || comm->phase != EmulatedNccl::Phase::working || comm->unseen) return ncclInvalidUsage;
  if (comm->error != ncclSuccess) return comm->error;
  const auto work = std::make_shared<Work>(comm, g.calls);
  if (!cuda_emulation::enqueue(g.stream, comm->device, [work](bool first) { return work->run(first); }))
    return ncclInvalidUsage;
  comm->unseen = !comm->blocking;
  return comm->blocking ? ncclSuccess : ncclInProgress;
}
ncclResult_t add(ncclComm_t comm, cudaStream_t stream, const Call& c) {
  if (!comm || !stream || (c.type != ncclFloat && c.type != ncclUint8) || c.peer < 0 || c.peer >= comm->size)
    return ncclInvalidArgument;
  if (!group.calls.empty() && (group.comm != comm || group.stream != stream)) group.mixed = true;
  group.comm = comm, group.stream = stream;
  group.calls.push_back(c);
  return group_depth ? ncclSuccess : submit();
}

template <class Done>
void wait_until(const Done& done) {
  while (!done()) {
    cuda_emulation::advance();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t r) {
  switch (r) {
    case ncclSuccess:
      return "no error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "NCCL operation in progress";
  }
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::error_code error;
  std::string folder = (fs::temp_directory_path(error) / "emulated-nccl-XXXXXX").string();
  *id = {};
  if (error || folder.size() >= sizeof id->internal || !mkdtemp(folder.data())) return ncclSystemError;
  folder.copy(id->internal, folder.size());
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  *comm = nullptr;
  if (rank < 0 || rank >= size || !id.internal[0]) return ncclInvalidArgument;
  int device = 0;
  cudaGetDevice(&device);
  const auto c = new EmulatedNccl{.folder = id.internal,
                                  .rank = rank,
                                  .size = size,
                                  .device = device,
                                  .blocking = config->blocking != 0,
                                  .sent = std::vector<int64_t>(size_t(size)),
                                  .received = std::vector<int64_t>(size_t(size))};
  const std::string place = "of " + std::to_string(size) + " " + std::to_string(device);
  if (!write(c->file("start", 0, rank), place)) return delete c, ncclSystemError;
  *comm = c;
  if (!c->blocking) return ncclInProgress;
  wait_until([&] { return c->try_to_start(), c->phase != EmulatedNccl::Phase::starting; });
  return c->error;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  using Phase = EmulatedNccl::Phase;
  if (!comm) return ncclInvalidArgument;
  cuda_emulation::advance();
  if (comm->phase == Phase::starting) comm->try_to_start();
  // A call is seen as under way once, as threads of a library would make it.
  const bool busy = std::exchange(comm->unseen, false) || comm->phase == Phase::starting ||
                    (comm->phase == Phase::ending && !comm->idle());
  *state = comm->error != ncclSuccess ? comm->error.load() : busy ? ncclInProgress : ncclSuccess;
  return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (!comm || comm->phase != EmulatedNccl::Phase::working) return ncclInvalidUsage;
  comm->phase = EmulatedNccl::Phase::ending;
  if (!comm->blocking) return ncclInProgress;
  wait_until([&] { return comm->idle(); });
  return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  wait_until([&] { return comm->idle(); });
  comm->leave();
  return delete comm, ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  wait_until([&] { return comm->idle(); });
  if (comm->error == ncclSuccess)
    discard(comm->folder);  // of ranks that are lost too
  else
    comm->leave();  // the others have yet to see what is wrong
  return delete comm, ncclSuccess;
}

ncclResult_t ncclGroupStart() { return ++group_depth, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return ncclInvalidUsage;
  return --group_depth ? ncclSuccess : submit();
}
ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum || type != ncclFloat) return ncclInvalidArgument;
  return add(comm, stream, {Kind::all_reduce, from, to, count, type, 0});
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm, stream, {Kind::all_gather, from, to, count, type, 0});
}
ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, {Kind::send, from, nullptr, count, type, peer});
}
ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, {Kind::receive, nullptr, to, count, type, peer});
}
