#include "tensor/engine/pointwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "tensor/hd/philox.h"

namespace lowbit {
namespace {

template <class T>
Tensor random_tensor(const Shape& s, uint64_t seed) {
  Tensor t = Tensor::empty(s, dtype_of<T>);
  T* p = t.data<T>();
  for (int64_t i = 0; i < t.numel(); ++i) p[i] = T(philox_normal({seed, 0, 0, nullptr}, uint64_t(i)));
  return t;
}

struct MulAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return a * b + c;
  }
};
struct Two {
  template <class T>
  Pack<T, 2> operator()(T a, T b) const {
    return {{a - b, a * b}};
  }
};

/// A view of the wanted shape onto fresh random data: dimensions dropped (broadcast), permuted and sliced at
/// random.
template <class T>
Tensor random_view(const Shape& s, std::mt19937& rng, bool broadcast) {
  const int d = s.ndim();
  std::vector<int> order(static_cast<size_t>(d));
  for (int i = 0; i < d; ++i) order[size_t(i)] = i;
  if (rng() % 2) std::shuffle(order.begin(), order.end(), rng);
  Shape stored = s;
  std::vector<int64_t> skip(static_cast<size_t>(d));
  for (int i = 0; i < d; ++i) {
    const int64_t extent = broadcast && rng() % 3 == 0 ? 1 : s[order[size_t(i)]];
    skip[size_t(i)] = int64_t(rng() % 3);
    stored.set(i, extent + skip[size_t(i)]);
  }
  Tensor t = random_tensor<T>(stored, rng());
  for (int i = 0; i < d; ++i)
    t = t.slice(i, skip[size_t(i)] / 2, t.size(i) - (skip[size_t(i)] - skip[size_t(i)] / 2));
  for (int i = 0; i < d; ++i) {  // undo the order by transpositions
    while (order[size_t(i)] != i) {
      const int j = order[size_t(i)];
      t = t.transpose(i, j);
      std::swap(order[size_t(i)], order[size_t(j)]);
    }
  }
  return t.expand(s);
}

template <class T>
void matches_packed_reference(int threads) {
  set_threads(threads);
  std::mt19937 rng(unsigned(7 + threads));
  for (int trial = 0; trial < 150; ++trial) {
    Shape s;
    const int d = 1 + int(rng() % 4);
    for (int i = 0; i < d; ++i)
      s.append(trial % 20 == 0 ? int64_t(rng() % 3)
                               : 1 + int64_t(rng() % (d == 1   ? 40000
                                                      : d == 2 ? 300
                                                               : 13)));
    const Tensor a = random_view<T>(s, rng, true), b = random_view<T>(s, rng, true),
                 c = random_view<T>(s, rng, true);
    const auto va = a.to_vector<T>(), vb = b.to_vector<T>(), vc = c.to_vector<T>();
    Tensor y = random_view<T>(s, rng, false), u = random_view<T>(s, rng, false),
           v = random_view<T>(s, rng, false);
    cpu::pointwise({y.mutable_view(), a.view(), b.view(), c.view()}, MulAdd{});
    cpu::pointwise<2>({u.mutable_view(), v.mutable_view(), a.view(), b.view()}, Two{});
    Tensor w = random_view<T>(s, rng, false);
    cpu::pointwise_indexed({w.mutable_view(), a.view()},
                           [](int64_t i, auto x) { return decltype(x)(i) + x; });
    const auto vy = y.to_vector<T>(), vu = u.to_vector<T>(), vv = v.to_vector<T>(), vw = w.to_vector<T>();
    for (size_t i = 0; i < vy.size(); ++i) {
      ASSERT_EQ(vy[i], va[i] * vb[i] + vc[i]) << s.str() << " element " << i;
      ASSERT_EQ(vu[i], va[i] - vb[i]);
      ASSERT_EQ(vv[i], va[i] * vb[i]);
      ASSERT_EQ(vw[i], T(int64_t(i)) + va[i]);
    }
  }
  set_threads(0);
}
TEST(Pointwise, StridesAndBroadcastsEqualThePackedComputation) {
  for (int threads : {1, 2, 4}) {
    matches_packed_reference<float>(threads);
    matches_packed_reference<double>(threads);
  }
}

TEST(Pointwise, OutputMayBeAnInput) {
  Tensor x = random_tensor<float>({3, 5000}, 1);
  const auto before = x.to_vector<float>();
  const View v = x.mutable_view();
  cpu::pointwise({v, v, v}, [](auto a, auto b) { return a + b; });
  const auto after = x.to_vector<float>();
  for (size_t i = 0; i < after.size(); ++i) ASSERT_EQ(after[i], 2 * before[i]);
}

TEST(Pointwise, NeighboursOfTheOutputStayUntouched) {
  Tensor frame = Tensor::full({10, 70}, -5);
  Tensor y = frame.slice(0, 2, 8).slice(1, 3, 66);
  cpu::pointwise({y.mutable_view(), Tensor::full({6, 63}, 1).view()}, [](auto x) { return x; });
  double sum = 0;
  for (float v : frame.to_vector<float>()) sum += v;
  EXPECT_EQ(sum, -5.0 * (700 - 6 * 63) + 6 * 63);
}

TEST(Pointwise, OtherElementTypesAreNamed) {
  const Tensor x = random_tensor<float>({1000}, 3);
  Tensor code = Tensor::empty({1000}, DType::u8), half = Tensor::empty({1000}, DType::bf16);
  cpu::pointwise_typed<1, false, uint8_t, float>({code.mutable_view(), x.view()},
                                                 [](float v) { return v > 0 ? 1 : 0; });
  cpu::pointwise_typed<1, false, bf16, float>({half.mutable_view(), x.view()}, [](float v) { return v; });
  const auto c = code.to_vector<uint8_t>();
  const auto h = half.to_vector<bf16>();
  const auto v = x.to_vector<float>();
  for (size_t i = 0; i < v.size(); ++i) {
    ASSERT_EQ(c[i], v[i] > 0);
    ASSERT_EQ(h[i].bits, bf16(v[i]).bits);
  }
}

TEST(Pointwise, RefusesOtherTypes) {
  Tensor x = Tensor::zeros({4}, DType::i32);
  EXPECT_THROW(cpu::pointwise({x.mutable_view(), x.view()}, [](auto a) { return a; }), Error);
}

}  // namespace
}  // namespace lowbit
