// fake_quant_lsq as an op: everything tests/support/op_case.h derives, with frozen rounding as the gradient's
// oracle.

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "quant/ops/lsq.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

/// Group of a flat index, as the documentation of the op defines it.
struct Groups {
  int64_t inner, groups;
  Groups(const Shape& x, const LsqSettings& s) : inner(x.numel()), groups(s.groups) {
    if (s.axis == Coded::kPerTensor) return;
    inner = x[s.axis] / groups;
    for (int d = s.axis + 1; d < 0; ++d) inner *= x[d];
  }
  int64_t operator()(int64_t i) const { return i / inner % groups; }
};

int slot_of(const LsqSettings& s, int64_t g) { return s.slots.empty() ? int(g) : s.slots[size_t(g)]; }

/// Inputs of every case: x, scale, then offset and nbits where used.
struct Setup {
  LsqSettings s;
  int64_t scales = 1;
  bool offset = false, nbits = false;
  Variable call(std::span<const Variable> v) const {
    const Variable none;
    return fake_quant_lsq(v[0], v[1], offset ? v[2] : none, nbits ? v[offset ? 3 : 2] : none, s);
  }
  std::vector<InputSpec> inputs(const Shape& x) const {
    std::vector<InputSpec> all{{.name = "x", .shape = x, .lo = -2.5, .hi = 2.5},
                               {.name = "scale", .shape = {scales}, .lo = 0.15, .hi = 0.3}};
    if (offset) all.push_back({.name = "offset", .shape = {scales}, .lo = -0.1, .hi = 0.1});
    if (nbits) all.push_back({.name = "nbits", .shape = {s.groups}, .lo = 2.9, .hi = 3.1});
    return all;
  }
  /// Moves every u at least 0.01 from clip edges and rounding boundaries, the multiples of ½.
  void prepare(std::vector<Tensor>& in) const {
    const Groups group(in[0].shape(), s);
    float* x = in[0].data<float>();
    for (int64_t i = 0; i < in[0].numel(); ++i) {
      const int slot = slot_of(s, group(i));
      const double a = in[1].data_const<float>()[slot], b = offset ? in[2].data_const<float>()[slot] : 0;
      double u = (x[i] - b) / a;
      const double nearest = std::nearbyint(2 * u) / 2;
      if (std::fabs(u - nearest) < 0.01) u = nearest + (u < nearest ? -0.01 : 0.01);
      x[i] = float(u * a + b);
    }
  }
  /// The forward in double with rint(v) replaced by v + c, c = rint(v) − v held at the base point.
  Function surrogate(std::span<const Tensor> base) const;
};

/// Remembers or replays the roundings.
struct Frozen {
  std::vector<double>* c;
  bool recording;
  double operator()(double v, int64_t i) const {
    if (recording) (*c)[size_t(i)] = std::nearbyint(v) - v;
    return v + (*c)[size_t(i)];
  }
};

template <MaskRule M>
std::vector<double> evaluate(const Setup& k, std::span<const std::vector<double>> v, const Groups& group,
                             const Frozen& round) {
  std::vector<double> y;
  for (int64_t i = 0; i < int64_t(v[0].size()); ++i) {
    const int64_t g = group(i);
    const size_t slot = size_t(slot_of(k.s, g));
    const Levels l = k.s.levels[k.s.levels.size() == 1 ? 0 : size_t(g)];
    double lo = l.lo, hi = l.hi;
    if (k.nbits) {  // the levels as functions of the bit-width, at the integer width of the call
      const double n = std::log2(hi + 1) + v[k.offset ? 3 : 2][size_t(g)] - 3;
      hi = std::exp2(n) - 1, lo = lo < 0 ? -std::exp2(n) : 0;
    }
    const QParam<double> p{v[1][slot], k.offset ? v[2][slot] : 0.0, lo, hi};
    y.push_back(UniformSte<M>::fwd(v[0][size_t(i)], p, round, i));
  }
  return y;
}

Function Setup::surrogate(std::span<const Tensor> base) const {
  const Setup k = *this;
  const Shape shape = base[0].shape();
  const Groups group(shape, s);
  auto c = std::make_shared<std::vector<double>>(size_t(base[0].numel()));
  const auto values = [k](auto&& get, size_t n) {
    std::vector<std::vector<double>> v;
    for (size_t i = 0; i < n; ++i) v.push_back(get(i));
    return v;
  };
  const auto run = [k, group](std::vector<std::vector<double>> v, const Frozen& f) {
    return k.s.mask == MaskRule::round_then_clip ? evaluate<MaskRule::round_then_clip>(k, v, group, f)
                                                 : evaluate<MaskRule::clip_then_round>(k, v, group, f);
  };
  auto at_base = values([&](size_t i) { return base[i].to_vector<double>(); }, base.size());
  const std::vector<double> width = nbits ? at_base.back() : std::vector<double>{};
  if (nbits) at_base.back().assign(at_base.back().size(), 3);
  run(at_base, {c.get(), true});
  return [=](std::span<const Variable> in) {
    auto v = values([&](size_t i) { return in[i].data().to_vector<double>(); }, in.size());
    for (size_t g = 0; g < width.size(); ++g) v.back()[g] += 3 - width[g];  // the call rounds nbits to 3
    const std::vector<double> y = run(v, {c.get(), false});
    return Variable(Tensor::from(std::span<const double>(y), shape));
  };
}

