// The backend API of cuDNN on the emulated device: a graph of one operation, attention without mask, computed
// as the fused kernels do, with probabilities rounded to bf16 and divided by their sum at the end. As with
// the library, a query may name more engines than can be had, and an engine may turn out to be unsupported
// only when a plan is made of it.

#include <cudnn.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "tensor/hd/half.h"

namespace {

using lowbit::bf16;

constexpr int64_t kEngines = 2, kWork = 256;

thread_local std::string last_error;

/// A stack of lines as the library's, the innermost first.
cudnnStatus_t refuse(cudnnStatus_t s, const char* why) {
  last_error = std::string("Warning: ") + cudnnGetErrorString(s) + "; Reason: " + why + "\nWarning: outside";
  return s;
}

size_t size_of(cudnnBackendAttributeType_t t) {
  return t == CUDNN_TYPE_BOOLEAN                                  ? sizeof(bool)
         : t == CUDNN_TYPE_DATA_TYPE || t == CUDNN_TYPE_HEUR_MODE ? sizeof(int)
                                                                  : 8;
}

/// A tensor of the graph.
struct Operand {
  std::array<int64_t, 4> shape{}, stride{};
  int64_t uid = 0;
  cudnnDataType_t type{};
  bool by_value = false;
  int64_t at(int64_t b, int64_t h, int64_t n) const { return b * stride[0] + h * stride[1] + n * stride[2]; }
};

struct Attribute {
  cudnnBackendAttributeType_t type;
  int64_t count;
  std::vector<char> bytes;
};
struct Descriptor {
  cudnnBackendDescriptorType_t type;
  std::map<int, Attribute> attributes = {};
  bool finalized = false;
  int engine = 0;                      ///< of a configuration
  std::vector<Operand> operands = {};  ///< of a graph, a configuration or a plan

  /// The values, or none where they were not set or are no T.
  template <class T>
  std::vector<T> values(int name) const {
    const auto at = attributes.find(name);
    if (at == attributes.end() || at->second.bytes.size() != size_t(at->second.count) * sizeof(T)) return {};
    std::vector<T> v(size_t(at->second.count));
    std::memcpy(v.data(), at->second.bytes.data(), at->second.bytes.size());
    return v;
  }
  template <class T>
  T value(int name) const {
    const auto at = attributes.find(name);
    T v{};
    if (at != attributes.end() && at->second.count == 1 && at->second.bytes.size() == sizeof v)
      std::memcpy(&v, at->second.bytes.data(), sizeof v);
    return v;
  }
  const Descriptor* part(int name, cudnnBackendDescriptorType_t of_type) const {
    const auto* d = static_cast<const Descriptor*>(value<void*>(name));
    return d && d->type == of_type && d->finalized ? d : nullptr;
  }
};

Operand operand_of(const Descriptor& d) {
  Operand o;
  const auto shape = d.values<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
             stride = d.values<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
  std::copy(shape.begin(), shape.end(), o.shape.begin());
  std::copy(stride.begin(), stride.end(), o.stride.begin());
  o.uid = d.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
  o.type = cudnnDataType_t(d.value<int>(CUDNN_ATTR_TENSOR_DATA_TYPE));
  o.by_value = d.value<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE);
  return o;
}

constexpr int kOperands[] = {CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC,
                             CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC,
                             CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC};

std::vector<Operand> operands_of(const Descriptor& operation) {
  std::vector<Operand> all;
  for (const int name : kOperands)
    if (const Descriptor* d = operation.part(name, CUDNN_BACKEND_TENSOR_DESCRIPTOR))
      all.push_back(operand_of(*d));
  return all;
}

