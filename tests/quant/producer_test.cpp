// A quantizer that makes its input where it reads it (a GELU's everywhere, a layer norm's on CUDA), against
// the chain of ops, which runs where somebody has asked for that input.

#include <gtest/gtest.h>

#include <functional>

#include "autograd/core/node.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/narrow.h"
#include "autograd/ops/pointwise.h"
#include "quant/ops/layer_norm_codes.h"
#include "quant/ops/lsq.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

struct Form {
  std::string name;
  bool norm = false;  ///< layer norm, else GELU
  LsqSettings s = {};
  int64_t scales = 1;
  bool offset = false, nbits = false, before = false;
  bool fused = true;
  Shape x{4, 9, 33};
};

Variable quantized(std::span<const Variable> in, const Form& f, bool asked) {
  const Variable h = f.norm ? layer_norm(in[0], in[2], in[3], 1e-6) : gelu(in[0]), none;
  if (asked) (void)h.data();
  const size_t next = f.norm ? 4 : 2;
  const Variable y = f.before ? fake_quant_lsq(h, in[next], in[1], f.s)
                              : fake_quant_lsq(h, in[1], f.offset ? in[next] : none,
                                               f.nbits ? in[next + size_t(f.offset)] : none, f.s);
  const bool here = h.device().is_cuda() || (!f.norm && f.s.groups == 1);
  EXPECT_EQ(h.deferred() != nullptr, !asked && f.fused && here) << f.name;
  return y;
}

std::vector<InputSpec> inputs(const Form& f) {
  std::vector<InputSpec> all{{.name = "x", .shape = f.x, .lo = -3, .hi = 3},
                             {.name = "scale", .shape = {f.scales}, .lo = 0.15, .hi = 0.3}};
  const int64_t c = f.x[-1];
  if (f.norm) {
    all.push_back({.name = "gamma", .shape = {c}, .lo = 0.5, .hi = 1.5});
    all.push_back({.name = "beta", .shape = {c}, .lo = -0.2, .hi = 0.2});
  }
  if (f.before) all.push_back({.name = "before", .shape = {c}, .lo = -0.1, .hi = 0.1});
  if (f.offset) all.push_back({.name = "offset", .shape = {f.scales}, .lo = -0.1, .hi = 0.1});
  if (f.nbits) all.push_back({.name = "nbits", .shape = {f.s.groups}, .lo = 2.9, .hi = 3.1});
  return all;
}

std::vector<Form> forms() {
  std::vector<Form> all;
  for (const bool norm : {false, true}) {
    const auto add = [&](const char* name, auto change) {
      Form f;
      f.name = std::string(norm ? "norm_" : "gelu_") + name, f.norm = norm;
      f.s.levels = {Levels::of(3, true)};
      change(f);
      all.push_back(f);
    };
    add("tensor", [](Form&) {});
    add("offset", [](Form& f) { f.offset = true, f.s.levels = {Levels::of(4, false)}; });
    add("learned_bits", [](Form& f) { f.nbits = true; });
    add("signed_codes", [](Form& f) { f.s.codes = CodeType::i8; });
    add("token", [](Form& f) { f.s.axis = -2, f.s.groups = f.scales = 9, f.s.ties = TiePolicy::inclusive; });
    add("channel", [](Form& f) { f.s.axis = -1, f.s.groups = f.scales = 33, f.offset = true; });
    add("round_then_clip", [&](Form& f) { f.s.mask = MaskRule::round_then_clip, f.fused = norm; });
    add("floats", [&](Form& f) { f.s.codes = CodeType::floats, f.fused = !norm; });
    add("column_groups", [&](Form& f) {
      f.x = {6, 12}, f.s.axis = -1, f.s.groups = 3, f.scales = 3, f.fused = !norm;
    });
    for (const int axis : {-1, -2})
      add(axis == -1 ? "shift_channel" : "shift_token", [&](Form& f) {
        f.before = true, f.fused = norm;
        f.s.axis = axis, f.s.groups = f.scales = f.x[axis], f.s.ties = TiePolicy::inclusive;
      });
  }
  return all;
}

std::vector<OpCase> cases() {
  std::vector<OpCase> all;
  for (const Form& f : forms()) {
    OpCase c;
    c.name = f.name;
    c.inputs = inputs(f);
    c.fn = [f](std::span<const Variable> in) { return quantized(in, f, false); };
    c.gradient = Gradient::none;  // that of the chain, bit for bit: see below
    if (f.fused && !f.before && !f.offset && f.s.groups == 1 && !f.nbits)
      c.sizes = [f](int64_t n) {
        Form g = f;
        g.x = {3, n};
        return inputs(g);
      };
    Form deit = f;
    deit.x = f.norm ? Shape{8, 197, 192} : Shape{8, 197, 768};
    if (f.name.ends_with("_tensor")) c.perf.inputs = inputs(deit);
    all.push_back(c);
  }
  return all;
}

