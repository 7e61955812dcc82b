#pragma once
// What passes inside a model, for losses that compare a student's layers with its teacher's.

#include "nn/loss/distillation.h"
#include "nn/models/image_model.h"

namespace lowbit {

/// Watches a model for one forward pass at a time.
class FeatureWatch {
 public:
  /// maps: q, k and v of every attention layer, as its products get them; with query-key reparameterization q
  /// and k are the float projections of the layer's input. tokens: what leaves every block. Neither: nothing
  /// is watched.
  FeatureWatch(ImageModel& model, bool maps, bool tokens);
  ~FeatureWatch();
  FeatureWatch(const FeatureWatch&) = delete;
  FeatureWatch& operator=(const FeatureWatch&) = delete;
  void clear();  ///< before a forward pass
  /// In the order of the layers, a layer that runs twice twice.
  std::vector<ScoreMaps> maps(bool values) const;
  const std::vector<Variable>& tokens() const { return tokens_; }  ///< [B, tokens, C]

 private:
  void watch_attention(ImageModel& model, const std::string& layer, int64_t heads);
  Slot& watched(const std::string& name);
  std::map<std::string, Slot*> slots_;
  std::vector<Slot*> watched_;
  struct Projection {
    Variable x;
    int64_t heads;
  };
  std::vector<Projection> q_, k_, v_;
  std::vector<Variable> tokens_;
};

}  // namespace lowbit
