#pragma once
// Timing of whole training steps, for `lowbit bench`, --dry-run and benchmarks/step_bench.

#include <string>
#include <vector>

#include "nn/models/image_model.h"

namespace lowbit {

struct StepTiming {
  double forward = 0, backward = 0, optimizer = 0;  ///< seconds, medians
  double eval = 0;                                  ///< forward without a tape
  size_t saved_bytes = 0, peak_bytes = 0;  ///< kept for backward; allocator peak above the start of the step
  int repeats = 0;
  // On a GPU: kernels that a step launches itself, and the step as one graph.
  int64_t launches = 0, graph_nodes = 0;
  double graph = 0;
  double step() const { return forward + backward + optimizer; }
};

/// Steps of AdamW on `batch` images for about `seconds`, after two warm-up steps; with `graph` on a GPU as a
/// graph too. The model is changed.
StepTiming time_steps(ImageModel& model, int64_t batch, double seconds, bool graph = true);

struct ThreadScaling {
  int threads = 0, pairs = 0;
  double one = 0, all = 0;  ///< seconds of a step with one thread and with `threads`, medians
  double ratio = 0, first_quartile = 0, third_quartile = 0;  ///< one / all in pairs of neighbouring steps
};
/// Steps of AdamW on the CPU, one thread and all threads in turn for about `seconds`, by the clock on the
/// wall. The model is changed.
ThreadScaling time_threads(ImageModel& model, int64_t batch, double seconds);

struct StepEstimate {
  double seconds = 0;      ///< of one step at `batch`
  size_t saved_bytes = 0;  ///< kept for backward, scaled to `batch`
  std::string per_op;      ///< table of saved bytes by op
};
/// Runs one forward and backward of at most 8 images and scales to `batch`. Leaves no gradients behind.
StepEstimate estimate_step(ImageModel& model, int64_t batch);

struct ProductTiming {
  std::string name;
  double f32 = 0, int8 = 0;  ///< G multiply-adds ·2 a second
};
/// Every distinct matrix product of the model's forward pass for `batch` images, f32 and u8 × s8.
std::vector<ProductTiming> time_products(const ImageModel& model, int64_t batch, double seconds,
                                         Device d = {});

}  // namespace lowbit
