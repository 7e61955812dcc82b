// Attention in one kernel against the chain of ops it replaces, which runs where somebody has asked for the
// probabilities.

#include "quant/ops/attention_probs.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/core/node.h"
#include "autograd/ops/linear.h"
#include "autograd/ops/softmax.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

/// How the operands of one attention are quantized.
struct Form {
  std::string name;
  Shape q{2, 67, 16}, k = q, v = q;  ///< [B, N, H·D]; k [B, H, M, C] for shared queries
  int64_t heads = 2;
  LsqSettings probs = {};
  int64_t scales = 1;  ///< of the probabilities
  bool offset = false, nbits = false, operand_offsets = false, token_scales = false;
  int64_t biases = 0;  ///< kinds of biases of the scores, the last input
};

Variable coded(const Variable& x, const Form& f, double scale) {
  LsqSettings s;
  s.levels = {Levels::of(4, true)};
  if (f.token_scales) s.axis = -2, s.groups = x.size(-2);
  const Variable a(Tensor::full({s.groups}, scale, DType::f32, x.device()));
  if (!f.operand_offsets) return fake_quant_lsq(x, a, {}, {}, s);
  return fake_quant_lsq(x, a, Variable(Tensor::full({s.groups}, 0.3 * scale, DType::f32, x.device())), {}, s);
}

/// `asked`: the probabilities are made as floats, so that the chain of ops runs.
Variable attend(std::span<const Variable> in, const Form& f, bool asked) {
  const Variable none,
      scores = attention_scores(coded(in[0], f, 0.15), coded(in[1], f, 0.17), f.heads, 0.3,
                                f.biases > 0 ? in.back() : none),
      p = softmax(scores);
  if (asked) (void)p.data();
  const Variable codes =
      fake_quant_lsq(p, in[3], f.offset ? in[4] : none, f.nbits ? in[f.offset ? 5 : 4] : none, f.probs);
  const Variable y = attention_context(codes, coded(in[2], f, 0.2), f.heads);
  EXPECT_EQ(p.deferred() == nullptr, asked) << f.name;
  return y;
}

std::vector<InputSpec> inputs(const Form& f) {
  std::vector<InputSpec> all{{.name = "q", .shape = f.q},
                             {.name = "k", .shape = f.k},
                             {.name = "v", .shape = f.v},
                             {.name = "scale", .shape = {f.scales}, .lo = 0.002, .hi = 0.004}};
  if (f.offset) all.push_back({.name = "offset", .shape = {f.scales}, .lo = 0.001, .hi = 0.002});
  if (f.nbits) all.push_back({.name = "nbits", .shape = {f.probs.groups}, .lo = 2.9, .hi = 3.1});
  if (f.biases > 0)
    all.push_back({.name = "bias", .shape = {f.biases, f.heads, f.q[1], f.k[f.k.ndim() - 2]}});
  return all;
}

/// Everything that the schemes put there, and what is cut awkwardly.
std::vector<Form> forms() {
  std::vector<Form> all;
  const auto add = [&](const char* name, auto change) {
    Form f;
    f.name = name;
    f.probs.levels = {Levels::of(4, false)};
    change(f);
    all.push_back(f);
  };
  add("lsq", [](Form&) {});
  add("lsq_plus", [](Form& f) { f.offset = f.operand_offsets = true; });
  add("round_then_clip", [](Form& f) { f.probs.mask = MaskRule::round_then_clip, f.offset = true; });
  add("pass_through", [](Form& f) { f.probs.mask = MaskRule::pass_through; });
  add("learned_bits", [](Form& f) { f.nbits = true; });
  add("signed_codes", [](Form& f) { f.probs.levels = {Levels::of(4, true)}, f.probs.codes = CodeType::i8; });
  add("min_max", [](Form& f) {  // an asymmetric range
    f.probs.levels = {Levels{-3, 252}}, f.probs.ties = TiePolicy::inclusive;
  });
  add("head_wise", [](Form& f) {
    f.probs.axis = -3, f.probs.groups = 2, f.scales = 3;
    f.probs.levels = {Levels::of(3, false), Levels::of(4, false)}, f.probs.slots = {2, 1};
  });
  add("token_scales", [](Form& f) {
    f.token_scales = true;
    f.probs.axis = -2, f.probs.groups = f.scales = 67, f.probs.ties = TiePolicy::inclusive;
  });
  add("token_scales_and_offsets", [](Form& f) {
    f.operand_offsets = true;
    f.probs.axis = -2, f.probs.groups = f.scales = 67, f.probs.ties = TiePolicy::inclusive;
  });
  add("shared_queries", [](Form& f) {
    f.k = {2, 2, 67, 16}, f.token_scales = true;
    f.probs.axis = -2, f.probs.groups = f.scales = 67;
  });
  add("bias", [](Form& f) { f.biases = 1; });
  add("biases_of_windows", [](Form& f) {
    f.q = f.k = f.v = {6, 49, 16}, f.biases = 3;
    f.nbits = true;
    f.probs.axis = -3, f.probs.groups = 2, f.scales = 3;
    f.probs.levels = {Levels::of(3, false), Levels::of(4, false)}, f.probs.slots = {2, 1};
  });
  add("biases_and_shared_queries", [](Form& f) {
    f.q = {4, 49, 16}, f.k = {4, 2, 49, 16}, f.v = f.q, f.biases = 2, f.operand_offsets = true;
  });
  add("short_rows", [](Form& f) { f.q = f.k = f.v = {70, 5, 8}; });
  add("one_token", [](Form& f) { f.q = f.k = f.v = {3, 1, 8}; });
  add("more_keys", [](Form& f) { f.k = f.v = {2, 300, 16}; });
  return all;
}

