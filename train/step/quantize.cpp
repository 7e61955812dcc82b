#include "train/step/quantize.h"

#include <cmath>
#include <regex>
#include <sstream>

#include "autograd/core/node.h"
#include "data/core/loader.h"
#include "nn/core/init.h"
#include "train/config/compat.h"

namespace lowbit {
namespace {

constexpr int64_t kPublishedImages = 64;

}  // namespace

Report quantize(ImageModel& model, const Options& o) {
  SchemeOptions s;
  s.wbits = int(o.integer("wbits")), s.abits = int(o.integer("abits")),
  s.edge_bits = int(o.integer("edge-bits"));
  if (s.wbits == 32 && s.abits == 32) return {};
  s.offset = o.flag("use-offset");
  s.qk_reparam = o.flag("qk-reparam");
  if (find_option("fixed-scale", o.verb().mask)) s.learn_scale = !o.flag("fixed-scale");
  if (find_option("learn-bits", o.verb().mask)) s.learn_bits = o.flag("learn-bits");
  s.published_scale = compat(o) != Compat::none;
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
  // The first training batch (OFQ), the first 64 validation images (VVTQ), or as many training images as
  // asked for.
  const Compat published = compat(o);
  const bool training = data.train && published != Compat::vvtq;
  const auto& images = training ? data.train : data.val;
  const auto& order = training ? data.train_order : data.val_order;
  int64_t count = o.integer("calibration-images");
  if (published == Compat::vvtq) count = kPublishedImages;
  if (published == Compat::ofq) count = o.integer("batch-size");
  LoaderOptions l;
  l.batch = std::min(count, order->size());
  l.workers = int(o.integer("workers"));
  l.slots = 2;
  l.seed = uint64_t(o.integer("seed"));
  if (!training || !data.augment) l.device = model.device();  // prepare_batch mixes on the host
  Loader loader(images, order, l);
  loader.start(0);
  auto batch = loader.next();
  LOWBIT_ASSERT(batch);
  prepare_batch(*batch, training ? data.augment.get() : nullptr, 0, model.device());
  const bool was_training = model.training();
  model.eval();
  {
    NoGrad off;
    model(Variable(batch->fields[0]));
  }
  model.train(was_training);
  if (observing) set_quant_state(model, QuantState::fixed, "calibrated");
  log.info(str_cat("calibrated ", open, " quantizers on ", batch->size,
                   training ? " training" : " validation", " images"));
}

std::vector<std::string> reinitialise_as_published(ImageModel& model, const Options& o) {
  std::vector<std::string> names;
  if (compat(o) != Compat::ofq) return names;
  Generator g(uint64_t(o.integer("seed")), 2);
  std::map<std::string, Variable> all;
  for (const NamedParameter& p : model.parameters()) all[p.name] = p.parameter->var;
  for (auto& [name, v] : all) {
    const std::string owner = name.substr(0, name.rfind('.'));
    const bool fresh = owner.ends_with("attn.proj") || owner.ends_with("attn.qkv") ||
                       (owner.ends_with("reduction") && name.ends_with(".bias"));
    const bool linear = fresh && (name.ends_with(".weight") || name.ends_with(".bias"));
    if (linear)
      v.mutable_data().copy_from(
          init::uniform(v.shape(), 1 / std::sqrt(double(all.at(owner + ".weight").size(1))), g));
    else if (name.ends_with("relative_position_bias_table"))
      v.mutable_data().copy_from(init::trunc_normal(v.shape(), 0.02, g));
    else
      continue;
    names.push_back(name);
  }
  return names;
}

void choose_decay(ImageModel& model, const Options& o) {
  std::vector<std::regex> exempt;
  std::istringstream list(o.text("decay-exempt"));
  for (std::string pattern; std::getline(list, pattern, ',');) {
    try {
      exempt.emplace_back(pattern);
    } catch (const std::regex_error&) {
      fail(ErrorKind::usage, "", "--decay-exempt: not a regular expression: " + pattern);
    }
  }
  for (const NamedParameter& p : model.parameters()) {
    bool& decay = p.parameter->decay;
    // Published: the list of exempt tokens is lost when the model is wrapped for several devices.
    if (compat(o) == Compat::vvtq) decay = p.parameter->var.ndim() > 1;
    for (const std::regex& e : exempt) decay = decay && !std::regex_match(p.name, e);
  }
}

}  // namespace lowbit
