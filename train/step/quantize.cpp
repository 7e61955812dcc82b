#include "train/step/quantize.h"

#include "autograd/core/node.h"
#include "data/core/loader.h"

namespace lowbit {

Report quantize(ImageModel& model, const Options& o) {
  SchemeOptions s;
  s.wbits = int(o.integer("wbits")), s.abits = int(o.integer("abits")),
  s.edge_bits = int(o.integer("edge-bits"));
  if (s.wbits == 32 && s.abits == 32) return {};
  s.offset = o.flag("use-offset");
  s.qk_reparam = o.flag("qk-reparam");
  if (find_option("fixed-scale", o.verb().mask)) s.learn_scale = !o.flag("fixed-scale");
  return install(model, load_scheme(o.text("quantizer"), s));
}

void calibrate(ImageModel& model, const Options& o, const DataSets& data, Log& log) {
  int64_t open = 0;
  bool observing = false;
  for (const auto& [name, q] : quantizers(model)) {
    open += !q->initialised();
    observing = observing || q->quant_state() == QuantState::observe;
  }
  if (open == 0) {
    // Ranges that a file brought need no images.
    if (observing) set_quant_state(model, QuantState::fixed, "ranges loaded");
    return;
  }
  const auto& images = data.train ? data.train : data.val;
  const auto& order = data.train ? data.train_order : data.val_order;
  LoaderOptions l;
  l.batch = std::min(o.integer("calibration-images"), order->size());
  l.workers = int(o.integer("workers"));
  l.slots = 2;
  l.seed = uint64_t(o.integer("seed"));
  l.device = model.device();
  Loader loader(images, order, l);
  loader.start(0);
  auto batch = loader.next();
  LOWBIT_ASSERT(batch);
  prepare_batch(*batch, data.train ? data.augment.get() : nullptr, 0, model.device());
  const bool was_training = model.training();
  model.eval();
  {
    NoGrad off;
    model(Variable(batch->fields[0]));
  }
  model.train(was_training);
  if (observing) set_quant_state(model, QuantState::fixed, "calibrated");
  log.info(str_cat("calibrated ", open, " quantizers on ", batch->size,
                   data.train ? " training" : " validation", " images"));
}

}  // namespace lowbit
