#include "train/step/quantize.h"

#include "autograd/core/node.h"
#include "data/core/loader.h"
#include "quant/quantizer/lsq_quantizer.h"

namespace lowbit {

QuantizeReport quantize(VisionTransformer& model, const Options& o) {
  const int w = int(o.integer("wbits")), a = int(o.integer("abits")), e = int(o.integer("edge-bits"));
  if (w == 32 && a == 32) return {};
  for (NamedSlot& s : model.slots()) {
    const bool edge = s.name.starts_with("patch_embed") || s.name.starts_with("head");
    const bool weight = s.name.ends_with(".weight");
    if (s.name.ends_with(".out") || s.name.ends_with("_sum")) continue;
    const bool is_signed = !(s.name.ends_with(".probs") || s.name.ends_with(".hidden"));
    const int bits = edge ? e : weight ? w : a;
    if (bits == 32) continue;
    auto q = std::make_shared<LsqQuantizer>(
        weight
            ? vvtq_weight(bits)
            : vvtq_activation(bits, is_signed,
                              s.name.ends_with(".hidden") || (!edge && is_signed && o.flag("use-offset"))));
    q->set_label(s.name);
    q->set_quant_state(QuantState::learned, "scheme");
    const std::string last = s.name.substr(s.name.rfind('.') + 1);
    s.slot->set(q, weight ? "" : "quant_" + last);
  }
  return {true};
}

void calibrate(VisionTransformer& model, const Options& o, const DataSets& data, Log& log) {
  std::vector<LsqQuantizer*> open;
  for (NamedSlot& s : model.slots())
    if (auto* q = dynamic_cast<LsqQuantizer*>(s.slot->get()); q && !q->initialised()) open.push_back(q);
  if (open.empty()) return;
  LoaderOptions l;
  l.batch = std::min<int64_t>(o.integer("calibration-images"),
                              (data.train ? data.train_order : data.val_order)->size());
  l.workers = int(o.integer("workers"));
  l.slots = 2;
  Loader loader(data.train ? data.train : data.val, data.train ? data.train_order : data.val_order, l);
  loader.start(0);
  auto batch = loader.next();
  NoGrad off;
  const bool was = model.training();
  model.eval();
  model(Variable(batch->fields[0]));
  model.train(was);
  log.info(str_cat("calibrated ", open.size(), " quantizers on ", batch->size, " images"));
}

}  // namespace lowbit
