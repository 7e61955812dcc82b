#include "quant/lsq_pass.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "quant/ops/lsq_list.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/constant.h"

namespace lowbit {
namespace {

constexpr int64_t kAlign = 16;  // bytes, of the codes of a weight

/// Structs of words of eight bytes as a table on the device.
template <class T>
Tensor table(const std::vector<T>& rows, Device d) {
  static_assert(sizeof(T) % sizeof(int64_t) == 0 && std::is_trivially_copyable_v<T>);
  std::vector<int64_t> words(rows.size() * sizeof(T) / sizeof(int64_t));
  if (!rows.empty()) std::memcpy(words.data(), rows.data(), rows.size() * sizeof(T));
  return constant(std::span<const int64_t>(words), {int64_t(words.size())}, d);
}
template <class T>
const T* rows_of(const Tensor& t) {
  return static_cast<const T*>(static_cast<const void*>(t.data_const<int64_t>()));
}

}  // namespace

LsqPass::LsqPass(Module& model) : device_(model.device()) {
  std::map<std::string, Variable> weights;
  for (const NamedParameter& p : model.parameters()) weights[p.name] = p.parameter->var;
  int64_t bytes = 0;
  for (const auto& [slot, any] : quantizers(model)) {
    auto* const q = dynamic_cast<LsqQuantizer*>(any);
    const auto w = weights.find(slot);
    if (!q || !q->listable(w != weights.end())) continue;
    Member m{q, w == weights.end() ? Variable{} : w->second, {}};
    const int64_t n = m.weight.defined() ? m.weight.numel() : 0;
    if (n > kChunk * kChunk) continue;  // more chunks than one list has
    bytes += (n + kAlign - 1) / kAlign * kAlign;
    members_.push_back(std::move(m));
  }
  taken_.resize(members_.size());
  const int64_t count = int64_t(members_.size()), floats = sizeof(LsqListResult) / sizeof(float);
  if (count == 0) return;
  results_ = Tensor::zeros({count, floats}, DType::f32, device_);
  codes_ = Tensor::zeros({bytes}, DType::i8, device_);
  bytes = 0;
  for (int64_t k = 0; k < count; ++k) {
    Member& m = members_[size_t(k)];
    const auto number = [&](int64_t i) {
      return Tensor::window(results_.storage(), {1}, DType::f32, k * floats + i);
    };
    m.made.scale = number(0), m.made.offset = number(1);
    if (!m.weight.defined()) continue;
    m.made.factor = number(2);
    m.made.codes = Tensor::window(codes_.storage(), m.weight.shape(), DType::i8, bytes);
    bytes += (m.weight.numel() + kAlign - 1) / kAlign * kAlign;
  }
}

void LsqPass::begin(bool postpone) {
  std::vector<LsqListItem> items;
  ends_.clear();
  std::vector<LsqListChunk> chunks;
  taken_.assign(taken_.size(), Tensor{});  // of a step that failed
  bool l1 = false;
  for (Member& m : members_) {
    const bool ready = m.quantizer->initialised() && m.quantizer->quant_state() >= QuantState::fixed;
    m.quantizer->use(ready ? &m.made : nullptr);
    LsqListItem item = m.quantizer->list_item(m.weight.defined() ? m.weight.data() : Tensor{});
    item.first = int64_t(chunks.size());
    if (m.weight.defined()) {
      const float* const w = m.weight.data().data_const<float>();
      m.made.input = w;
      const GradMeta &of_weight = *m.weight.meta(), &of_scale = *m.quantizer->alpha().meta();
      const LsqConfig &c = m.quantizer->config(), &same = members_.front().quantizer->config();
      const bool later = postpone && of_weight.fixed_buffer && of_scale.fixed_buffer && c.mask == same.mask &&
                         c.ties == same.ties;
      m.made.later = later ? this : nullptr, m.made.item = int64_t(items.size());
      m.made.dx = of_weight.grad.view().data, m.made.dscale = of_scale.grad.view().data;
      for (int64_t b = 0; b < m.weight.numel(); b += kChunk)
        chunks.push_back({w + b, m.made.codes.data<int8_t>() + b, std::min(kChunk, m.weight.numel() - b),
                          int64_t(items.size())});
    }
    item.last = int64_t(chunks.size());
    ends_.push_back(item.last);
    l1 = l1 || item.factor == 0;
    items.push_back(item);
  }
  if (items.empty()) return;
  items_ = table(items, device_), chunks_ = table(chunks, device_);
  const int64_t count = int64_t(chunks.size());
  if (!sums_.defined() || sums_.numel() != count) sums_ = Tensor::empty({count}, DType::f32, device_);
  lsq_list({rows_of<LsqListItem>(items_), rows_of<LsqListChunk>(chunks_), int64_t(items.size()), count,
            sums_.data<float>(), static_cast<LsqListResult*>(static_cast<void*>(results_.data<float>())), l1},
           device_);
}

void LsqPass::flush() {
  const int64_t all = int64_t(members_.size());
  for (int64_t first = 0; first < all; first += kListGrads) {
    LsqListBwdArgs a{};
    a.first = first, a.count = std::min(kListGrads, all - first);
    bool any = false;
    for (int64_t i = 0; i < a.count; ++i) {
      const Member& m = members_[size_t(first + i)];
      const Tensor& gy = taken_[size_t(first + i)];
      if (!gy.defined()) continue;
      any = true;
      a.grads[i] = {gy.data_const<float>(), static_cast<float*>(m.made.dx),
                    static_cast<float*>(m.made.dscale)};
    }
    if (!any) continue;
    a.items = rows_of<LsqListItem>(items_), a.chunks = rows_of<LsqListChunk>(chunks_);
    a.results = static_cast<const LsqListResult*>(static_cast<const void*>(results_.data_const<float>()));
    a.sums = reinterpret_cast<Pack<float, 1>*>(sums_.data<float>());
    a.chunk_first = first ? ends_[size_t(first - 1)] : 0;
    a.chunk_count = ends_[size_t(first + a.count - 1)] - a.chunk_first;
    a.mask = members_.front().quantizer->config().mask;
    a.ties = members_.front().quantizer->config().ties;
    lsq_list_bwd(a, device_);
  }
  taken_.assign(taken_.size(), Tensor{});
}

void LsqPass::end() {
  taken_.assign(taken_.size(), Tensor{});
  for (Member& m : members_) m.quantizer->use(nullptr);
}

}  // namespace lowbit
