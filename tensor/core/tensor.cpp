#include "tensor/core/tensor.h"

#include <cstring>

#include "tensor/core/allocator.h"
#include "tensor/core/backend.h"
#include "tensor/core/copy.h"
#include "tensor/core/device_graph.h"

namespace lowbit {

Storage::Storage(size_t bytes, Device d)
    : ptr_(allocator(d).allocate(bytes, current_stream(d))), bytes_(bytes), device_(d) {}
Storage::Storage(std::shared_ptr<Storage> whole, size_t offset, size_t bytes)
    : ptr_(static_cast<char*>(whole->data()) + offset),
      bytes_(bytes),
      device_(whole->device()),
      whole_(std::move(whole)) {
  LOWBIT_ASSERT(offset + bytes <= whole_->bytes());
}
Storage::~Storage() {
  if (ptr_ && !whole_) allocator(device_).release(ptr_, bytes_, current_stream(device_));
}

Tensor Tensor::window(std::shared_ptr<Storage> storage, const Shape& s, DType t, int64_t offset_elements) {
  LOWBIT_ASSERT(storage && size_t(offset_elements + s.numel()) * dtype_size(t) <= storage->bytes());
  Tensor r;
  r.storage_ = std::move(storage);
  r.shape_ = s;
  r.dtype_ = t;
  r.offset_ = offset_elements;
  int64_t step = 1;
  for (int i = s.ndim() - 1; i >= 0; --i) r.stride_[i] = step, step *= s[i];
  return r;
}

Tensor Tensor::empty(const Shape& s, DType t, Device d) {
  return window(std::make_shared<Storage>(size_t(s.numel()) * dtype_size(t), d), s, t, 0);
}

Tensor Tensor::full(const Shape& s, double v, DType t, Device d) {
  Tensor r = empty(s, t, d);
  r.fill(v);
  return r;
}

namespace {
template <class T>
Tensor from_host(std::span<const T> host, const Shape& s, Device d) {
  LOWBIT_CHECK(int64_t(host.size()) == s.numel(), shape, "tensor", "values must fill the shape (got ",
               host.size(), " values for ", s.str(), ")");
  Tensor r = Tensor::empty(s, dtype_of<T>);
  if (!host.empty()) std::memcpy(r.template data<T>(), host.data(), host.size_bytes());
  return d.is_cuda() ? r.to(d) : r;
}
}  // namespace

Tensor Tensor::from(std::span<const float> host, const Shape& s, Device d) { return from_host(host, s, d); }
Tensor Tensor::from(std::span<const double> host, const Shape& s) { return from_host(host, s, {}); }
Tensor Tensor::from(std::span<const int64_t> host, const Shape& s, Device d) { return from_host(host, s, d); }

bool Tensor::contiguous() const {
  if (numel() == 0) return true;
  int64_t step = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && stride_[i] != step) return false;
    step *= shape_[i];
  }
  return true;
}

std::string Tensor::str() const {
  if (!defined()) return "undefined";
  return shape_.str() + " " + dtype_name(dtype_) + " " + device().str();
}

View Tensor::view() const {
  View v;
  v.data = raw();
  v.dtype = dtype_;
  v.ndim = int8_t(ndim());
  for (int i = 0; i < ndim(); ++i) v.shape[i] = shape_[i], v.stride[i] = stride_[i];
  return v;
}

View Tensor::mutable_view() {
  if (storage_) ++storage_->version;
  return view();
}

Tensor Tensor::reshape(const Shape& s) const {
  LOWBIT_CHECK(s.numel() == numel(), shape, "reshape", "number of elements must stay (got ", str(), " to ",
               s.str(), ")");
  Tensor r = *this;
  r.shape_ = s;
  if (contiguous()) {
    int64_t step = 1;
    for (int i = s.ndim() - 1; i >= 0; --i) r.stride_[i] = step, step *= s[i];
    return r;
  }
  // Walk both shapes from the inside; a group of new dimensions must lie inside one uniformly strided group
  // of old ones.
  int i = ndim() - 1, j = s.ndim() - 1;
  while (j >= 0) {
    if (s[j] == 1) {
      r.stride_[j] = 1, --j;
      continue;
    }
    while (i >= 0 && shape_[i] == 1) --i;
    int64_t group = shape_[i], step = stride_[i];
    const int64_t base = step;
    while (i > 0 && (shape_[i - 1] == 1 || stride_[i - 1] == base * group)) group *= shape_[--i];
    int64_t left = group;
    while (j >= 0 && left > 1) {
      LOWBIT_CHECK(s[j] != 0 && left % s[j] == 0, shape, "reshape", "a copy would be needed (got ", str(),
                   " to ", s.str(), "); call packed()");
      r.stride_[j] = step, step *= s[j], left /= s[j], --j;
    }
    --i;
  }
  return r;
}

