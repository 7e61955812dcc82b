#include "tensor/core/constant.h"

#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

namespace lowbit {
namespace {

struct Kept {
  std::mutex mutex;
  std::unordered_map<std::string, Tensor> tensors;  ///< by device, dtype, shape and content
};
/// Never destroyed: it holds device memory, which must not be released at exit.
Kept& kept() {
  static auto& all = *new Kept;
  return all;
}

}  // namespace

template <class T>
Tensor constant(std::span<const T> values, const Shape& s, Device d) {
  LOWBIT_ASSERT(int64_t(values.size()) == s.numel());
  const auto host = [&] {
    Tensor t = Tensor::empty(s, dtype_of<T>);
    if (!values.empty()) std::memcpy(t.template data<T>(), values.data(), values.size_bytes());
    return t;
  };
  if (!d.is_cuda()) return host();
  std::string key = d.str() + dtype_name(dtype_of<T>) + s.str();
  key.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  std::lock_guard lock(kept().mutex);
  Tensor& t = kept().tensors[key];
  if (!t.defined()) t = host().to(d);
  return t;
}

template Tensor constant(std::span<const int32_t>, const Shape&, Device);
template Tensor constant(std::span<const int64_t>, const Shape&, Device);
template Tensor constant(std::span<const float>, const Shape&, Device);
template Tensor constant(std::span<const double>, const Shape&, Device);

}  // namespace lowbit
