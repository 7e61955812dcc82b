#include "tensor/core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

namespace lowbit {
namespace {

/// What views mean, written on packed copies: every operation rebuilds the element list index by index.
struct Naive {
  std::vector<int64_t> shape;
  std::vector<float> v;

  using Index = std::vector<int64_t>;
  float at(const Index& i) const {
    int64_t flat = 0;
    for (size_t d = 0; d < shape.size(); ++d) flat = flat * shape[d] + i[d];
    return v[size_t(flat)];
  }
  static Naive build(std::vector<int64_t> shape, const std::function<float(const Index&)>& f) {
    Naive r{shape, {}};
    const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<>());
    for (int64_t flat = 0; flat < n; ++flat) {
      Index i(shape.size());
      for (int64_t d = int64_t(shape.size()) - 1, rest = flat; d >= 0; rest /= shape[size_t(d)], --d)
        i[size_t(d)] = rest % shape[size_t(d)];
      r.v.push_back(f(i));
    }
    return r;
  }
  Naive permute(const std::vector<int>& p) const {
    std::vector<int64_t> s;
    for (int d : p) s.push_back(shape[size_t(d)]);
    return build(s, [&](const Index& i) {
      Index j(i.size());
      for (size_t d = 0; d < p.size(); ++d) j[size_t(p[d])] = i[d];
      return at(j);
    });
  }
  Naive slice(int dim, int64_t begin, int64_t end) const {
    auto s = shape;
    s[size_t(dim)] = end - begin;
    return build(s, [&](Index i) { return i[size_t(dim)] += begin, at(i); });
  }
  Naive expand(const std::vector<int64_t>& s) const {
    return build(s, [&](const Index& i) {
      Index j(i.end() - long(shape.size()), i.end());
      for (size_t d = 0; d < j.size(); ++d) j[d] = shape[d] == 1 ? 0 : j[d];
      return at(j);
    });
  }
};

Shape to_shape(const std::vector<int64_t>& v) { return Shape(std::span<const int64_t>(v)); }

void expect_same(const Tensor& t, const Naive& n, const char* what) {
  ASSERT_EQ(t.shape(), to_shape(n.shape)) << what;
  ASSERT_EQ(t.to_vector<float>(), n.v) << what << " " << t.str();
}

/// A random shape with the same number of elements, cut along prime factors.
std::vector<int64_t> random_reshape(int64_t n, std::mt19937& rng) {
  std::vector<int64_t> s(1 + rng() % 4, 1);
  if (n == 0) {
    for (auto& e : s) e = int64_t(rng() % 3);
    s[rng() % s.size()] = 0;
    return s;
  }
  for (int64_t p = 2; n > 1; ++p)
    while (n % p == 0) s[rng() % s.size()] *= p, n /= p;
  return s;
}

void reshape_step(Tensor& t, Naive& n, std::mt19937& rng, int& viewed, int& refused) {
  const auto s = random_reshape(int64_t(n.v.size()), rng);
  const Naive want{s, n.v};
  try {
    const Tensor r = t.reshape(to_shape(s));
    EXPECT_EQ(r.storage(), t.storage());
    t = r;
    ++viewed;
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("a copy would be needed"));
    EXPECT_FALSE(t.contiguous());
    t = t.packed().reshape(to_shape(s));
    ++refused;
  }
  n = want;
}

