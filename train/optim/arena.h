#pragma once
// Parameters, gradients, moments and averages as one flat buffer each: one optimizer pass, one norm, one
// all-reduce, one checkpoint section.

#include <memory>
#include <string>
#include <vector>

#include "nn/core/module.h"
#include "tensor/io/safetensors.h"

namespace lowbit {

struct ArenaSlice {
  std::string name;
  Shape shape;
  int64_t offset, numel;  ///< elements; offsets are multiples of kArenaAlign, the gaps stay zero
  bool decay;
  float lr_scale;
};
inline constexpr int64_t kArenaAlign = 16;

struct ArenaLayout {
  std::vector<ArenaSlice> slices;
  int64_t total = 0;  ///< elements with gaps
  void add(const std::string& name, const Shape& shape, bool decay = true, float lr_scale = 1);
  int64_t numel() const;  ///< elements without gaps
};

/// Flat f32 buffer with named windows; zero at first.
class Arena {
 public:
  explicit Arena(std::shared_ptr<const ArenaLayout> layout, Device d = {});
  const ArenaLayout& layout() const { return *layout_; }
  const std::shared_ptr<const ArenaLayout>& layout_ptr() const { return layout_; }
  Tensor& flat() { return flat_; }
  const Tensor& flat() const { return flat_; }
  /// Shares the memory of flat() but has a storage version of its own.
  const Tensor& window(size_t slice) const { return windows_.at(slice); }
  /// To be called after writing through flat(): counts as an in-place write of every window.
  void touch();
  /// Windows by `<prefix><name>`; they share the arena's memory.
  TensorMap state(const std::string& prefix = "") const;
  /// Copies every slice from `<prefix><name>`; throws Error(io) naming all that are missing or have another
  /// shape.
  void load(const TensorMap& s, const std::string& prefix = "");

 private:
  std::shared_ptr<const ArenaLayout> layout_;
  Tensor flat_;
  std::vector<Tensor> windows_;
};

/// The trainable parameters of a model, moved into one arena, their gradients into another. Parameters that
/// do not require a gradient at construction are left out.
class ParameterArena {
 public:
  explicit ParameterArena(const std::vector<NamedParameter>& parameters);
  const ArenaLayout& layout() const { return values_.layout(); }
  const std::shared_ptr<const ArenaLayout>& layout_ptr() const { return values_.layout_ptr(); }
  size_t size() const { return vars_.size(); }
  Arena& values() { return values_; }
  Arena& grads() { return grads_; }
  const Arena& values() const { return values_; }
  const Arena& grads() const { return grads_; }
  /// Backward has written this slice's gradient since zero_grad(); other slices hold stale numbers.
  bool has_grad(size_t slice) const { return vars_[slice].grad().defined(); }
  /// For gradients that came together elsewhere.
  void set_has_grad(size_t slice, bool has) { vars_[slice].meta()->has_grad = has; }
  const GradMeta* meta(size_t slice) const { return vars_[slice].meta().get(); }
  void zero_grad();

 private:
  std::vector<Variable> vars_;
  Arena values_, grads_;
};

/// Weight-decay rule of the published trainers: none for tensors of one dimension, biases and the listed
/// names. Source: timm optim_factory add_weight_decay.
bool takes_weight_decay(const std::string& name, int ndim, const std::vector<std::string>& exempt);

}  // namespace lowbit
