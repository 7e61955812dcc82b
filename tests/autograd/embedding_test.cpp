#include "autograd/ops/embedding.h"

#include "autograd/core/variable.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<InputSpec> inputs(Shape weight, Shape ids) {
  const double rows = double(weight[0]);
  return {{.name = "weight", .shape = weight},
          {.name = "ids", .shape = ids, .lo = 0, .hi = rows, .dtype = DType::i64}};
}

Tensor ids(std::initializer_list<int64_t> v) {
  return Tensor::from(std::span<const int64_t>(v.begin(), v.size()), {int64_t(v.size())});
}

const bool registered = register_op_cases(
    "Embedding",
    {{.name = "tokens",
      .inputs = inputs({7, 5}, {3, 6}),
      .fn = [](std::span<const Variable> v) { return embedding(v[0], v[1].data()); },
      .sizes =
          [](int64_t n) {
            return inputs({5, n}, {3, 4});
          },
      .misuse = {{"dtype",
                  [] {
                    embedding(Variable(Tensor::zeros({4, 2})), Tensor::zeros({16, 128}));
                  },
                  "embedding: ids must be i64 (got ids=[16, 128] f32 cpu)"},
                 {"range",
                  [] {
                    embedding(Variable(Tensor::zeros({4, 2})), ids({0, 4}));
                  },
                  "embedding: ids must be in [0, 4) (got id 4 at position 1, weight=[4, 2] f32 cpu)"},
                 {"negative",
                  [] {
                    embedding(Variable(Tensor::zeros({4, 2})), ids({-1}));
                  },
                  "embedding: ids must be in [0, 4) (got id -1 at position 0, weight=[4, 2] f32 cpu)"},
                 {"shape",
                  [] {
                    embedding(Variable(Tensor::zeros({4, 2, 2})), ids({0}));
                  },
                  "embedding: weight must have two dimensions (got weight=[4, 2, 2] f32 cpu)"}},
      .perf = {.inputs = inputs({30522, 312}, {64, 128})}},
     {.name = "many_ids",
      .inputs = inputs({3, 4}, {200}),
      .fn = [](std::span<const Variable> v) { return embedding(v[0], v[1].data()); },
      .sizes =
          [](int64_t n) {
            return inputs({5, 3}, {n});
          },
      .allows_empty = true}});

const bool registered_select = register_op_cases(
    "IndexSelect",
    {{.name = "rows",
      .inputs = inputs({6, 2, 3}, {9}),
      .fn = [](std::span<const Variable> v) { return index_select(v[0], v[1].data()); },
      .sizes =
          [](int64_t n) {
            return inputs({n, 3}, {5});
          },
      .misuse = {{"ids",
                  [] {
                    index_select(Variable(Tensor::zeros({4, 2})), Tensor::zeros({2, 2}, DType::i64));
                  },
                  "index_select: ids must have one dimension (got ids=[2, 2] i64 cpu)"}}}});

}  // namespace
}  // namespace lowbit::test
