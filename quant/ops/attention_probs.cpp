#include "quant/ops/attention_probs.h"

#include <cmath>
#include <limits>

#include "autograd/ops/deferred.h"
#include "quant/ops/lsq_params.h"
#include "tensor/core/context.h"
#include "tensor/engine/column.h"
#include "tensor/engine/row.h"

namespace lowbit {
namespace {

// ---------------------------------------------------------------- CPU kernels

/// The rows [row, row + rows) of one batch as a product of its own. `c` is where they go.
CodedGemmArgs rows_of(CodedGemmArgs g, int64_t batch, int64_t row, int64_t rows) {
  const BatchIndex i = BatchIndex::of(g, batch);
  for (GemmOperand* o : {&g.a, &g.b}) {
    const int64_t skip = o == &g.a ? row : 0;
    const auto at = [&](const GemmOperand::Strides& s) { return i.offset(s.batch) + skip * s.row; };
    o->data = static_cast<const char*>(o->data) + at(o->stride);
    if (o->scale) o->scale += at(o->scale_stride);
    if (o->offset) o->offset += at(o->offset_stride);
  }
  if (g.c) g.c = static_cast<float*>(g.c) + i.offset(g.c_batch) + row * g.c_row;
  g.m = rows;
  for (int64_t& b : g.batch) b = 1;
  return g;
}

void scores_into(float* to, const CodedGemmArgs& scores, int64_t batch, int64_t row, int64_t rows) {
  CodedGemmArgs g = rows_of(scores, batch, row, rows);
  g.c = to, g.c_row = g.n, g.c_col = 1;
  coded_products({1, {g}}, Device{});
}

int64_t batches(const ProductArgs& g) { return g.batch[0] * g.batch[1] * g.batch[2]; }
QParam<float> param_of_row(const LsqCall& c, int64_t row, int64_t n) {
  return lsq_param<float>(c, row * n / c.inner % c.groups);
}
/// Items for the threads, or one thread and threads inside an item.
int64_t grain_of(int64_t items) { return items >= 2 * threads() ? 1 : items; }

template <class Code>
void forward_typed(const AttentionProbsFwdArgs& a) {
  const CodedGemmArgs& g = a.c.scores;
  const int64_t n = g.m, m = g.n, heads = batches(g);
  parallel_for(heads, grain_of(heads), [&](int64_t first, int64_t last) {
    float* const p = cpu::detail::scratch<float>(n * m);
    Code* const own = a.codes.data ? nullptr : cpu::detail::scratch<Code>(n * m);
    for (int64_t h = first; h < last; ++h) {
      Code* const codes = a.codes.data ? a.codes.as<Code>() + h * n * m : own;
      scores_into(p, g, h, 0, n);
      cpu::rows(n, m, [&](const cpu::Row& row, int64_t r) {
        float* const of = p + r * m;
        Code* const to = codes + r * m;
        attention_probs_softmax(row, a.c, h * n + r, of);
        attention_probs_row(row, of, m, param_of_row(a.c.lsq, h * n + r, m), float(a.shift),
                            [=](int64_t j, int32_t code) { to[j] = Code(code); });
        // a row that holds a value that is not finite has no others
        if (!(math::abs(of[0]) <= std::numeric_limits<float>::max()))
          __atomic_fetch_add(a.bad, m, __ATOMIC_RELAXED);
      });
      if (!a.context.c) continue;
      CodedGemmArgs context = rows_of(a.context, h, 0, n);
      context.a.data = codes;
      coded_products({1, {context}}, Device{});
    }
  });
}

void forward_cpu(const AttentionProbsFwdArgs& a, Stream) {
  if (a.codes.dtype == DType::i8)
    forward_typed<int8_t>(a);
  else
    forward_typed<uint8_t>(a);
}

/// Chunks whose rows are about those of a head.
template <MaskRule M, bool Edges>
void backward_masked(const AttentionProbsBwdArgs& a) {
  const CodedGemmArgs& g = a.c.scores;
  const LsqCall& c = a.c.lsq;
  const ProbsChunks chunks(c);
  constexpr int kSums = Edges ? 3 : 1;
  const int64_t n = g.m, m = g.n, each = std::max<int64_t>(1, n * m / std::min(c.inner, kChunk)),
                tasks = ceil_div(chunks.count, each);
  const TieWeights<float> tie = TieWeights<float>::of(c.ties);
  const float* const gy = a.gy.as<float>();
  float *const ds = a.dscores.as<float>(), *const partial = a.partial.as<float>();
  parallel_for(tasks, grain_of(tasks), [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t chunk0 = t * each, chunk1 = std::min(chunks.count, chunk0 + each);
      const int64_t begin = chunks.begin(chunk0), end = chunks.end(chunk1 - 1);
      const int64_t row0 = begin / m, row1 = ceil_div(end, m), size = (row1 - row0) * m;
      float* const e = cpu::detail::scratch<float>(kSums * size);
      for (int64_t row = row0; row < row1;) {
        const int64_t from = row, head = row / n, rows = std::min(n - row % n, row1 - row);
        scores_into(e + (from - row0) * m, g, head, from % n, rows);
        cpu::rows(rows, m, [=, &a, &c](const cpu::Row& context, int64_t r) {
          const int64_t flat = (from + r) * m, at = flat - row0 * m;
          attention_probs_softmax(context, a.c, from + r, e + at);
          // a row belongs to the task that has its first element
          AttentionProbsBwdRow<M, Edges>{e + at,
                                         gy + flat,
                                         flat >= begin ? ds + flat : nullptr,
                                         e + at,
                                         e + size + at,
                                         e + 2 * size + at,
                                         m,
                                         param_of_row(c, from + r, m),
                                         tie}(context);
        });
        row += rows;
      }
      cpu::rows(chunk1 - chunk0, kChunk, [=](const cpu::Row& context, int64_t i) {
        const int64_t chunk = chunk0 + i, at = chunks.begin(chunk) - row0 * m,
                      count = chunks.end(chunk) - chunks.begin(chunk);
        for (int s = 0; s < kSums; ++s) {
          const float* const list = e + s * size + at;
          partial[s * chunks.count + chunk] = context.sum(count, [=](int64_t k) { return list[k]; });
        }
      });
    }
  });
  const int64_t runs = c.outer * c.groups, groups = c.groups;
  float *const sums = a.sums.as<float>(), *const of_runs = runs == 1 ? sums : partial + 3 * chunks.count;
  for (int s = 0; s < kSums; ++s) {
    const float* const list = partial + s * chunks.count;
    for (int64_t r = 0; r < runs; ++r)
      of_runs[s * runs + r] =
          cpu::Row{}.sum(chunks.per_run, [=](int64_t i) { return list[r * chunks.per_run + i]; });
    if (runs > 1)
      cpu::columns(
          c.outer, groups, [=](int64_t o, int64_t k) { return of_runs[s * runs + o * groups + k]; },
          sums + s * groups);
  }
}

template <MaskRule M>
void backward_ruled(const AttentionProbsBwdArgs& a) {
  if (a.edges)
    backward_masked<M, true>(a);
  else
    backward_masked<M, false>(a);
}

void backward_cpu(const AttentionProbsBwdArgs& a, Stream) {
  dispatch_mask(a.c.lsq.mask, [&](auto rule) { backward_ruled<decltype(rule)::value>(a); });
  lsq_finish({a.c.lsq, a.sums, a.out}, Device{});
}

// ---------------------------------------------------------------- the op

/// The product of q and k without a result, whose shape decides the batches, and what is done to it.
AttentionProbsCall probs_call(const Coded& q, const Coded& k, double factor, const Tensor& bias,
                              const Shape& shape, const LsqCall& lsq) {
  Tensor none = Tensor::empty({1}, DType::f32, q.codes.device()).expand(shape);
  CodedGemmArgs g = coded_gemm_args(none, q, k, {}, factor);
  g.c = nullptr;
  const bool added = bias.defined();
  return {g, lsq, added ? bias.data_const<float>() : nullptr, added ? bias.numel() / shape[-1] : 0};
}

struct AttentionProbsNode final : Node {
  SavedCodes q, k;
  Saved bias;
  double factor = 1;
  LsqParams params;
  const char* name() const override { return "attention_probs"; }
  void backward(const Tensor& gy, GradSink& gx) override {
    const bool edges = gx.wants(2) || gx.wants(3);
    const LsqCall& c = params.call;
    Tensor ds = gx.alloc(0);
    Tensor partial = Tensor::empty({attention_probs_workspace(c)}, DType::f32, gy.device());
    Tensor sums = Tensor::empty({3, c.groups}, DType::f32, gy.device());
    const LsqParameterGradients parameters(params, gx);
    attention_probs_bwd(
        {probs_call(q.get(name(), 0), k.get(name(), 1), factor,
                    bias.defined() ? bias.get(name(), 2) : Tensor{}, gy.shape(), c),
         gy.view(), ds.mutable_view(), partial.mutable_view(), sums.mutable_view(), edges, parameters.out},
        gy.device());
    gx.add(0, ds);
    parameters.add(gx);
  }
  void release() override { q.release(), k.release(), bias.release(); }
  std::vector<Tensor> saved() const override {
    return {q.defined() ? q.get(name(), 0).codes : Tensor{}, k.defined() ? k.get(name(), 1).codes : Tensor{},
            bias.peek(), params.scale};
  }
};

struct QuantizedProbs final : DeferredProbs {
  Coded q, k, result;  ///< result without its tensor of codes
  Tensor bias;
  double factor = 1;
  Shape shape;
  LsqParams params;
  LsqSettings settings;
  std::string name;  ///< what settings.name refers to

