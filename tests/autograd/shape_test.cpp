#include "autograd/ops/shape.h"

#include <gtest/gtest.h>

#include "autograd/core/node.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

using namespace test;
using In = std::span<const Variable>;

const bool cases = register_op_cases(
    "Shape",
    {
        {.name = "reshape",
         .inputs = {{.name = "x", .shape = {2, 3, 4}}},
         .fn = [](In v) { return reshape(v[0], {4, -1}); },
         .misuse = {{"numel", [] { reshape(Variable(Tensor::zeros({2, 3})), {4, 2}); },
                     "reshape: number of elements must stay (got x=[2, 3] f32 cpu)"}}},
        {.name = "permute",
         .inputs = {{.name = "x", .shape = {2, 3, 4, 5}}},
         .fn = [](In v) { return permute(v[0], {2, 0, 3, 1}); },
         .misuse = {{"repeat", [] { permute(Variable(Tensor::zeros({2, 3})), {0, 0}); },
                     "permute: dimensions must be a permutation (got [2, 3] f32 cpu)"}}},
        {.name = "transpose", .inputs = {{.name = "x", .shape = {3, 4, 5}}}, .fn = [](In v) { return transpose(v[0], 0, -1); }},
        {.name = "slice",
         .inputs = {{.name = "x", .shape = {4, 5, 3}}},
         .fn = [](In v) { return slice(v[0], 1, 1, 4); },
         .misuse = {{"range", [] { slice(Variable(Tensor::zeros({2, 3})), 1, 2, 4); },
                     "slice: range must lie inside the dimension (got [2, 4) of dimension 1 of x=[2, 3] f32 cpu)"}}},
        {.name = "select", .inputs = {{.name = "x", .shape = {4, 5, 3}}}, .fn = [](In v) { return select(v[0], 1, 2); }},
        {.name = "concat",
         .inputs = {{.name = "a", .shape = {2, 1, 3}}, {.name = "b", .shape = {2, 4, 3}}, {.name = "c", .shape = {2, 2, 3}}},
         .fn = [](In v) { return concat(v, 1); },
         .misuse = {{"shape",
                     [] {
                       const Variable parts[] = {Variable(Tensor::zeros({2, 3})), Variable(Tensor::zeros({3, 2}))};
                       concat(parts, 0);
                     },
                     "concat: parts must agree except along dim 0 (got [2, 3] f32 cpu and [3, 2] f32 cpu)"}}},
        {.name = "expand_batch",
         .inputs = {{.name = "x", .shape = {1, 3, 4}}},
         .fn = [](In v) { return expand_batch(v[0], 5); },
         .misuse = {{"batch", [] { expand_batch(Variable(Tensor::zeros({2, 3})), 4); },
                     "expand_batch: x must be one sample, [1, ...] (got x=[2, 3] f32 cpu)"}}},
        {.name = "patches",
         .inputs = {{.name = "x", .shape = {2, 3, 4, 6}}},
         .fn = [](In v) { return patches(v[0], 2); },
         .misuse = {{"size", [] { patches(Variable(Tensor::zeros({1, 3, 5, 4})), 2); },
                     "patches: x must be [B, C, H, W] with H and W multiples of 2 (got x=[1, 3, 5, 4] f32 cpu)"}}},
    });

/// Codes travel through moves; their floats must be what the move makes of the floats.
TEST(Shape, CodesMoveLikeFloats) {
  Coded c;
  c.codes = Tensor::empty({2, 4, 6}, DType::u8);
  uint8_t* q = c.codes.data<uint8_t>();
  for (int i = 0; i < 48; ++i) q[i] = uint8_t((i * 37) % 16);
  c.scale = Tensor::full({1}, 0.3);
  c.offset = Tensor::full({1}, -0.2);
  c.shift = -8, c.lo = 0, c.hi = 15;
  const Variable coded(c), floats(c.dequantize());
  const auto check = [&](auto f, const char* what) {
    const Variable y = f(coded);
    ASSERT_NE(y.coded(), nullptr) << what;
    EXPECT_TRUE(equal_bits(y.data(), f(floats).data().packed())) << what;
  };
  check([](const Variable& x) { return reshape(x, {8, 6}); }, "reshape");
  check([](const Variable& x) { return permute(x, {2, 0, 1}); }, "permute");
  check([](const Variable& x) { return slice(x, 2, 1, 5); }, "slice");
  check([](const Variable& x) { return select(x, 1, 3); }, "select");
}

TEST(Shape, ReshapeKeepsRowsWithTheirScales) {
  Coded c;
  c.codes = Tensor::empty({2, 6, 4}, DType::u8);
  for (int i = 0; i < 48; ++i) c.codes.data<uint8_t>()[i] = uint8_t(i * 37 % 16);
  const float s[] = {1, 2, 3, 4, 5, 6}, b[] = {0.5, 1, -2, 0.25};
  c.scale = Tensor::from(std::span<const float>(s), {6}), c.scale_axis = -2;
  c.offset = Tensor::from(std::span<const float>(b), {4});
  const Variable coded(c), floats(c.dequantize());
  for (const std::vector<int64_t>& to :
       {std::vector<int64_t>{2, 3, 2, 4}, {1, 2, 6, 4}, {12, 4}, {4, 3, 4}, {8, 6}}) {
    const Variable y = reshape(coded, to);
    EXPECT_EQ(y.coded() != nullptr, to.size() == 4);
    EXPECT_TRUE(equal_bits(y.data(), reshape(floats, to).data().packed()));
  }
}

TEST(Shape, SliceTakesItsPartOfRowScales) {
  Coded c;
  c.codes = Tensor::full({4, 3}, 5, DType::i8);
  const float s[] = {1, 2, 3, 4};
  c.scale = Tensor::from(std::span<const float>(s), {4});
  c.scale_axis = -2;
  const Variable coded(c), floats(c.dequantize());
  EXPECT_TRUE(equal_bits(slice(coded, 0, 1, 3).data(), slice(floats, 0, 1, 3).data().packed()));
  EXPECT_TRUE(equal_bits(slice(coded, 1, 1, 3).data(), slice(floats, 1, 1, 3).data().packed()));
}

}  // namespace
}  // namespace lowbit
