// A quantizer keeps no copy of what its producer can make again; its gradients have the same bits.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "autograd/core/node.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/pointwise.h"
#include "quant/ops/lsq.h"

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

void check(const std::function<Variable(const Variable&)>& producer) {
  const Variable x(wave({6, 40}, 0.7f), true), scale(Tensor::full({1}, 0.1), true);
  const Variable again(Tensor::full({1}, 0.1), true);
  const Variable h = producer(x), copy(h.data().clone(), true);
  const Variable y = quantized(h, scale), plain = quantized(copy, again);
  const Tensor gy = wave(y.shape(), 0.3f);
  EXPECT_LT(kept_by_quantizer(y) - kept_by_quantizer(h), h.data().bytes());  // without those of the producer
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
  check([&](const Variable& x) { return linear(quantized(x, a), quantized(w, a, CodeType::i8), b); });
}

TEST(Replay, GeluOfAnIntegerProduct) {
  const Variable w(wave({24, 40}, 0.9f), true), b(wave({24}, 0.4f), true), a(Tensor::full({1}, 0.2));
  check([&](const Variable& x) { return gelu(linear(quantized(x, a), quantized(w, a, CodeType::i8), b)); });
}

}  // namespace
}  // namespace lowbit
