#include "autograd/ops/embedding.h"

#include <gtest/gtest.h>

#include "autograd/core/variable.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/reduce.h"
#include "tensor/core/device_graph.h"
#include "tensor/core/error.h"
#include "tests/support/device_calls.h"
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

/// What ids and labels on a device must be is checked there; the step does not wait for it.
struct IndicesCuda : testing::Test {
  void SetUp() override {
    if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  }
  template <class F>
  static void expect_found_when_read(F&& f, const std::string& message) {
    (void)f();  // memory and constants are there
    EXPECT_THROW(f().data().to(Device{}), Error);
    const DeviceCalls before = device_calls();
    const Variable y = f();
    EXPECT_EQ(device_calls(before).waits, 0);
    try {
      y.data().to(Device{});
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::value);
      EXPECT_EQ(e.what(), message);
    }
    y.data().to(Device{});  // it is told once
  }
  static constexpr Device kGpu{Device::Kind::cuda, 0};
};

TEST_F(IndicesCuda, Embedding) {
  const Variable weight(Tensor::full({4, 3}, 2, DType::f32, kGpu), true);
  const Tensor bad = ids({0, 3, 4}).to(kGpu);
  expect_found_when_read([&] { return embedding(weight, bad); },
                         "embedding: ids must be in [0, 4) (got id 4 at position 2, found on the device)");
  const Tensor negative = ids({-1, 1}).to(kGpu);
  expect_found_when_read(
      [&] { return index_select(weight, negative); },
      "index_select: ids must be in [0, 4) (got id -1 at position 0, found on the device)");
  const Tensor none = ids({0}).to(kGpu);
  expect_found_when_read(
      [&] {
        return embedding(Variable(Tensor::zeros({0, 3}, DType::f32, kGpu)), none);
      },
      "embedding: ids must be in [0, 0) (got id 0 at position 0, found on the device)");
  // Rows that are there do not suffer, and the gradient leaves the bad one out.
  const Variable y = embedding(weight, bad);
  sum(y).backward();
  EXPECT_THROW(y.data().to(Device{}), Error);
  EXPECT_EQ(y.data().to_vector<float>(), (std::vector<float>{2, 2, 2, 2, 2, 2, 0, 0, 0}));
  EXPECT_EQ(weight.grad().to_vector<float>(), (std::vector<float>{1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1}));
}

TEST_F(IndicesCuda, Labels) {
  const Variable logits(Tensor::zeros({3, 5}, DType::f32, kGpu));
  const Tensor labels = ids({4, 5, 0}).to(kGpu);
  expect_found_when_read(
      [&] { return cross_entropy(logits, labels, 0.1); },
      "cross_entropy: labels must be in [0, 5) (got label 5 at row 1, found on the device)");
}

/// A graph writes the same record, in every launch.
TEST_F(IndicesCuda, InAGraph) {
  const Variable weight(Tensor::full({4, 3}, 2, DType::f32, kGpu));
  Tensor id = ids({1, 2}).to(kGpu), y;
  const auto work = [&] { y = embedding(weight, id).data(); };
  const DevicePool pool(kGpu);
  {
    const DevicePool::Scope memory(pool);
    work(), work();
  }
  DeviceGraph graph(pool);
  graph.capture(work);
  graph.launch();
  EXPECT_EQ(y.to_vector<float>(), std::vector<float>(6, 2.f));
  id.copy_from(ids({1, 9}));
  graph.launch();
  EXPECT_THROW(y.to(Device{}), Error);
}

}  // namespace
}  // namespace lowbit::test
