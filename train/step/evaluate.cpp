#include "train/step/evaluate.h"

#include <chrono>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"

namespace lowbit {

EvalResult evaluate(ImageModel& model, Loader& loader,
                    const std::function<bool(const EvalResult&, int64_t)>& progress) {
  const bool was_training = model.training();
  model.eval();
  NoGrad off;
  EvalResult r;
  double loss = 0;
  const auto start = std::chrono::steady_clock::now();
  loader.start(0);
  while (auto batch = loader.next()) {
    const Variable logits = model(Variable(batch->fields[0]));
    const Tensor& labels = batch->fields[1];
    r.counts += count_correct(logits.data(), labels);
    loss += double(cross_entropy(logits, labels, 0).data().item<float>()) * double(batch->size);
    r.loss = loss / double(r.counts.total);
    r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (progress && !progress(r, batch->index)) break;
  }
  model.train(was_training);
  return r;
}

}  // namespace lowbit
