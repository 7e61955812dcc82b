#include "tests/support/attention_cudnn.h"

#include "tensor/core/error.h"

#if LOWBIT_HAVE_CUDNN
#include <cudnn.h>
#endif

#if LOWBIT_HAVE_CUDNN && CUDNN_VERSION >= 91300

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/core/kernel_slot.h"

namespace lowbit::test {
namespace {

constexpr const char* kOp = "cudnn_attention";
enum Uid : int64_t { kQ = 1, kK, kV, kY, kFactor };

/// The library's own account of its last error in this thread, a stack of lines: the reason in the first that
/// has one. Empty where there is none.
std::string last_reason() {
  std::array<char, 4096> stack{};
  cudnnGetLastErrorString(stack.data(), stack.size());
  std::string text(stack.data());
  constexpr std::string_view kReason = "Reason: ";
  const size_t at = text.find(kReason);
  if (at != text.npos) text.erase(0, at + kReason.size());
  text.resize(std::min(text.size(), text.find('\n')));
  return text;
}

std::string text_of(cudnnStatus_t s) {
  const std::string reason = last_reason();
  return str_cat(cudnnGetErrorString(s), reason.empty() ? "" : ": ", reason);
}
void check(cudnnStatus_t s, const char* what) {
  if (s != CUDNN_STATUS_SUCCESS) fail(ErrorKind::cuda, kOp, str_cat("cuDNN ", what, ": ", text_of(s)));
}

/// One descriptor of the backend API.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    check(cudnnBackendCreateDescriptor(type, &handle_), "descriptor");
  }
  Descriptor(Descriptor&& d) noexcept : handle_(std::exchange(d.handle_, nullptr)) {}
  Descriptor& operator=(Descriptor&& d) noexcept { return std::swap(handle_, d.handle_), *this; }
  ~Descriptor() {
    if (handle_) cudnnBackendDestroyDescriptor(handle_);
  }
  cudnnBackendDescriptor_t get() const { return handle_; }

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  std::span<const T> values) {
    check(cudnnBackendSetAttribute(handle_, name, type, int64_t(values.size()), values.data()), "attribute");
    return *this;
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    return set(name, type, std::span<const T>(&value, 1));
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& d) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, d.handle_);
  }
  Descriptor& finalize(const char* what) { return check(cudnnBackendFinalize(handle_), what), *this; }

 private:
  cudnnBackendDescriptor_t handle_ = nullptr;
};

Descriptor tensor(int64_t uid, cudnnDataType_t type, const std::array<int64_t, 4>& shape,
                  const std::array<int64_t, 4>& strides, bool by_value) {
  Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const int64_t>(shape))
      .set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const int64_t>(strides))
      .set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, uid)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, int64_t(16))
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, false)
      .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value)
      .finalize("tensor");
  return d;
}

/// [B, N, H·D] as the library's [B, H, N, D].
Descriptor heads_of(int64_t uid, const Tensor& t, int64_t heads) {
  const int64_t depth = t.size(2) / heads;
  return tensor(uid, CUDNN_DATA_BFLOAT16, {t.size(0), heads, t.size(1), depth},
                {t.stride(0), depth, t.stride(1), 1}, false);
}

/// What the library proposes for a graph, the best first.
std::vector<Descriptor> proposals(const Descriptor& graph, cudnnBackendHeurMode_t mode) {
  Descriptor h(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  h.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  std::vector<Descriptor> all;
  if (cudnnBackendFinalize(h.get()) != CUDNN_STATUS_SUCCESS) return all;
  int64_t most = 0, count = 0;
  check(cudnnBackendGetAttribute(h.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0,
                                 &most, nullptr),
        "number of plans");
  std::vector<cudnnBackendDescriptor_t> handles;
  for (int64_t i = 0; i < most; ++i) {
    all.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    handles.push_back(all.back().get());
  }
  if (most > 0)  // those that this device cannot run are left out, so fewer may come
    check(cudnnBackendGetAttribute(h.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                   most, &count, handles.data()),
          "plans");
  all.erase(all.begin() + count, all.end());
  return all;
}

int64_t work_bytes(const Descriptor& plan) {
  int64_t bytes = 0, count = 0;
  check(cudnnBackendGetAttribute(plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                 &count, &bytes),
        "workspace");
  return bytes;
}

}  // namespace

std::string CudnnAttention::missing() {
  if (cudnnGetVersion() >= 91300) return "";
  return str_cat("cuDNN ", cudnnGetVersion(), " has no operation for attention, 9.13 has");
}

