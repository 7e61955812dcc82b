// A quantizer keeps no copy of what its producer can make again; its gradients have the same bits.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "autograd/core/node.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/pointwise.h"
#include "autograd/ops/shape.h"
#include "autograd/ops/shift.h"
#include "autograd/ops/softmax.h"
#include "quant/ops/lsq.h"
#include "tensor/engine/isa.h"

namespace lowbit {
namespace {

Tensor wave(const Shape& s, float step) {
  Tensor t = Tensor::empty(s);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = std::sin(step * float(i));
  return t;
}

Variable quantized(const Variable& x, const Variable& scale, CodeType codes = CodeType::u8) {
  LsqSettings s;
  s.levels = {Levels::of(4, true)};
  s.codes = codes;
  return fake_quant_lsq(x, scale, {}, {}, s);
}

size_t kept_by_quantizer(const Variable& y) { return saved_memory(y)["fake_quant_lsq"]; }

void check(const std::function<Variable(const Variable&)>& producer, bool replays = true) {
  const Variable x(wave({6, 40}, 0.7f), true), scale(Tensor::full({1}, 0.1), true);
  const Variable again(Tensor::full({1}, 0.1), true);
  const Variable h = producer(x), copy(h.data().clone(), true);
  const Variable y = quantized(h, scale), plain = quantized(copy, again);
  const Tensor gy = wave(y.shape(), 0.3f);
  const size_t kept = kept_by_quantizer(y) - kept_by_quantizer(h);  // without those of the producer
  EXPECT_EQ(kept < h.data().bytes(), replays) << kept;
  EXPECT_GE(kept_by_quantizer(plain), h.data().bytes());
  y.backward(gy), plain.backward(gy);
  EXPECT_EQ(scale.grad().to_vector<float>(), again.grad().to_vector<float>());
  const Variable leaf(wave({6, 40}, 0.7f), true);  // the gradient goes on through the producer
  producer(leaf).backward(copy.grad());
  EXPECT_EQ(x.grad().to_vector<float>(), leaf.grad().to_vector<float>());
}

TEST(Replay, Gelu) {
  check([](const Variable& x) { return gelu(x); });
}

TEST(Replay, LayerNorm) {
  const Variable gain(wave({40}, 1.1f), true), shift(wave({40}, 2.3f), true);
  check([&](const Variable& x) { return layer_norm(x, gain, shift, 1e-6); });
}

TEST(Replay, IntegerProduct) {
  const Variable w(wave({24, 40}, 0.9f), true), b(wave({24}, 0.4f), true), a(Tensor::full({1}, 0.2));
  check([&](const Variable& x) { return linear(quantized(x, a), quantized(w, a, CodeType::i8), b); },
        fast_integer_products({}));
}

TEST(Replay, GeluOfAnIntegerProduct) {
  const Variable w(wave({24, 40}, 0.9f), true), b(wave({24}, 0.4f), true), a(Tensor::full({1}, 0.2));
  check([&](const Variable& x) { return gelu(linear(quantized(x, a), quantized(w, a, CodeType::i8), b)); });
}

TEST(Replay, SoftmaxOfIntegerScores) {
  const Variable k(wave({1, 6, 40}, 0.9f), true), a(Tensor::full({1}, 0.2));
  check([&](const Variable& x) {
    const Variable q = reshape(x, {1, 6, 40});
    return softmax(attention_scores(quantized(q, a), quantized(k, a), 2, 0.3));
  });
}

/// The sum formed inside the quantizer: the bits of the sum before it, for a scale per row and per column.
TEST(Replay, ShiftInsideTheQuantizer) {
  for (const int axis : {-1, -2}) {
    const Shape shape{3, 7, 40};
    LsqSettings s;
    s.axis = axis, s.groups = shape[axis];
    s.levels = {Levels::of(4, true)}, s.ties = TiePolicy::inclusive;
    Tensor scales = wave({s.groups}, 0.3f);
    for (int64_t i = 0; i < s.groups; ++i) scales.data<float>()[i] = 0.1f + 0.02f * float(i % 5);
    struct Leaves {
      Variable x, b, scale;
    } in[2];
    for (Leaves& l : in)
      l = {Variable(wave(shape, 0.7f), true), Variable(wave({40}, 1.3f), true),
           Variable(scales.clone(), true)};
    const Variable inside = fake_quant_lsq(in[0].x, in[0].b, in[0].scale, s),
                   before = fake_quant_lsq(shift(in[1].x, in[1].b), in[1].scale, {}, {}, s);
    EXPECT_EQ(inside.data().to_vector<float>(), before.data().to_vector<float>());
    const Tensor gy = wave(shape, 0.4f);
    inside.backward(gy), before.backward(gy);
    for (const auto member : {&Leaves::x, &Leaves::b, &Leaves::scale})
      EXPECT_EQ((in[0].*member).grad().to_vector<float>(), (in[1].*member).grad().to_vector<float>());
  }
}

}  // namespace
}  // namespace lowbit
