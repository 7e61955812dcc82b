#include "tensor/core/copy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tensor/core/coded.h"
#include "tensor/core/thread_pool.h"

namespace lowbit {
namespace {

const DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i8,
                        DType::u8,  DType::i32, DType::i64,  DType::b8};

TEST(Copy, SmallIntegersSurviveEveryPairOfTypes) {
  const Tensor values = Tensor::from(std::vector<float>{0, 1, 2, 77, 100}, {5});
  const Tensor bits = Tensor::from(std::vector<float>{0, 1, 1, 1, 1}, {5});
  for (DType a : kTypes) {
    for (DType b : kTypes) {
      const Tensor& want = a == DType::b8 || b == DType::b8 ? bits : values;
      const Tensor got = values.cast(a).cast(b);
      EXPECT_EQ(got.dtype(), b);
      EXPECT_EQ(got.cast(DType::f32).to_vector<float>(), want.to_vector<float>())
          << dtype_name(a) << " to " << dtype_name(b);
    }
  }
}

TEST(Copy, FloatToIntegerTruncatesAndSaturates) {
  const float inf = std::numeric_limits<float>::infinity();
  const Tensor x = Tensor::from(std::vector<float>{1.9f, -1.9f, 300, -300, inf, -inf, NAN, 3e9f}, {8});
  EXPECT_EQ(x.cast(DType::i8).to_vector<int8_t>(),
            (std::vector<int8_t>{1, -1, 127, -128, 127, -128, 0, 127}));
  EXPECT_EQ(x.cast(DType::u8).to_vector<uint8_t>(), (std::vector<uint8_t>{1, 0, 255, 0, 255, 0, 0, 255}));
  EXPECT_EQ(x.cast(DType::i32).to_vector<int32_t>(),
            (std::vector<int32_t>{1, -1, 300, -300, INT32_MAX, INT32_MIN, 0, INT32_MAX}));
  EXPECT_EQ(x.cast(DType::i64).to_vector<int64_t>(),
            (std::vector<int64_t>{1, -1, 300, -300, INT64_MAX, INT64_MIN, 0, 3000000000}));
}

TEST(Copy, LargeTransposedCopyIsExactForAnyThreadCount) {
  const int64_t M = 700, N = 300;
  Tensor x = Tensor::empty({M, N});
  float* p = x.data<float>();
  for (int64_t i = 0; i < M * N; ++i) p[i] = float(i);
  for (int threads : {1, 2, 4}) {
    set_threads(threads);
    const Tensor y = x.transpose(0, 1).packed();
    const float* q = y.data_const<float>();
    for (int64_t n = 0; n < N; ++n)
      for (int64_t m = 0; m < M; ++m) ASSERT_EQ(q[n * M + m], float(m * N + n));
    const Tensor z = Tensor::from(std::vector<float>(size_t(M) * N, 5.0f), {M, N}).cast(DType::i32);
    for (int32_t v : z.to_vector<int32_t>()) ASSERT_EQ(v, 5);
  }
  set_threads(0);
}

TEST(Copy, SourceIsBroadcastAndNeighboursStay) {
  Tensor frame = Tensor::full({5, 6}, 9);
  frame.slice(0, 1, 4).slice(1, 2, 4).copy_from(Tensor::from(std::vector<float>{1, 2}, {2}));
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < 6; ++j) {
      const bool inside = i >= 1 && i < 4 && j >= 2 && j < 4;
      EXPECT_EQ(frame.select(0, i).select(0, j).item<float>(), inside ? float(j - 1) : 9.0f);
    }
  }
}

TEST(Copy, EmptyTensorsAreFine) {
  Tensor a = Tensor::zeros({0, 3}), b = Tensor::zeros({0, 3});
  a.copy_from(b);
  a.fill(1);
  EXPECT_TRUE(a.to_vector<float>().empty());
}

TEST(CollapseDims, MergesOnlyWhatAllViewsAllow) {
  const Tensor t = Tensor::zeros({2, 3, 4, 5});
  View one[1] = {t.view()};
  EXPECT_EQ(collapse_dims(one, 1), 1);
  EXPECT_EQ(one[0].shape[0], 120);
  View two[2] = {t.view(), Tensor::zeros({5}).expand({2, 3, 4, 5}).view()};
  EXPECT_EQ(collapse_dims(two, 2), 2);
  EXPECT_EQ(two[1].shape[0], 24);
  EXPECT_EQ(two[1].stride[0], 0);
  View permuted[2] = {t.view(), Tensor::zeros({2, 4, 3, 5}).permute({0, 2, 1, 3}).view()};
  EXPECT_EQ(collapse_dims(permuted, 2), 4);
  View scalar[1] = {Tensor::zeros({1, 1}).view()};
  EXPECT_EQ(collapse_dims(scalar, 1), 1);
  EXPECT_EQ(scalar[0].numel(), 1);
}

}  // namespace
}  // namespace lowbit
