#pragma once
// Tensor: a value handle, a strided window on a Storage. No autograd here.

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tensor/core/device.h"
#include "tensor/core/dtype.h"
#include "tensor/core/error.h"
#include "tensor/core/shape.h"
#include "tensor/core/storage.h"

namespace lowbit {

/// POD passed by value to kernels of both backends. Strides in elements.
struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int8_t ndim = 0;
  int64_t shape[kMaxDims] = {}, stride[kMaxDims] = {};
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
};

class Tensor {
 public:
  Tensor() = default;
  static Tensor empty(const Shape& s, DType t = DType::f32, Device d = {});
  static Tensor full(const Shape& s, double v, DType t = DType::f32, Device d = {});
  static Tensor zeros(const Shape& s, DType t = DType::f32, Device d = {}) { return full(s, 0, t, d); }
  static Tensor from(std::span<const float> host, const Shape& s, Device d = {});
  static Tensor from(std::span<const double> host, const Shape& s);
  static Tensor from(std::span<const int64_t> host, const Shape& s, Device d = {});
  static Tensor scalar(float v) { return full({1}, v); }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int ndim() const { return shape_.ndim(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return stride_[dim < 0 ? dim + ndim() : dim]; }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const {
    return size_t(numel()) * dtype_size(dtype_);
  }  ///< of the window, not of the storage
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : Device{}; }
  bool contiguous() const;
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  uint32_t version() const { return storage_ ? storage_->version : 0; }
  std::string str() const;  ///< "[8, 197, 192] f32 cpu", for messages

  /// First element. Throws when T is not the dtype. The non-const form counts as an in-place write.
  template <class T>
  T* data() {
    check_dtype(dtype_of<T>);
    if (storage_) ++storage_->version;
    return static_cast<T*>(raw());
  }
  template <class T>
  const T* data() const {
    check_dtype(dtype_of<T>);
    return static_cast<const T*>(raw());
  }
  View view() const;    ///< read-only use
  View mutable_view();  ///< counts as an in-place write

  Tensor reshape(const Shape& s) const;  ///< view only; throws if a copy would be needed
  Tensor permute(std::span<const int> dims) const;
  Tensor permute(std::initializer_list<int> dims) const {
    return permute(std::span<const int>(dims.begin(), dims.size()));
  }
  Tensor transpose(int a, int b) const;
  Tensor slice(int dim, int64_t begin, int64_t end) const;
  Tensor select(int dim, int64_t index) const;  ///< slice of one, dimension removed
  Tensor expand(const Shape& s) const;          ///< broadcast view (stride 0)
  Tensor unsqueeze(int dim) const;
  Tensor packed() const;  ///< this if contiguous, else a contiguous copy
  Tensor clone() const;   ///< always a contiguous copy
  Tensor to(Device d) const;
  Tensor cast(DType t) const;  ///< element conversion (float → integer truncates towards zero, saturating)
  void copy_from(const Tensor& src);  ///< same shape or broadcastable src; converts dtype
  void fill(double v);
  template <class T>
  T item() const {
    LOWBIT_CHECK(numel() == 1, shape, "item", "tensor must hold one element (got ", str(), ")");
    return to(Device{}).packed().template data_const<T>()[0];
  }
  template <class T>
  std::vector<T> to_vector() const {
    const Tensor p = to(Device{}).packed();
    const T* d = p.template data_const<T>();
    return std::vector<T>(d, d + p.numel());
  }
  template <class T>
  const T* data_const() const {
    return data<T>();
  }

  /// Window on `storage` with explicit geometry; for arenas and readers of mapped files.
  static Tensor window(std::shared_ptr<Storage> storage, const Shape& s, DType t, int64_t offset_elements);

 private:
  void* raw() const {
    return storage_ ? static_cast<char*>(storage_->data()) + offset_ * int64_t(dtype_size(dtype_)) : nullptr;
  }
  void check_dtype(DType t) const {
    LOWBIT_CHECK(t == dtype_, dtype, "tensor", "dtype must be ", dtype_name(t), " (got ", str(), ")");
  }
  std::shared_ptr<Storage> storage_;
  Shape shape_;
  std::array<int64_t, kMaxDims> stride_{};
  int64_t offset_ = 0;
  DType dtype_ = DType::f32;
};

/// Element-for-element equality of shape, dtype and bits.
bool equal_bits(const Tensor& a, const Tensor& b);

}  // namespace lowbit
