#include "tensor/core/shape.h"

#include <algorithm>

#include "tensor/core/dtype.h"
#include "tensor/core/error.h"

namespace lowbit {

const char* dtype_name(DType t) {
  static constexpr const char* names[] = {"f32", "f64", "bf16", "f16", "i8", "u8", "i32", "i64", "b8"};
  return names[static_cast<int>(t)];
}

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) {
  for (int64_t d : dims) append(d);
}

void Shape::append(int64_t extent) {
  LOWBIT_CHECK(ndim_ < kMaxDims, shape, "shape", "at most ", kMaxDims, " dimensions are supported");
  LOWBIT_CHECK(extent >= 0, shape, "shape", "extents must be non-negative (got ", extent, ")");
  d_[ndim_++] = extent;
}

int Shape::index(int i) const {
  const int j = i < 0 ? i + ndim_ : i;
  LOWBIT_CHECK(j >= 0 && j < ndim_, shape, "shape", "dimension ", i, " is out of range (got ", str(), ")");
  return j;
}

int64_t Shape::operator[](int i) const { return d_[index(i)]; }
void Shape::set(int i, int64_t extent) { d_[index(i)] = extent; }

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int64_t d : *this) n *= d;
  return n;
}

bool Shape::operator==(const Shape& o) const {
  return ndim_ == o.ndim_ && std::equal(begin(), end(), o.begin());
}

std::string Shape::str() const {
  std::string s = "[";
  for (int i = 0; i < ndim_; ++i) s += (i ? ", " : "") + std::to_string(d_[i]);
  return s + "]";
}

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  const int n = std::max(a.ndim(), b.ndim());
  Shape r;
  for (int i = 0; i < n; ++i) {
    const int ia = i - (n - a.ndim()), ib = i - (n - b.ndim());
    const int64_t x = ia < 0 ? 1 : a[ia], y = ib < 0 ? 1 : b[ib];
    LOWBIT_CHECK(x == y || x == 1 || y == 1, shape, op, "shapes cannot be broadcast (got a=", a.str(),
                 ", b=", b.str(), ")");
    r.append(x == 1 ? y : x);
  }
  return r;
}

}  // namespace lowbit