Tensor Tensor::permute(std::span<const int> dims) const {
  LOWBIT_CHECK(int(dims.size()) == ndim(), shape, "permute", "one entry per dimension is needed (got ", str(),
               ")");
  Tensor r = *this;
  unsigned seen = 0;
  int i = 0;
  for (int d : dims) {
    if (d < 0) d += ndim();
    LOWBIT_CHECK(d >= 0 && d < ndim() && !(seen >> d & 1), shape, "permute",
                 "dimensions must be a permutation (got ", str(), ")");
    seen |= 1u << d;
    r.shape_.set(i, shape_[d]);
    r.stride_[i++] = stride_[d];
  }
  return r;
}

Tensor Tensor::transpose(int a, int b) const {
  if (a < 0) a += ndim();
  if (b < 0) b += ndim();
  Tensor r = *this;
  r.shape_.set(a, shape_[b]);
  r.shape_.set(b, shape_[a]);
  std::swap(r.stride_[a], r.stride_[b]);
  return r;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  if (dim < 0) dim += ndim();
  LOWBIT_CHECK(0 <= begin && begin <= end && end <= shape_[dim], shape, "slice",
               "range must lie inside the dimension (got [", begin, ", ", end, ") of dimension ", dim, " of ",
               str(), ")");
  Tensor r = *this;
  r.offset_ += begin * stride_[dim];
  r.shape_.set(dim, end - begin);
  return r;
}

Tensor Tensor::select(int dim, int64_t index) const {
  if (dim < 0) dim += ndim();
  const Tensor s = slice(dim, index, index + 1);
  Tensor r = s;
  r.shape_ = Shape{};
  for (int i = 0, k = 0; i < ndim(); ++i)
    if (i != dim) r.shape_.append(shape_[i]), r.stride_[k++] = stride_[i];
  return r;
}

Tensor Tensor::expand(const Shape& s) const {
  Tensor r = *this;
  r.shape_ = s;
  const int lead = s.ndim() - ndim();
  LOWBIT_CHECK(lead >= 0, shape, "expand", "shapes cannot be broadcast (got ", str(), " to ", s.str(), ")");
  for (int i = 0; i < s.ndim(); ++i) {
    const int64_t extent = i < lead ? 1 : shape_[i - lead];
    LOWBIT_CHECK(extent == s[i] || extent == 1, shape, "expand", "shapes cannot be broadcast (got ", str(),
                 " to ", s.str(), ")");
    r.stride_[i] = extent == 1 && s[i] != 1 ? 0 : (i < lead ? 0 : stride_[i - lead]);
  }
  return r;
}

Tensor Tensor::unsqueeze(int dim) const {
  if (dim < 0) dim += ndim() + 1;
  Tensor r = *this;
  r.shape_ = Shape{};
  for (int i = 0, k = 0; i <= ndim(); ++i) {
    if (i == dim)
      r.shape_.append(1), r.stride_[i] = 1;
    else
      r.shape_.append(shape_[k]), r.stride_[i] = stride_[k++];
  }
  return r;
}

Tensor Tensor::clone() const {
  Tensor r = empty(shape_, dtype_, device());
  r.copy_from(*this);
  return r;
}

Tensor Tensor::packed() const { return contiguous() ? *this : clone(); }

Tensor Tensor::cast(DType t) const {
  if (t == dtype_) return *this;
  Tensor r = empty(shape_, t, device());
  r.copy_from(*this);
  return r;
}

void Tensor::copy_from(const Tensor& src) {
  const bool upload = device().is_cuda() && !src.device().is_cuda() && src.shape() == shape_ &&
                      src.dtype() == dtype_ && contiguous() && src.contiguous() && !capturing();
  if (upload && numel() > 0) {  // no copy in between
    require_cuda_backend("to").upload(mutable_view().data, device(), src.raw(), bytes());
    return;
  }
  const Tensor here = src.to(device()), s = here.shape() == shape_ ? here : here.expand(shape_);
  strided_copy(CopyArgs{mutable_view(), s.view()}, device());
}

void Tensor::fill(double v) { strided_fill(FillArgs{mutable_view(), v}, device()); }

Tensor Tensor::to(Device d) const {
  if (!defined() || d == device()) return *this;
  const CudaBackend& backend = require_cuda_backend("to");
  LOWBIT_CHECK(!capturing(), capture, "to",
               "nothing passes between host and device while a step is captured (got ", str(), " to ",
               d.str(), ")");
  const Tensor from = packed();
  Tensor r = empty(shape_, dtype_, d);
  if (numel() == 0) return r;
  if (device().is_cuda()) guard_wait(device());
  if (device().is_cuda())
    backend.transfer(r.raw(), d, from.raw(), device(), bytes());
  else
    backend.upload(r.raw(), d, from.raw(), bytes());
  return r;
}

bool equal_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor x = a.to({}).packed(), y = b.to({}).packed();
  return x.numel() == 0 || std::memcmp(x.view().data, y.view().data, x.bytes()) == 0;
}

}  // namespace lowbit