  Coded run(Tensor* y, const Operand* v, bool keep) const {
    Coded probs = result;
    probs.codes = empty_codes(settings, shape, q.codes.device());
    AttentionProbsFwdArgs a{
        probs_call(q, k, factor, bias, shape, params.call), {}, int(result.shift), {}, nullptr};
    int64_t bad = 0;
    a.bad = &bad;
    if (y) a.context = coded_gemm_args(*y, probs, v->input().t());
    a.codes = probs.codes.mutable_view();
    if (!keep) a.codes.data = nullptr;
    attention_probs_fwd(a, q.codes.device());
    check_finite_count(bad, shape.numel(), settings);
    return probs;
  }
  Coded codes() const override { return run(nullptr, nullptr, true); }
  bool context(Tensor& y, const Operand& v, Coded* keep) const override {
    Coded probs = result;
    probs.codes = Tensor::empty({1}, empty_codes(settings, {0}, {}).dtype(), q.codes.device()).expand(shape);
    if (!on_integers(probs, v.input().t())) return false;
    probs = run(&y, &v, keep != nullptr);
    if (keep) *keep = probs;
    return true;
  }
};

}  // namespace

KernelSlot<AttentionProbsFwdArgs> attention_probs_fwd{"attention_probs.fwd", forward_cpu};
KernelSlot<AttentionProbsBwdArgs> attention_probs_bwd{"attention_probs.bwd", backward_cpu};