TEST(Tensor, ChainsOfViewsEqualTheNaiveReference) {
  std::mt19937 rng(1);
  int viewed = 0, refused = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<int64_t> s;
    for (int d = 1 + int(rng() % 4); d > 0; --d)
      s.push_back(trial % 25 ? 1 + int64_t(rng() % 5) : int64_t(rng() % 3));
    float next = 0;
    Naive n = Naive::build(s, [&](const auto&) { return next++; });
    Tensor t = Tensor::from(n.v, to_shape(s));
    for (int step = 0; step < 5; ++step) {
      const int d = int(n.shape.size());
      switch (rng() % 4) {
        case 0: {
          std::vector<int> p(static_cast<size_t>(d));
          std::iota(p.begin(), p.end(), 0);
          const int a = int(rng() % unsigned(d)), b = int(rng() % unsigned(d));
          std::swap(p[size_t(a)], p[size_t(b)]);
          n = n.permute(p);
          t = t.transpose(a - (rng() % 2 ? d : 0), b);
          break;
        }
        case 1: {
          const int dim = int(rng() % unsigned(d));
          const int64_t e = n.shape[size_t(dim)], b = int64_t(rng() % uint64_t(e + 1));
          const int64_t end = b + int64_t(rng() % uint64_t(e - b + 1));
          n = n.slice(dim, b, end);
          t = t.slice(dim - (rng() % 2 ? d : 0), b, end);
          break;
        }
        case 2: {
          auto to = n.shape;
          for (auto& e : to)
            if (e == 1 && rng() % 2) e = 1 + int64_t(rng() % 3);
          if (d < 5 && rng() % 2) to.insert(to.begin(), 1 + int64_t(rng() % 3));
          n = n.expand(to);
          t = t.expand(to_shape(to));
          break;
        }
        default:
          reshape_step(t, n, rng, viewed, refused);
      }
      expect_same(t, n, "view");
      if (HasFatalFailure()) return;
      expect_same(t.packed(), n, "packed");
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(viewed, 500);
  EXPECT_GT(refused, 100);
}

TEST(Tensor, PermuteSelectUnsqueeze) {
  std::vector<float> v(24);
  std::iota(v.begin(), v.end(), 0.0f);
  const Tensor t = Tensor::from(v, {2, 3, 4});
  const Naive n{{2, 3, 4}, v};
  expect_same(t.permute({2, 0, 1}), n.permute({2, 0, 1}), "permute");
  expect_same(t.permute({-1, 0, 1}), n.permute({2, 0, 1}), "permute");
  EXPECT_EQ(t.select(1, 2).to_vector<float>(), n.slice(1, 2, 3).v);
  EXPECT_EQ(t.select(1, 2).shape(), Shape({2, 4}));
  EXPECT_EQ(t.unsqueeze(1).shape(), Shape({2, 1, 3, 4}));
  EXPECT_EQ(t.unsqueeze(-1).to_vector<float>(), v);
}

TEST(Tensor, MisuseNamesOperationAndShapes) {
  const Tensor t = Tensor::zeros({2, 3});
  const auto message = [](auto f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "nothing thrown";
  };
  EXPECT_EQ(message([&] { t.reshape({4}); }),
            "reshape: number of elements must stay (got [2, 3] f32 cpu to [4])");
  EXPECT_EQ(message([&] { t.slice(1, 2, 4); }),
            "slice: range must lie inside the dimension (got [2, 4) of dimension 1 of [2, 3] f32 cpu)");
  EXPECT_EQ(message([&] {
              t.permute({0, 0});
            }),
            "permute: dimensions must be a permutation (got [2, 3] f32 cpu)");
  EXPECT_EQ(message([&] { t.permute({0}); }),
            "permute: one entry per dimension is needed (got [2, 3] f32 cpu)");
  EXPECT_EQ(message([&] {
              t.expand({2, 4});
            }),
            "expand: shapes cannot be broadcast (got [2, 3] f32 cpu to [2, 4])");
  EXPECT_EQ(message([&] { t.size(2); }), "shape: dimension 2 is out of range (got [2, 3])");
  EXPECT_EQ(message([&] { t.data<double>(); }), "tensor: dtype must be f64 (got [2, 3] f32 cpu)");
  EXPECT_EQ(message([&] { t.item<float>(); }), "item: tensor must hold one element (got [2, 3] f32 cpu)");
  EXPECT_EQ(message([&] {
              Tensor::from(std::vector<float>{1, 2}, {3});
            }),
            "tensor: values must fill the shape (got 2 values for [3])");
  EXPECT_EQ(message([&] { Shape({1, 1, 1, 1, 1, 1, 1}); }), "shape: at most 6 dimensions are supported");
  EXPECT_EQ(message([&] {
              broadcast_shapes("add", {2, 3}, {4, 3});
            }),
            "add: shapes cannot be broadcast (got a=[2, 3], b=[4, 3])");
}

TEST(Tensor, CudaIsRefusedInABuildWithoutIt) {
  const Device gpu{Device::Kind::cuda, 0};
  try {
    Tensor::zeros({2}).to(gpu);
    GTEST_SKIP() << "this build has a CUDA backend";
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::cuda) GTEST_SKIP() << "CUDA backend without a GPU";
    EXPECT_STREQ(
        e.what(),
        "to: no cuda backend: no liblowbit_cuda.so beside the program; configure with -DENABLE_CUDA=ON");
  }
}

TEST(Tensor, EveryWriteBumpsTheSharedVersion) {
  Tensor t = Tensor::zeros({4});
  Tensor view = t.slice(0, 1, 3);
  const uint32_t before = t.version();
  const Tensor& constant = t;
  constant.data<float>();
  constant.view();
  EXPECT_EQ(t.version(), before);
  view.fill(1);
  EXPECT_EQ(t.version(), before + 1);
  view.copy_from(Tensor::zeros({2}));
  EXPECT_EQ(t.version(), before + 2);
  t.data<float>();
  EXPECT_EQ(view.version(), before + 3);
}

TEST(Tensor, EqualBitsSeesTypeShapeAndSign) {
  const Tensor a = Tensor::full({2, 2}, 0.0), b = Tensor::full({2, 2}, -0.0);
  EXPECT_TRUE(equal_bits(a, a.clone()));
  EXPECT_FALSE(equal_bits(a, b));
  EXPECT_FALSE(equal_bits(a, a.reshape({4})));
  EXPECT_FALSE(equal_bits(a, a.cast(DType::i32)));
  EXPECT_TRUE(equal_bits(a.transpose(0, 1), a));
}

}  // namespace
}  // namespace lowbit
