#include "train/step/evaluate.h"

#include <algorithm>
#include <chrono>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"

namespace lowbit {

EvalResult evaluate(ImageModel& model, Loader& loader,
                    const std::function<bool(const EvalResult&, int64_t)>& progress, Communicator& ranks) {
  struct Part {
    TopCounts counts;
    double loss = 0;  ///< mean of the batch
  };
  const bool was_training = model.training();
  model.eval();
  NoGrad off;
  EvalResult r;
  double loss = 0;
  const auto start = std::chrono::steady_clock::now();
  const int64_t batches = loader.batches();
  loader.start(0);
  for (int64_t next = 0; next < batches; next += ranks.size()) {
    Part mine;
    if (auto batch = loader.next()) {
      const Variable logits = model(Variable(batch->fields[0]));
      mine.counts = count_correct(logits.data(), batch->fields[1]);
      mine.loss = double(cross_entropy(logits, batch->fields[1], 0).data().item<float>());
    }
    for (const Part& p : gather(ranks, std::span<const Part>(&mine, 1))) {
      r.counts += p.counts;
      loss += p.loss * double(p.counts.total);
    }
    r.loss = loss / double(r.counts.total);
    r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (progress && any_rank(ranks, !progress(r, std::min(next + ranks.size(), batches) - 1))) break;
  }
  model.train(was_training);
  return r;
}

}  // namespace lowbit
