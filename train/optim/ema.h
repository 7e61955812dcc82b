#pragma once
// Running average of a model's state: e = decay·e + (1 − decay)·w after each step, buffers too.
// Source: timm ModelEma; integer entries are copied.

#include "train/optim/arena.h"

namespace lowbit {

class Ema {
 public:
  /// Starts at the present values. `state` is Module::state(): entries outside the arena (buffers, frozen
  /// parameters) are averaged as well; its tensors must share memory with the model.
  Ema(ParameterArena& arena, const TensorMap& state, double decay);
  void update();
  /// Exchanges averages and values, so that the model itself can be evaluated or saved with the averages; a
  /// second call puts everything back.
  void swap();
  TensorMap state() const;  ///< names of the model; shares memory
  void load(const TensorMap& s);
  double decay() const { return decay_; }

 private:
  struct Extra {
    std::string name;
    Tensor value, average;
  };
  ParameterArena* arena_;
  Arena average_;
  std::vector<Extra> extras_;
  double decay_;
};

}  // namespace lowbit
