#pragma once
// Images as tensors, and draws that a golden file lists.

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/core/random.h"
#include "data/image/image.h"
#include "tensor/core/tensor.h"

namespace lowbit::test {

inline Image image_from(const Tensor& hwc) {
  Image image(int(hwc.size(0)), int(hwc.size(1)));
  std::copy_n(hwc.data_const<uint8_t>(), image.bytes(), image.data());
  return image;
}

inline Tensor as_tensor(const Image& image) {
  Tensor t = Tensor::empty({image.height(), image.width(), 3}, DType::u8);
  std::copy_n(image.data(), image.bytes(), t.data<uint8_t>());
  return t;
}

inline Image random_image(int height, int width, uint64_t seed) {
  Image image(height, width);
  for (size_t i = 0; i < image.bytes(); ++i) image.data()[i] = uint8_t(philox_u32({seed, 0, 0, nullptr}, i));
  return image;
}

/// Draws that a golden file lists: ["uniform", low, high, share], ["random", value], ["rand", value or
/// values],
/// ["beta", a, value or values], ["randint", low, high, value]. A request for another kind or range than the
/// listed one fails. `half_open`: the file's integer ranges exclude the upper end, as NumPy's do.
class ForcedDraws final : public Draws {
 public:
  explicit ForcedDraws(const nlohmann::json& list, bool half_open = false) : half_open_(half_open) {
    for (const nlohmann::json& d : list) {
      if (!d.back().is_array()) {
        list_.push_back(d);
        continue;
      }
      for (const nlohmann::json& value : d.back()) {
        list_.push_back(d);
        list_.back().back() = value;
      }
    }
  }
  double uniform(double low, double high) override {
    const nlohmann::json& d = next();
    if (d[0] == "random" || d[0] == "rand") {
      EXPECT_EQ(low, 0);
      EXPECT_EQ(high, 1);
      return d[1];
    }
    EXPECT_EQ(d[0], "uniform");
    EXPECT_DOUBLE_EQ(d[1].get<double>(), low);
    EXPECT_DOUBLE_EQ(d[2].get<double>(), high);
    return low + (high - low) * d[3].get<double>();
  }
  int64_t integer(int64_t low, int64_t high) override {
    const nlohmann::json& d = next();
    EXPECT_EQ(d[0], "randint");
    EXPECT_EQ(d[1].get<int64_t>(), low);
    EXPECT_EQ(d[2].get<int64_t>() - (half_open_ ? 1 : 0), high);
    return d[3];
  }
  double beta(double a) override {
    const nlohmann::json& d = next();
    EXPECT_EQ(d[0], "beta");
    EXPECT_DOUBLE_EQ(d[1].get<double>(), a);
    return d[2];
  }
  bool exhausted() const { return used_ == list_.size(); }

 private:
  const nlohmann::json& next() { return list_.at(used_++); }
  std::vector<nlohmann::json> list_;
  bool half_open_;
  size_t used_ = 0;
};

/// For transforms that must not draw.
class NoDraws final : public Draws {
 public:
  double uniform(double, double) override { return ADD_FAILURE() << "unexpected draw", 0; }
  int64_t integer(int64_t, int64_t) override { return ADD_FAILURE() << "unexpected draw", 0; }
};

}  // namespace lowbit::test
