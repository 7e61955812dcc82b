#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace lowbit {

inline constexpr int kMaxDims = 6;

/// Extents of a tensor; fixed capacity, no heap.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  explicit Shape(std::span<const int64_t> dims);
  int ndim() const { return ndim_; }
  int64_t operator[](int i) const;  ///< negative i counts from the end; bounds-checked
  void set(int i, int64_t extent);
  void append(int64_t extent);
  int64_t numel() const;
  bool operator==(const Shape& o) const;
  std::string str() const;  ///< "[8, 197, 192]"
  const int64_t* begin() const { return d_.data(); }
  const int64_t* end() const { return d_.data() + ndim_; }

 private:
  int index(int i) const;
  std::array<int64_t, kMaxDims> d_{};
  int8_t ndim_ = 0;
};

/// Result shape of broadcasting; throws `<op>: shapes cannot be broadcast (…)`.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

}  // namespace lowbit