cudnnStatus_t check_tensor(const Descriptor& d) {
  const auto shape = d.values<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS),
             stride = d.values<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
  if (shape.size() != 4 || stride.size() != 4 || d.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID) == 0 ||
      d.value<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT) % 4 != 0 ||
      *std::min_element(shape.begin(), shape.end()) < 1 || d.value<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL))
    return refuse(CUDNN_STATUS_BAD_PARAM, "tensor");
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_operation(const Descriptor& d) {
  const std::vector<Operand> o = operands_of(d);
  if (o.size() != std::size(kOperands)) return refuse(CUDNN_STATUS_BAD_PARAM, "an operand is missing");
  const auto &q = o[0], &k = o[1], &v = o[2], &y = o[3], &factor = o[4];
  for (size_t i = 0; i < 4; ++i)
    if (o[i].type != CUDNN_DATA_BFLOAT16 || o[i].by_value || o[i].stride[3] != 1)
      return refuse(CUDNN_STATUS_BAD_PARAM, "operands must be bf16 with dense rows");
  if (factor.type != CUDNN_DATA_FLOAT || !factor.by_value ||
      factor.shape != std::array<int64_t, 4>{1, 1, 1, 1})
    return refuse(CUDNN_STATUS_BAD_PARAM, "the factor must be one float by value");
  if (y.shape != q.shape || v.shape != k.shape || k.shape[0] != q.shape[0] || k.shape[1] != q.shape[1] ||
      k.shape[3] != q.shape[3])
    return refuse(CUDNN_STATUS_BAD_PARAM, "shapes");
  return CUDNN_STATUS_SUCCESS;
}

/// softmax(factor · q kᵀ) v of one row of queries.
void attend(const std::vector<Operand>& o, const std::array<void*, 4>& place, float factor, int64_t b,
            int64_t h, int64_t n) {
  const auto tensor = [&](size_t i) { return static_cast<bf16*>(place[i]); };
  const int64_t keys = o[1].shape[2], depth = o[0].shape[3];
  const bf16* const q = tensor(0) + o[0].at(b, h, n);
  std::vector<float> p(static_cast<size_t>(keys)), y(static_cast<size_t>(depth));
  float top = -INFINITY, total = 0;
  for (int64_t m = keys - 1; m >= 0; --m) {
    const bf16* const k = tensor(1) + o[1].at(b, h, m);
    float dot = 0;
    for (int64_t d = 0; d < depth; ++d) dot += float(q[d]) * float(k[d]);
    p[size_t(m)] = dot * factor, top = std::max(top, p[size_t(m)]);
  }
  for (int64_t m = 0; m < keys; ++m) {
    const float e = std::exp(p[size_t(m)] - top);
    total += e;
    const bf16* const v = tensor(2) + o[2].at(b, h, m);
    for (int64_t d = 0; d < depth; ++d) y[size_t(d)] += float(bf16(e)) * float(v[d]);
  }
  for (int64_t d = 0; d < depth; ++d) tensor(3)[o[3].at(b, h, n) + d] = bf16(y[size_t(d)] / total);
}

}  // namespace