const bool registered = register_op_cases("QuantizedProducer", cases());

std::vector<Tensor> run(const Form& f, bool asked, Device d) {
  std::vector<Variable> in;
  for (const InputSpec& s : inputs(f)) in.emplace_back(make_input(s).to(d), true);
  std::vector<Variable> from = in;
  from[0] = narrowed(in[0]);  // itself, where products are of f32
  const Variable y = quantized(from, f, asked);
  y.backward(make_input({.name = "gy", .shape = y.shape()}).to(d));
  std::vector<Tensor> all{y.data().to(Device{})};
  for (const Variable& v : in) all.push_back(v.grad().to(Device{}));
  return all;
}

void equals_its_composition(Device d) {
  for (const MathMode mode : {MathMode::f32, MathMode::bf16})
    for (Form f : forms())
      for (const Shape& x : {f.x, Shape{3, 5, 924}}) {  // more than a chunk of the sums, and a rest
        if (x != f.x && f.s.groups > 1) continue;
        f.x = x;
        context().gemm = mode;
        const std::vector<Tensor> fused = run(f, false, d), chain = run(f, true, d);
        for (size_t i = 0; i < fused.size(); ++i)
          EXPECT_EQ(difference(fused[i], chain[i]), "") << f.name << i;
      }
  context().gemm = MathMode::f32;
}
TEST(QuantizedProducer, EqualsItsComposition) { equals_its_composition(Device{}); }
TEST(QuantizedProducerCuda, EqualsItsComposition) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  equals_its_composition(kGpu);
}

/// A norm whose value nobody has asked for has a gradient.
TEST(QuantizedProducerCuda, BackwardOfAValueThatWasPutOff) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  const auto gradient = [](Device d) {
    const Variable x(make_input({.name = "x", .shape = {5, 33}}).to(d), true),
        one(Tensor::full({33}, 1, DType::f32, d));
    layer_norm(x, one, one, 1e-6).backward(make_input({.name = "gy", .shape = {5, 33}}).to(d));
    return x.grad().to(Device{});
  };
  EXPECT_EQ(difference(gradient(kGpu), gradient(Device{})), "");
}

/// The CPU's kernel is not in use: the row functor of both devices, where defects are easy to look for.
TEST(LayerNormCodes, EqualsTheTwoPasses) {
  const Tensor x16 = make_input({.name = "x", .shape = {9, 33}, .lo = -3, .hi = 3}).cast(DType::bf16),
               x = x16.cast(DType::f32),
               gamma = make_input({.name = "gamma", .shape = {33}, .lo = 0.5, .hi = 1.5}),
               beta = make_input({.name = "beta", .shape = {33}}), scale = Tensor::full({1}, 0.2);
  Tensor mean = Tensor::empty({9}), rstd = Tensor::empty({9}), codes = Tensor::empty({9, 33}, DType::u8);
  LsqCall c{};
  c.scale = scale.view(), c.lo = -4, c.hi = 3, c.outer = c.groups = 1, c.inner = x.numel();
  LsqSettings s;
  s.levels = {Levels::of(3, true)};
  const Variable norm = layer_norm(Variable(x), Variable(gamma), Variable(beta), 1e-6),
                 y = fake_quant_lsq(norm, Variable(scale), {}, {}, s);
  for (const Tensor& from : {x, x16}) {
    int64_t bad = 0;
    layer_norm_codes(
        {{{}, mean.mutable_view(), rstd.mutable_view(), from.view(), gamma.view(), beta.view(), 9, 33, 1e-6},
         {c, codes.mutable_view(), -4, &bad}},
        Device{});
    EXPECT_EQ(codes.to_vector<uint8_t>(), y.coded()->codes.to_vector<uint8_t>());
    EXPECT_EQ(bad, 0);
  }
}

TEST(QuantizedProducer, NamesValuesThatAreNotFinite) {
  Tensor x = make_input(inputs(forms()[0])[0]);
  x.data<float>()[40] = INFINITY;
  const Variable scale(Tensor::full({1}, 0.1)), one(Tensor::full({33}, 1));
  const auto text = [&](const Variable& h) -> std::string {
    try {
      (void)fake_quant_lsq(h, scale, {}, {}, {.name = "blocks.0.mlp.act"});
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(text(gelu(Variable(x))), "blocks.0.mlp.act: x must be finite (got 1 non-finite of 1188 values)");
  EXPECT_EQ(text(layer_norm(Variable(x), one, one, 1e-6)),
            "blocks.0.mlp.act: x must be finite (got 33 non-finite of 1188 values)");
}

}  // namespace
}  // namespace lowbit::test