struct CudnnAttention::Plan {
  Plan(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y, double scale)
      : tensors{q, k, v, y}, factor(float(scale)) {
    check(cudnnCreate(&handle), "handle");
  }
  ~Plan() {
    pack.clear(), plan.clear();  // before the handle that they were made with
    cudnnDestroy(handle);
  }
  Plan(const Plan&) = delete;
  void make(int64_t heads);
  void bind();

  std::array<Tensor, 4> tensors;  ///< in the order of Uid
  float factor;                   ///< read by every execution
  cudnnHandle_t handle = nullptr;
  std::vector<Descriptor> plan, pack;  ///< one each
  Tensor work;
};

/// The first proposal that becomes a plan.
void CudnnAttention::Plan::make(int64_t heads) {
  std::vector<Descriptor> operands;
  for (size_t i = 0; i < tensors.size(); ++i)
    operands.push_back(heads_of(kQ + int64_t(i), tensors[i], heads));
  operands.push_back(tensor(kFactor, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, true));
  constexpr std::array kPlaces{CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC,
                               CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC,
                               CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC};
  Descriptor operation(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
  for (size_t i = 0; i < kPlaces.size(); ++i) operation.set(kPlaces[i], operands[i]);
  operation.finalize("operation");
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle)
      .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, operation)
      .finalize("graph");
  std::string why;  // of the best proposal
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    const std::vector<Descriptor> proposed = proposals(graph, mode);
    if (proposed.empty() && why.empty()) why = last_reason();
    for (const Descriptor& proposal : proposed) {
      Descriptor p(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      p.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle)
          .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, proposal);
      if (const cudnnStatus_t s = cudnnBackendFinalize(p.get()); s == CUDNN_STATUS_SUCCESS) {
        work = Tensor::empty({std::max<int64_t>(1, work_bytes(p))}, DType::u8, tensors[0].device());
        plan.push_back(std::move(p));
        return;
      } else if (why.empty()) {
        why = text_of(s);
      }
    }
  }
  fail(ErrorKind::cuda, kOp,
       str_cat("cuDNN has no plan for ", heads, " heads of q=", tensors[0].str(), ", k=", tensors[1].str(),
               why.empty() ? "" : ": ", why));
}

/// Which memory the plan works on.
void CudnnAttention::Plan::bind() {
  constexpr std::array<int64_t, 5> kUids{kQ, kK, kV, kY, kFactor};
  const std::array<void*, 5> places{tensors[0].view().data, tensors[1].view().data, tensors[2].view().data,
                                    tensors[3].view().data, &factor};
  pack.emplace_back(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack[0]
      .set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::span<const int64_t>(kUids))
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::span<void* const>(places))
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, work.view().data)
      .finalize("operands");
}

CudnnAttention::CudnnAttention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& y,
                               int64_t heads, double factor) {
  if (const std::string why = missing(); !why.empty()) fail(ErrorKind::cuda, kOp, why);
  for (const Tensor& t : {q, k, v, y}) {
    LOWBIT_CHECK(t.dtype() == DType::bf16 && t.device().is_cuda(), dtype, kOp,
                 "operands must be bf16 on a GPU (got ", t.str(), ")");
    LOWBIT_CHECK(t.ndim() == 3 && t.size(2) % heads == 0 && t.stride(2) == 1, shape, kOp,
                 "operands must be [B, N, H*D] with dense rows (got ", t.str(), ", heads=", heads, ")");
  }
  LOWBIT_CHECK(
      y.shape() == q.shape() && v.shape() == k.shape() && k.size(0) == q.size(0) && k.size(2) == q.size(2),
      shape, kOp, "q and y, k and v must fit together (got q=", q.str(), ", k=", k.str(), ")");
  plan_ = std::make_unique<Plan>(q, k, v, y, factor);
  plan_->make(heads);
  plan_->bind();
}

CudnnAttention::~CudnnAttention() = default;

void CudnnAttention::run() {
  const Stream stream = current_stream(plan_->tensors[0].device());
  check(cudnnSetStream(plan_->handle, static_cast<cudaStream_t>(stream.handle)), "stream");
  check(cudnnBackendExecute(plan_->handle, plan_->plan[0].get(), plan_->pack[0].get()), "attention");
}

}  // namespace lowbit::test

#else

namespace lowbit::test {

struct CudnnAttention::Plan {};
std::string CudnnAttention::missing() { return "built without cuDNN 9.13 or newer"; }
CudnnAttention::CudnnAttention(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, double) {
  fail(ErrorKind::cuda, "cudnn_attention", missing());
}
CudnnAttention::~CudnnAttention() = default;
void CudnnAttention::run() {}

}  // namespace lowbit::test

#endif