Variable attention_probs(const Variable& x, const Variable& scale, const Variable& offset,
                         const Variable& nbits, const LsqSettings& s) {
  const auto* const softmax = dynamic_cast<const DeferredSoftmax*>(x.deferred());
  if (!softmax || !lsq_codable(x, offset.defined(), s)) return {};
  const auto* const scores = dynamic_cast<const DeferredScores*>(softmax->x.deferred());
  const bool edges = offset.requires_grad() || nbits.requires_grad();
  if (!scores || x.numel() == 0 || scores->q.shape()[-1] == 0 ||
      !attention_probs_fit(x.size(-1), scores->q.shape()[-1], edges))
    return {};
  auto later = std::make_shared<QuantizedProbs>();
  later->params = lsq_params(x.shape(), x.dtype(), x.device(), scale.data(),
                             offset.defined() ? offset.data() : Tensor{}, s);
  const LsqCall& c = later->params.call;
  if (c.groups > 1 && c.inner % x.size(-1) != 0) return {};  // a row with several groups
  later->q = scores->q, later->k = scores->k, later->bias = scores->bias;
  later->factor = scores->factor, later->shape = x.shape();
  later->result = lsq_codes(later->params, s);
  later->name = s.name, later->settings = s, later->settings.name = later->name;
  const Variable of = softmax->x;
  std::shared_ptr<AttentionProbsNode> node;
  if (needs_grad({of, scale, offset, nbits})) {
    node = std::make_shared<AttentionProbsNode>();
    node->q.set(scores->q), node->k.set(scores->k), node->factor = scores->factor;
    if (scores->bias.defined()) node->bias.set(scores->bias);
    node->params = later->params;
  }
  return record(std::move(later), x.shape(), x.device(), std::move(node), {of, scale, offset, nbits});
}

}  // namespace lowbit