std::vector<OpCase> cases() {
  std::vector<OpCase> all;
  for (const Form& f : forms()) {
    OpCase c;
    c.name = f.name;
    c.inputs = inputs(f);
    c.fn = [f](std::span<const Variable> in) { return attend(in, f, false); };
    c.gradient = Gradient::none;  // that of the composition, bit for bit: see below
    all.push_back(c);
  }
  Form deit = forms()[0];
  deit.q = deit.k = deit.v = {8, 197, 192}, deit.heads = 3;
  all[0].perf.inputs = inputs(deit);
  const Variable x(Tensor::full({1, 3, 8}, 0.1)), zero(Tensor::zeros({1}));
  const Form f = forms()[0];
  all[0].misuse = {{"zero scale",
                    [=] {
                      const Variable in[] = {x, x, x, zero};
                      attend(in, f, false);
                    },
                    "fake_quant_lsq: scale must be positive and finite (got 0 for group 0)"}};
  return all;
}

const bool registered = register_op_cases("AttentionProbs", cases());

/// Output and gradients of all inputs.
std::vector<Tensor> run(const Form& f, bool asked) {
  std::vector<Variable> in;
  for (const InputSpec& s : inputs(f)) in.emplace_back(make_input(s), true);
  const Variable y = attend(in, f, asked);
  EXPECT_EQ(saved_memory(y).contains("attention_probs"), !asked) << f.name;
  y.backward(make_input({.name = "gy", .shape = y.shape()}));
  std::vector<Tensor> all{y.data()};
  for (const Variable& v : in) all.push_back(v.grad());
  return all;
}

TEST(AttentionProbs, EqualsItsComposition) {
  for (const Form& f : forms()) {
    const std::vector<Tensor> fused = run(f, false), chain = run(f, true);
    for (size_t i = 0; i < fused.size(); ++i) EXPECT_EQ(difference(fused[i], chain[i]), "") << f.name << i;
  }
}

/// Somebody who needs the codes gets them, and the context is that of a plain product.
TEST(AttentionProbs, CodesCanBeAskedFor) {
  const Form f = forms()[0];
  std::vector<Variable> in;
  for (const InputSpec& s : inputs(f)) in.emplace_back(make_input(s));
  const Variable p = softmax(attention_scores(coded(in[0], f, 0.15), coded(in[1], f, 0.17), f.heads, 0.3));
  const Variable codes = fake_quant_lsq(p, in[3], {}, {}, f.probs), v = coded(in[2], f, 0.2);
  ASSERT_NE(codes.deferred(), nullptr);
  ASSERT_NE(codes.coded(), nullptr);
  EXPECT_EQ(codes.deferred(), nullptr);
  EXPECT_EQ(difference(attention_context(codes, v, f.heads).data(), attend(in, f, true).data()), "");
  (void)p.data();
  EXPECT_EQ(difference(fake_quant_lsq(p, in[3], {}, {}, f.probs).data(), codes.data()), "");
}

/// What does not fit a block's memory, and rows with several groups, run op by op.
TEST(AttentionProbs, OtherFormsRunOpByOp) {
  Form wide = forms()[0], columns = forms()[0];
  wide.k = wide.v = {2, 700, 16};
  columns.probs.axis = -1, columns.probs.groups = columns.scales = 67;
  columns.offset = true;
  EXPECT_FALSE(attention_probs_fit(700, 8, false));
  EXPECT_TRUE(attention_probs_fit(577, 64, false));
  EXPECT_TRUE(attention_probs_fit(197, 192, true));
  for (const Form& f : {wide, columns}) {
    std::vector<Variable> in;
    for (const InputSpec& s : inputs(f)) in.emplace_back(make_input(s), true);
    const Variable p = softmax(attention_scores(coded(in[0], f, 0.15), coded(in[1], f, 0.17), f.heads, 0.3));
    (void)fake_quant_lsq(p, in[3], f.offset ? in[4] : Variable{}, {}, f.probs);
    EXPECT_EQ(p.deferred(), nullptr);
  }
}

TEST(AttentionProbs, NamesValuesThatAreNotFinite) {
  const Form f = forms()[0];
  LsqSettings s;
  s.levels = {Levels::of(4, true)};
  const Variable huge(Tensor::full({1}, 3e38)),
      x = fake_quant_lsq(Variable(Tensor::full(f.q, 3e38)), huge, {}, {}, s),
      p = softmax(attention_scores(x, x, f.heads, 1)), scale(Tensor::full({1}, 0.003));
  LsqSettings probs = f.probs;
  probs.name = "blocks.0.attn.probs";
  const Variable codes = fake_quant_lsq(p, scale, {}, {}, probs);
  try {
    (void)codes.coded();
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()),
              "blocks.0.attn.probs: x must be finite (got 17956 non-finite of 17956 values)");
  }
}

}  // namespace
}  // namespace lowbit::test
