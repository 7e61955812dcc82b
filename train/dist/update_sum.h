#pragma once
// The gradient of an update from those of its micro-batches, wherever they were computed.

#include <map>
#include <utility>
#include <vector>

#include "train/dist/communicator.h"
#include "train/optim/arena.h"

namespace lowbit {

/// Sums tensors of one size that arrive one after the other over a binary tree: number k of a level is
/// 2k + (2k + 1) of the level below; what is left over at the end is added from right to left. So a run of
/// 2^j tensors that starts at a multiple of 2^j is one number whoever adds it.
class TreeSum {
 public:
  void add(const Tensor& t);  ///< keeps a copy where it must
  Tensor take();              ///< the sum; the tree is empty afterwards

 private:
  struct Part {
    Tensor sum;
    int64_t count;
  };
  std::vector<Part> stack_;
};

/// The sum of every rank's tensor [n], on all of them, in the order of TreeSum over the ranks.
void ordered_sum(Communicator& c, Tensor& t);

/// An update is the mean over S = ranks · accumulate micro-batches; rank r has those from r·accumulate on.
/// Gradients, and the buffers that the forward pass moves, the running statistics of batch norm, are
/// combined; every micro-batch starts from the buffers of the update before.
///
/// `ordered`: over a tree of micro-batches that knows no ranks, so the bits depend on S alone. Otherwise
/// gradients are added up locally, and buckets of them are summed over the ranks while backward still runs.
class UpdateSum {
 public:
  /// `state` is Module::state(). Errors  usage: ordered, several ranks, accumulate not a power of two
  UpdateSum(ParameterArena& arena, const TensorMap& state, Communicator& c, int64_t accumulate, bool ordered);
  ~UpdateSum();
  UpdateSum(const UpdateSum&) = delete;

  int64_t micro_batches() const { return accumulate_ * c_.size(); }  ///< S
  int64_t first() const { return accumulate_ * c_.rank(); }          ///< of this rank
  int64_t local() const { return accumulate_; }

  /// Before the forward pass of micro-batch i of this rank, 0 … local() − 1.
  void begin(int64_t i);
  /// Backward of its loss, times 1/S.
  void backward(int64_t i, const Variable& loss);
  // After the last of them, in this order. A step that is captured as a graph calls the first and the last
  // inside of graphs, and exchange(), where the host waits for other ranks, between them; what there is to
  // know of the parameters then lies in the arena (ParameterArena::set_has_grad). With captures() all three
  // belong into one graph, and who has a gradient is what it was in the update before.
  void finish_local();  ///< the arena holds the sum of this rank
  void exchange();      ///< that of all ranks, and who has a gradient. Errors  capture: other parameters have
  void complete();      ///< the buffers have their new values
  void finish() { finish_local(), exchange(), complete(); }
  bool captures() const { return !ordered_ && c_.captures(); }

 private:
  struct Buffer {
    Tensor value, before;
    uint32_t version = 0;
    bool moves = false;
  };
  struct Bucket {
    size_t first, last;  ///< slices of the arena
    int64_t open = 0;    ///< contributions that are still to come
  };
  void make_buckets();
  void watch_backward();
  void arrived(const GradMeta& m);
  void start_sums(bool all);
  void zero_missing(size_t first, size_t last);
  void unite_flags();
  Tensor moved() const;

  ParameterArena& arena_;
  Communicator& c_;
  int64_t accumulate_;
  bool ordered_;
  std::vector<Buffer> buffers_;
  TreeSum gradients_, moved_;
  Tensor moved_sum_;            ///< of the buffers that move, in a place that graphs may know
  std::vector<char> has_grad_;  ///< of a slice: in some micro-batch of this rank
  // Sums while backward runs: buckets from the end of the arena, as backward goes.
  std::vector<Bucket> buckets_;
  std::map<const GradMeta*, std::pair<size_t, size_t>> place_;  ///< slice and bucket
  std::vector<int64_t> contributions_, seen_;                   ///< of a slice: the update before, this one
  size_t started_ = 0;                                          ///< buckets on their way
  bool watched_ = false;                                        ///< backward has started some of them
  std::vector<char> mine_, all_;  ///< who had a gradient in the last exchange: on this rank, on any
};

}  // namespace lowbit