void cudnnGetLastErrorString(char* message, size_t max_size) {
  std::strncpy(message, last_error.c_str(), max_size - 1), message[max_size - 1] = 0;
  last_error.clear();
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* d) {
  return *d = new Descriptor{.type = type}, CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d) {
  return delete static_cast<Descriptor*>(d), CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t to, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  auto& d = *static_cast<Descriptor*>(to);
  if (d.finalized || count < 1 || !values) return refuse(CUDNN_STATUS_BAD_PARAM, "attribute");
  const auto* bytes = static_cast<const char*>(values);
  d.attributes[name] = {type, count, {bytes, bytes + size_t(count) * size_of(type)}};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t of) {
  auto& d = *static_cast<Descriptor*>(of);
  cudnnStatus_t s = CUDNN_STATUS_SUCCESS;
  const auto needs = [&](bool given, const char* what) {
    if (!given) s = refuse(CUDNN_STATUS_BAD_PARAM, what);
  };
  if (d.type == CUDNN_BACKEND_TENSOR_DESCRIPTOR) {
    s = check_tensor(d);
  } else if (d.type == CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR) {
    s = check_operation(d);
  } else if (d.type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) {
    const Descriptor* o = d.part(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    needs(o && d.value<void*>(CUDNN_ATTR_OPERATIONGRAPH_HANDLE), "graph");
    if (o) d.operands = operands_of(*o);
  } else if (d.type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR) {
    const Descriptor* g =
        d.part(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    needs(g && d.value<int>(CUDNN_ATTR_ENGINEHEUR_MODE), "heuristics");
    if (g) d.operands = g->operands;
  } else if (d.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    const Descriptor* c = d.part(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    needs(c && d.value<void*>(CUDNN_ATTR_EXECUTION_PLAN_HANDLE), "plan");
    if (c && c->engine == 0) s = refuse(CUDNN_STATUS_NOT_SUPPORTED, "the first engine becomes no plan");
    if (c) d.operands = c->operands;
  } else if (d.type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR) {
    needs(d.values<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS).size() ==
              d.values<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS).size(),
          "operands");
  }
  d.finalized = s == CUDNN_STATUS_SUCCESS;
  return s;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t requested, int64_t* count,
                                       void* values) {
  const auto& d = *static_cast<const Descriptor*>(of);
  if (!d.finalized) return refuse(CUDNN_STATUS_NOT_INITIALIZED, "not finalized");
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64 && requested == 1) {
    std::memcpy(values, &kWork, sizeof kWork), *count = 1;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name != CUDNN_ATTR_ENGINEHEUR_RESULTS || type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
    return refuse(CUDNN_STATUS_BAD_PARAM, "attribute");
  if (requested == 0) return *count = kEngines + 1, CUDNN_STATUS_SUCCESS;
  // The fused kernels need whole vectors of eight; the fallback knows no engine at all.
  const bool known = d.value<int>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_A;
  *count = known && d.operands[0].shape[3] % 8 == 0 ? std::min(requested, kEngines) : 0;
  if (*count == 0) refuse(CUDNN_STATUS_NOT_SUPPORTED, "the depth of a head is not a multiple of 8");
  for (int64_t i = 0; i < *count; ++i) {
    auto& c = *static_cast<Descriptor*>(static_cast<void**>(values)[i]);
    if (c.type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR) return refuse(CUDNN_STATUS_BAD_PARAM, "configuration");
    c.engine = int(i), c.operands = d.operands, c.finalized = true;
  }
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const auto &p = *static_cast<const Descriptor*>(plan), &given = *static_cast<const Descriptor*>(pack);
  if (!h || !p.finalized || !given.finalized || !given.value<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE))
    return refuse(CUDNN_STATUS_BAD_PARAM, "execution");
  const auto uids = given.values<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto places = given.values<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  const auto place_of = [&](const Operand& o) -> void* {
    const auto at = std::find(uids.begin(), uids.end(), o.uid);
    return at == uids.end() ? nullptr : places[size_t(at - uids.begin())];
  };
  std::array<void*, 4> place{};
  for (size_t i = 0; i < place.size(); ++i)
    if (place[i] = place_of(p.operands[i]); !place[i] || reinterpret_cast<uintptr_t>(place[i]) % 16 != 0)
      return refuse(CUDNN_STATUS_BAD_PARAM, "an operand has no place, or one that is not aligned");
  const void* const by_value = place_of(p.operands[4]);
  if (!by_value) return refuse(CUDNN_STATUS_BAD_PARAM, "no factor");
  float factor = 0;
  std::memcpy(&factor, by_value, sizeof factor);
  cuda_emulation::launch(dim3(1), dim3(1), 0, h->stream, [=, operands = p.operands] {
    const auto& shape = operands[0].shape;
    for (int64_t b = 0; b < shape[0]; ++b)
      for (int64_t head = 0; head < shape[1]; ++head)
        for (int64_t n = 0; n < shape[2]; ++n) attend(operands, place, factor, b, head, n);
  });
  return CUDNN_STATUS_SUCCESS;
}
