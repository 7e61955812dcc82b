#include "data/core/synthetic.h"

#include <array>

namespace lowbit {

namespace {
constexpr int kCells = 4;  // colours in a row of a class's grid
constexpr uint64_t kGridTag = uint64_t(0xD3) << 56, kNoiseTag = uint64_t(0xD4) << 56;
constexpr float kUnitVariance = 1.7320508f;  // uniform in ±√3

float centred(uint32_t word) { return kUnitVariance * (2 * uniform_from_bits(word) - 1); }
}  // namespace

SyntheticDataset::SyntheticDataset(const Options& o) : o_(o) {
  LOWBIT_CHECK(o.samples > 0 && o.classes > 0 && o.size > 0 && o.first >= 0, value, "synthetic",
               "samples, classes and size must be positive (got ", o.samples, ", ", o.classes, ", ", o.size,
               ")");
}

std::vector<Dataset::Field> SyntheticDataset::fields() const {
  return {{"image", Shape{3, o_.size, o_.size}, DType::f32}, {"label", Shape{}, DType::i64}};
}

void SyntheticDataset::read(int64_t index, const RngKey&, std::span<const View> out) const {
  const uint64_t number = uint64_t(o_.first + index), label = number % uint64_t(o_.classes);
  const RngKey grid{o_.seed, kGridTag | label, 0, nullptr}, noise{o_.seed, kNoiseTag | number, 0, nullptr};
  const int size = o_.size;
  float* p = out[0].as<float>();
  uint64_t block = 0;
  for (int c = 0; c < 3; ++c) {
    for (int y = 0; y < size; ++y, p += size) {
      std::array<float, kCells> colours;
      for (int i = 0; i < kCells; ++i) {
        colours[size_t(i)] =
            centred(philox_u32(grid, uint64_t((c * kCells + y * kCells / size) * kCells + i)));
      }
      for (int x = 0; x < size; x += 4) {
        const PhiloxBlock b = philox_block(noise, block++);
        const uint32_t words[4] = {b.w0, b.w1, b.w2, b.w3};
        for (int j = 0; j < 4 && x + j < size; ++j) {
          p[x + j] = colours[size_t((x + j) * kCells / size)] + o_.noise * centred(words[j]);
        }
      }
    }
  }
  *out[1].as<int64_t>() = int64_t(label);
}

}  // namespace lowbit
