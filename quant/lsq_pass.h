#pragma once
// What all LSQ quantizers of a model compute from parameters alone, once in an update and for all of them
// together: scales, gradient factors, codes of weights; and the gradients of the weights from those of their
// codes (quant/ops/lsq_list.h).

#include <map>
#include <string>
#include <vector>

#include "nn/core/module.h"
#include "quant/quantizer/lsq_quantizer.h"

namespace lowbit {

/// Between begin() and end() the quantizers of the list use what the pass has made, with the bits that each
/// would compute itself. Parameters and weights must not change meanwhile. In the list are quantizers with
/// one scale and a fixed bit-width that are initialised; of activations those with an exact scale, since the
/// factor in the published form depends on the input.
/// With `postpone` the backward pass leaves the gradients of weights to flush(), which must be called before
/// anybody reads them: those of weights in an arena whose gradient nothing else has reached before.
class LsqPass final : public LsqLater {
 public:
  explicit LsqPass(Module& model);
  LsqPass(const LsqPass&) = delete;
  void begin(bool postpone);
  void end();
  void flush() override;
  void take(int64_t item, const Tensor& gy) override { taken_[size_t(item)] = gy.packed(); }
  bool waiting(int64_t item) const override { return taken_[size_t(item)].defined(); }
  /// A pass for the life of this object.
  class Scope {
   public:
    Scope(LsqPass* pass, bool postpone) : pass_(pass) {
      if (pass_) pass_->begin(postpone);
    }
    ~Scope() {
      if (pass_) pass_->end();
    }
    Scope(const Scope&) = delete;

   private:
    LsqPass* pass_;
  };

 private:
  struct Member {
    LsqQuantizer* quantizer;
    Variable weight;  ///< undefined: of activations
    LsqPrepared made;
  };
  std::vector<Member> members_;
  Device device_;
  Tensor results_, codes_, sums_, items_, chunks_;
  std::vector<int64_t> ends_;  ///< of the members' chunks
  std::vector<Tensor> taken_;  ///< gradients of the members' codes that wait for flush()
};

}  // namespace lowbit
