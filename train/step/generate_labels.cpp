#include "train/step/generate_labels.h"

#include <chrono>

#include "autograd/core/node.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/softmax.h"
#include "data/core/loader.h"
#include "tensor/hd/half.h"

namespace lowbit {
namespace {

/// Integers that half precision holds exactly.
constexpr int64_t kHalfIntegers = 2048;

void round_to_half(CropLabels& l) {
  for (float& p : l.probabilities) p = float(f16(p));
  for (CropLabels::Crop& c : l.crops)
    for (float* x : {&c.top, &c.left, &c.height, &c.width}) *x = float(f16(*x));
}

/// Of the crops [skip, segment) of a batch of one segment.
void append(const Tensor& p, const Loader::Batch& b, int64_t skip, CropLabels& l) {
  const int64_t classes = p.size(1);
  const Tensor probabilities = p.to(Device{}).packed(), boxes = b.fields[1].to(Device{}).packed(),
               flips = b.fields[2].to(Device{}).packed();
  for (int64_t i = skip; i < p.size(0); ++i) {
    const float* c = boxes.data_const<float>() + 4 * i;
    l.crops.push_back({c[0], c[1], c[2], c[3], flips.data_const<uint8_t>()[i] != 0});
    keep_soft_label({probabilities.data_const<float>() + i * classes, size_t(classes)}, l);
  }
}

}  // namespace

pack::Layout label_layout(const GenerateOptions& o, int64_t classes) {
  const bool full = o.type == SoftLabelType::full, hard = o.type == SoftLabelType::hard;
  LOWBIT_CHECK(o.k <= classes, usage, "labels", "a teacher of ", classes, " classes has no ", o.k,
               " highest");
  LOWBIT_CHECK(!o.half || full || hard || classes <= kHalfIntegers, usage, "labels",
               "half precision holds class ids up to ", kHalfIntegers, " (got ", classes, " classes)");
  pack::Layout l;
  l.type = o.type == SoftLabelType::marginal_renorm ? SoftLabelType::marginal : o.type;
  l.ids = full ? 0 : hard || o.type == SoftLabelType::smoothing ? 1 : o.k;
  l.probabilities = full ? classes : hard ? 0 : l.ids;
  l.half = o.half && !(o.published && o.crops.crops <= o.crops.segment);
  l.wide = classes > int64_t(UINT16_MAX) + 1;
  return l;
}

bool generate_labels(ImageModel& teacher, const ImageList& list, const GenerateOptions& o, LabelWriter& out,
                     const std::function<bool(const GenerateProgress&)>& progress) {
  CropOptions crops = o.crops;
  if (o.published && crops.crops > crops.segment) crops.crops -= crops.crops % crops.segment;
  const auto data = std::make_shared<CropDataset>(list, crops);
  const int64_t segments = data->segments();
  std::vector<int64_t> order;
  for (int64_t i = 0; i < list.size(); ++i)
    if (!out.has(list.root + "/" + list.paths[size_t(i)]))
      for (int64_t s = 0; s < segments; ++s) order.push_back(i * segments + s);
  const pack::Layout layout = label_layout(o, teacher.config().classes);
  GenerateProgress state;
  state.images = int64_t(order.size()) / segments;
  LoaderOptions l;
  l.batch = 1, l.workers = o.workers, l.slots = l.workers + 2, l.device = teacher.device();
  Loader loader(data, std::make_shared<ListSampler>(order), l);
  if (!order.empty()) loader.start(0);
  const NoGrad off;
  teacher.eval();
  const auto begin = std::chrono::steady_clock::now();
  CropLabels labels;
  for (const int64_t index : order) {
    auto batch = loader.next();
    for (Tensor& f : batch->fields) f = f.select(0, 0);
    const int64_t segment = index % segments;
    if (segment == 0) {
      labels = {};
      labels.type = layout.type, labels.ids_each = layout.ids,
      labels.probabilities_each = layout.probabilities;
    }
    const Variable logits = teacher(Variable(batch->fields[0]));
    append(softmax(scale(logits, 1 / o.temperature)).data(), *batch, labels.size() - data->first(segment),
           labels);
    if (segment + 1 < segments) continue;
    if (layout.half) round_to_half(labels);
    out.add(list.root + "/" + list.paths[size_t(index / segments)], labels);
    ++state.done;
    state.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (!progress(state)) return state.done == state.images && (out.finish(), true);
  }
  out.finish();
  return true;
}

}  // namespace lowbit