OpCase make_case(const std::string& name, const Setup& k, const Shape& x) {
  OpCase c;
  c.name = name;
  c.inputs = k.inputs(x);
  c.fn = [k](std::span<const Variable> v) { return k.call(v); };
  c.gradient = Gradient::frozen_rounding;
  c.prepare = [k](std::vector<Tensor>& in) { k.prepare(in); };
  c.surrogate = [k](std::span<const Tensor> base) { return k.surrogate(base); };
  return c;
}

std::vector<OpCase> cases() {
  std::vector<OpCase> all;
  for (const bool is_signed : {true, false})
    for (const bool offset : {false, true}) {
      Setup k;
      k.s.levels = {Levels::of(3, is_signed)};
      k.offset = offset;
      const std::string name = std::string(is_signed ? "signed" : "unsigned") + (offset ? "_offset" : "");
      OpCase c = make_case("tensor_" + name, k, {3, 5, 7});
      c.sizes = [k](int64_t n) { return k.inputs({n}); };
      if (is_signed && !offset) c.perf.inputs = k.inputs({8, 197, 768});
      all.push_back(c);
      k.s.mask = MaskRule::round_then_clip;
      all.push_back(make_case("round_then_clip_" + name, k, {3, 5, 7}));
      k.s.mask = MaskRule::clip_then_round;
      k.nbits = true;
      all.push_back(make_case("learned_bits_" + name, k, {4, 33}));
    }
  Setup weight;
  weight.s.codes = CodeType::i8;
  weight.s.levels = {Levels::of(3, true)};
  all.push_back(make_case("weight", weight, {12, 33}));

  Setup token;  // OFQ: [batch, token, channel], one scale per token, inclusive edges
  token.s.axis = -2, token.s.groups = token.scales = 5;
  token.s.levels = {Levels::of(3, true)}, token.s.ties = TiePolicy::inclusive;
  OpCase per_token = make_case("per_token", token, {4, 5, 33});
  per_token.perf.inputs = token.inputs({64, 5, 768});
  all.push_back(per_token);

  Setup channel;
  channel.s.axis = -1, channel.s.groups = channel.scales = 33, channel.offset = true;
  channel.s.levels = {Levels::of(3, true)};
  OpCase per_channel = make_case("per_channel", channel, {5, 33});
  per_channel.perf.inputs = channel.inputs({1024, 33});
  all.push_back(per_channel);

  Setup heads;  // three groups of columns, mixed bit-widths, shared scales
  heads.s.axis = -1, heads.s.groups = 3, heads.scales = 7;
  heads.s.levels = {Levels::of(3, true), Levels::of(2, true), Levels::of(3, true)}, heads.s.slots = {1, 0, 1};
  all.push_back(make_case("head_columns", heads, {6, 12}));
  heads.s.axis = -3;
  all.push_back(make_case("head_maps", heads, {2, 3, 5, 4}));

  const Variable x(Tensor::full({2, 4}, 0.1)), one(Tensor::full({1}, 0.1));
  const auto call = [=](const Variable& scale, LsqSettings s) {
    return [=] { (void)fake_quant_lsq(x, scale, {}, {}, s); };
  };
  const Variable zero(Tensor::zeros({1})), wide(Tensor::full({1}, 0.1, DType::f64));
  all[0].misuse = {
      {"zero scale", call(zero, {}), "fake_quant_lsq: scale must be positive and finite (got 0 for group 0)"},
      {"dtype", call(wide, {}),
       "fake_quant_lsq: scale must be a vector of x's dtype (got x=[2, 4] f32 cpu, scale=[1] f64 cpu)"},
      {"groups", call(one, {.axis = -1, .groups = 3}),
       "fake_quant_lsq: groups must divide the axis (got groups=3, axis=-1, x=[2, 4])"},
      {"slot", call(one, {.slots = {1}}), "fake_quant_lsq: group 0 needs scale 1 (got scale=[1])"},
      {"not a number",
       [=] {
         (void)fake_quant_lsq(Variable(Tensor::full({4}, NAN)), one, {}, {}, {.name = "blocks.0.attn.in"});
       },
       "blocks.0.attn.in: x must be finite (got 4 non-finite of 4 values)"},
  };
  return all;
}

const bool registered = register_op_cases("FakeQuantLsq", cases());

}  // namespace
}  // namespace lowbit::test
