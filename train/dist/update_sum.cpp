#include "train/dist/update_sum.h"

#include <bit>
#include <set>

#include "autograd/core/grad_hook.h"
#include "autograd/ops/pointwise.h"
#include "tensor/core/device_graph.h"
#include "tensor/core/error.h"
#include "tensor/engine/accumulate.h"

namespace lowbit {
namespace {

constexpr int64_t kBucketFloats = 1 << 18;  // large enough for bandwidth, small enough to start early

/// Nobody watches any longer when it ends, with an error too.
struct Watch {
  Watch() = default;
  ~Watch() { set_gradient_hook({}); }
  Watch(const Watch&) = delete;
};

void add_into(Tensor& a, const Tensor& b) { accumulate({a.mutable_view(), b.view()}, a.device()); }

}  // namespace

void TreeSum::add(const Tensor& t) {
  Part p{t, 1};
  while (!stack_.empty() && stack_.back().count == p.count) {
    add_into(stack_.back().sum, p.sum);
    p = {stack_.back().sum, 2 * p.count};
    stack_.pop_back();
  }
  if (p.count == 1) p.sum = t.clone();
  stack_.push_back(std::move(p));
}

Tensor TreeSum::take() {
  LOWBIT_ASSERT(!stack_.empty());
  while (stack_.size() > 1) {
    add_into(stack_[stack_.size() - 2].sum, stack_.back().sum);
    stack_.pop_back();
  }
  Tensor sum = stack_.back().sum;
  stack_.clear();
  return sum;
}

void ordered_sum(Communicator& c, Tensor& t) {
  const int64_t ranks = c.size(), n = t.numel(), each = (n + ranks - 1) / ranks;
  if (ranks == 1 || n == 0) return;
  // Every rank adds up its share of the elements and hands it round: no more traffic than a ring, in a fixed
  // order.
  Tensor all = Tensor::zeros({ranks, each}, DType::f32, t.device());
  Tensor parts = Tensor::empty({ranks, each}, DType::f32, t.device());
  Tensor head = all.reshape({ranks * each}).slice(0, 0, n);
  head.copy_from(t);
  c.all_to_all(all, parts);
  TreeSum tree;
  for (int64_t r = 0; r < ranks; ++r) tree.add(parts.slice(0, r, r + 1).reshape({each}));
  c.all_gather(tree.take(), all);
  t.copy_from(head);
}

UpdateSum::UpdateSum(ParameterArena& arena, const TensorMap& state, Communicator& c, int64_t accumulate,
                     bool ordered)
    : arena_(arena), c_(c), accumulate_(accumulate), ordered_(ordered) {
  LOWBIT_CHECK(!ordered || c.size() == 1 || std::has_single_bit(uint64_t(accumulate)), usage, "ranks",
               "with several processes --accumulate must be a power of two (got ", accumulate,
               "); or --no-deterministic");
  std::set<std::string> parameters;
  for (const ArenaSlice& s : arena.layout().slices) parameters.insert(s.name);
  if (micro_batches() > 1)
    for (const auto& [name, t] : state)
      if (!parameters.contains(name)) buffers_.push_back({t, t.clone()});
  if (c.size() > 1 && !ordered) make_buckets();
}

UpdateSum::~UpdateSum() { set_gradient_hook({}); }

void UpdateSum::begin(int64_t i) {
  for (Buffer& b : buffers_) {
    if (i == 0)
      b.before.copy_from(b.value);
    else if (b.moves)
      b.value.copy_from(b.before);
    b.version = b.value.version();
  }
  if (i == 0 || ordered_) arena_.zero_grad();
  if (i == 0) gradients_ = {}, moved_ = {};  // a capture that failed leaves parts behind
  if (i == 0) has_grad_.assign(arena_.size(), 0);
}

void UpdateSum::backward(int64_t i, const Variable& loss) {
  const int64_t all = micro_batches();
  if (all == 1) return loss.backward();
  // Where sums cannot be captured the graph ends with backward, and those that it would have started come
  // behind it.
  if (!buckets_.empty() && i + 1 == accumulate_ && (captures() || !capturing())) watch_backward();
  {
    const Watch until_the_end;
    scale(loss, 1.0 / double(all)).backward();
  }
  for (Buffer& b : buffers_) b.moves = b.moves || b.value.version() != b.version;
  moved_.add(moved());
  for (size_t s = 0; s < arena_.size(); ++s) has_grad_[s] = char(has_grad_[s] || arena_.has_grad(s));
  if (!ordered_) return;
  zero_missing(0, arena_.size());
  if (accumulate_ > 1) gradients_.add(arena_.grads().flat());
}

void UpdateSum::finish_local() {
  if (micro_batches() == 1) return;
  if (ordered_ && accumulate_ > 1) arena_.grads().flat().copy_from(gradients_.take());
  const Tensor sum = moved_.take();
  if (!moved_sum_.defined() || moved_sum_.numel() != sum.numel())
    moved_sum_ = Tensor::empty(sum.shape(), DType::f32, sum.device());
  moved_sum_.copy_from(sum);
  for (size_t s = 0; s < arena_.size(); ++s) arena_.set_has_grad(s, has_grad_[s]);
}

void UpdateSum::exchange() {
  if (c_.size() == 1) return;
  if (ordered_) {
    ordered_sum(c_, arena_.grads().flat());
    ordered_sum(c_, moved_sum_);
  } else {
    if (!watched_) started_ = 0;
    start_sums(true);
    if (moved_sum_.numel() > 0) c_.start_sum(moved_sum_);
    c_.finish_sums();
    if (watched_) contributions_ = seen_;
    watched_ = false;
  }
  unite_flags();
}

/// A gradient of some micro-batch (one that carries a term of the weights alone, say) is one of the update.
void UpdateSum::unite_flags() {
  std::vector<char> mine(arena_.size());
  for (size_t s = 0; s < mine.size(); ++s) mine[s] = char(arena_.has_grad(s));
  if (capturing()) {  // nobody can be asked
    LOWBIT_CHECK(mine == mine_, capture, "ranks", "other parameters have a gradient than in the step before");
  } else {
    const std::vector<char> ranks = gather(c_, std::span<const char>(mine));
    all_.assign(mine.size(), 0);
    for (size_t i = 0; i < ranks.size(); ++i) all_[i % mine.size()] |= ranks[i];
    mine_ = std::move(mine);
  }
  for (size_t s = 0; s < all_.size(); ++s) arena_.set_has_grad(s, all_[s]);
}

/// Parameters without a gradient hold stale numbers.
void UpdateSum::zero_missing(size_t first, size_t last) {
  for (size_t s = first; s < last; ++s)
    if (!arena_.has_grad(s)) Tensor(arena_.grads().window(s)).fill(0);
}

/// The float buffers that the forward pass has changed, one after the other.
Tensor UpdateSum::moved() const {
  int64_t n = 0;
  for (const Buffer& b : buffers_)
    if (b.moves && b.value.dtype() == DType::f32) n += b.value.numel();
  Tensor all = Tensor::empty({n}, DType::f32, arena_.grads().flat().device());
  n = 0;
  for (const Buffer& b : buffers_)
    if (b.moves && b.value.dtype() == DType::f32) {
      Tensor part = all.slice(0, n, n + b.value.numel());
      part.copy_from(b.value.reshape({b.value.numel()}));
      n += b.value.numel();
    }
  return all;
}

void UpdateSum::complete() {
  if (micro_batches() == 1 || moved_sum_.numel() == 0) return;
  const NoGrad off;
  const Tensor mean = scale(Variable(moved_sum_), 1.0 / double(micro_batches())).data();
  int64_t n = 0;
  for (Buffer& b : buffers_)
    if (b.moves && b.value.dtype() == DType::f32) {
      b.value.copy_from(mean.slice(0, n, n + b.value.numel()).reshape(b.value.shape()));
      n += b.value.numel();
    }
}

void UpdateSum::make_buckets() {
  size_t last = arena_.size();
  int64_t floats = 0;
  for (size_t s = arena_.size(); s-- > 0;) {
    floats += arena_.layout().slices[s].numel;
    place_[arena_.meta(s)] = {s, buckets_.size()};
    if (s > 0 && floats < kBucketFloats) continue;
    buckets_.push_back({s, last});
    last = s, floats = 0;
  }
  // Nothing is known of the first update: its sums begin after backward.
  contributions_.assign(arena_.size(), int64_t(1) << 40);
}

void UpdateSum::watch_backward() {
  started_ = 0, watched_ = true;
  for (Bucket& b : buckets_) {
    b.open = 0;
    for (size_t s = b.first; s < b.last; ++s) b.open += contributions_[s];
  }
  seen_.assign(arena_.size(), 0);
  set_gradient_hook([this](const GradMeta& m) { arrived(m); });
}

void UpdateSum::arrived(const GradMeta& m) {
  const auto it = place_.find(&m);
  if (it == place_.end()) return;
  const auto [slice, bucket] = it->second;
  LOWBIT_CHECK(bucket >= started_, value, "ranks", "every update must compute the same gradients: that of ",
               arena_.layout().slices[slice].name, " was on its way already; use --deterministic");
  ++seen_[slice], --buckets_[bucket].open;
  start_sums(false);
}

/// In the same order on all ranks, as every collective.
void UpdateSum::start_sums(bool all) {
  while (started_ < buckets_.size() && (all || buckets_[started_].open == 0)) {
    const Bucket& b = buckets_[started_++];
    zero_missing(b.first, b.last);
    const auto& slices = arena_.layout().slices;
    const int64_t end = b.last < slices.size() ? slices[b.last].offset : arena_.layout().total;
    c_.start_sum(arena_.grads().flat().slice(0, slices[b.first].offset, end));
  }
}

}  // namespace lowbit
