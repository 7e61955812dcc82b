#pragma once
// Processes that train one model together. Arenas are summed, small blobs gathered; every wait ends.

#include <cstddef>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "tensor/core/tensor.h"
#include "train/dist/launch.h"

namespace lowbit {

/// Why this rank must leave: another one failed, or has not answered in time. what() says which and why.
class RankFailure : public std::runtime_error {
 public:
  RankFailure(int code, const std::string& text) : std::runtime_error(text), code_(code) {}
  int code() const { return code_; }  ///< for the program to exit with: that of the rank that failed

 private:
  int code_;
};
inline constexpr int kExitRankLost = 6;

/// All ranks make the same calls in the same order. A call that the others do not answer within the limit, or
/// during which another rank fails, throws RankFailure; after that only fail() may be called.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  bool lead() const { return rank() == 0; }                    ///< writes files and messages
  virtual std::string transport() const { return "nothing"; }  ///< for messages

  /// The bytes of every rank, one after the other; all ranks give the same number of them.
  virtual std::vector<std::byte> all_gather(std::span<const std::byte> mine);

  // What sums of arenas are made of: f32 tensors on the device of the run, packed.
  /// Row r of `from` [size, n] goes to row rank() of rank r's `to` [size, n].
  virtual void all_to_all(const Tensor& from, Tensor& to);
  /// Row r of `all` [size, n] becomes rank r's `mine` [n].
  virtual void all_gather(const Tensor& mine, Tensor& all);
  /// Begins to replace `part` by the sum of all ranks' parts, in whatever order is fast. It must not be
  /// touched before finish_sums().
  virtual void start_sum(Tensor part);
  virtual void finish_sums() {}
  /// Whether both may be called while a step is captured (DeviceGraph): they are recorded then and nobody
  /// waits. All ranks must capture the same sums and launch their graphs equally often.
  virtual bool captures() const { return false; }
  /// After every launch of such a graph: waits for the one before. For the last one waits who wants to wait
  /// for the device (set_wait_guard).
  virtual void launched() {}

  /// Tells the others that this rank leaves because of `text` and with which exit code.
  virtual void fail(int code, const std::string& text) noexcept;
};

/// The communicator of a process by itself.
Communicator& alone();

/// The processes that `l` describes. CPU ranks talk through MPI; GPUs through NCCL, started over MPI where
/// there is one and else over a file in `folder`, which all nodes must share; without NCCL through MPI and
/// the host. `limit` seconds is how long a rank may keep the others waiting. Errors  usage: more than one
/// rank, and no library for them, with the reason
std::unique_ptr<Communicator> open_communicator(const Launch& l, Device device, double limit,
                                                const std::string& folder);

// ---- over any communicator

inline void barrier(Communicator& c) { c.all_gather(std::span<const std::byte>{}); }
/// One value of every rank.
template <class T>
std::vector<T> gather(Communicator& c, std::span<const T> mine) {
  static_assert(std::is_trivially_copyable_v<T>);
  const std::vector<std::byte> bytes = c.all_gather(std::as_bytes(mine));
  const T* begin = reinterpret_cast<const T*>(bytes.data());
  return {begin, begin + bytes.size() / sizeof(T)};
}
/// Some rank says yes.
bool any_rank(Communicator& c, bool mine);
/// Rank 0's text.
std::string lead_text(Communicator& c, const std::string& mine);
/// Throws Error(usage, "ranks: <what> differs …") unless all ranks have the same text.
void require_equal(Communicator& c, const std::string& mine, const std::string& what);
/// Threads for each of the ranks that share the same processors of a machine.
int threads_of_rank(Communicator& c, int available);

}  // namespace lowbit
