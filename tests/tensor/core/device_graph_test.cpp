// Graphs of a device: what is recorded, what is refused, and that launching one asks nothing else of the
// device.

#include "tensor/core/device_graph.h"

#include <gtest/gtest.h>

#include "tensor/core/allocator.h"
#include "tensor/core/backend.h"
#include "tensor/core/tensor.h"
#include "tensor/engine/accumulate.h"
#include "tests/support/device_calls.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

const Device kGpu{Device::Kind::cuda, 0};

Tensor numbers(float first) {
  const float v[] = {first, first + 1, first + 2};
  return Tensor::from(std::span<const float>(v), {3});
}

struct DeviceGraphCuda : testing::Test {
  void SetUp() override {
    if (!test::cuda_present()) GTEST_SKIP() << "no CUDA device";
    x = numbers(1).to(kGpu), y = numbers(0).to(kGpu);
  }
  /// y = 2 x, by way of memory of its own.
  void twice() {
    Tensor t = x.clone();
    accumulate({t.mutable_view(), x.view()}, kGpu);
    y.copy_from(t);
  }
  void rehearse(const DevicePool& pool) {
    const DevicePool::Scope memory(pool);
    twice();
  }
  Tensor x, y;
};

TEST_F(DeviceGraphCuda, RunsWhatItRecordedOnWhatIsThereNow) {
  const DevicePool pool(kGpu);
  rehearse(pool);
  y.fill(-1);
  DeviceGraph graph(pool);
  graph.capture([&] { twice(); });
  EXPECT_EQ(y.to_vector<float>(), (std::vector<float>{-1, -1, -1}));  // nothing has run yet
  EXPECT_EQ(graph.nodes(), 3);
  for (const float first : {1.f, 10.f}) {
    x.copy_from(numbers(first));
    const test::DeviceCalls before = test::device_calls();
    graph.launch();
    const test::DeviceCalls asked = test::device_calls(before);
    EXPECT_EQ(y.to_vector<float>(), (std::vector<float>{2 * first, 2 * first + 2, 2 * first + 4}));
    if (!test::counts_device_calls()) continue;
    EXPECT_EQ(asked.graphs, 1);
    EXPECT_EQ(asked.launches + asked.copies + asked.allocations + asked.waits, 0);
  }
}

TEST_F(DeviceGraphCuda, RefusesWhatWaitsForTheDevice) {
  const DevicePool pool(kGpu);
  rehearse(pool);
  const std::pair<const char*, std::function<void()>> refused[] = {
      {"read", [&] { (void)x.to_vector<float>(); }},
      {"upload", [&] { (void)numbers(4).to(kGpu); }},
      {"wait", [&] { synchronize(kGpu); }},
      {"memory that was not rehearsed", [&] { (void)Tensor::empty({1 << 20}, DType::f32, kGpu); }},
  };
  for (const auto& [name, work] : refused) {
    SCOPED_TRACE(name);
    DeviceGraph graph(pool);
    try {
      graph.capture([&] { twice(), work(); });
      ADD_FAILURE() << "was recorded";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::capture) << e.what();
    }
    EXPECT_FALSE(capturing());
    twice();  // the stream is usable again
    EXPECT_EQ(y.to_vector<float>(), (std::vector<float>{2, 4, 6}));
  }
}

TEST_F(DeviceGraphCuda, KeepsItsMemoryUntilThePoolIsGone) {
  Allocator& memory = allocator(kGpu);
  auto pool = std::make_unique<DevicePool>(kGpu);
  const void* inside = nullptr;
  {
    const DevicePool::Scope scope(*pool);
    inside = Tensor::empty({777}, DType::f32, kGpu).view().data;
  }
  memory.trim();
  EXPECT_NE(Tensor::empty({777}, DType::f32, kGpu).view().data, inside);
  {
    const DevicePool::Scope scope(*pool);
    EXPECT_EQ(Tensor::empty({777}, DType::f32, kGpu).view().data, inside);
  }
  memory.trim();  // what is cached outside of the pool, so that the next block of this size is the pool's
  pool.reset();
  EXPECT_EQ(Tensor::empty({777}, DType::f32, kGpu).view().data, inside);
}

TEST_F(DeviceGraphCuda, AFullDeviceSaysWhoseMemoryItIs) {
  Tensor mine = Tensor::full({1 << 20}, 1, DType::f32, kGpu);
  try {
    (void)Tensor::empty({int64_t(1) << 45}, DType::f32, kGpu);
    ADD_FAILURE() << "was allocated";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::run);
    EXPECT_NE(std::string(e.what()).find("by operation: "), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("fill "), std::string::npos) << e.what();
  }
}

/// Who guards waits is called before each that has no limit, and may end it.
TEST_F(DeviceGraphCuda, AGuardComesBeforeWaits) {
  int calls = 0;
  set_wait_guard([&](Device d) {
    EXPECT_EQ(d, kGpu);
    if (++calls > 3) throw Error(ErrorKind::run, "guard", "the end");
  });
  y.copy_from(numbers(5));  // an upload, which nobody waits for
  EXPECT_EQ(calls, 0);
  synchronize(kGpu), synchronize(Device{});
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(y.to(Device{}).to_vector<float>()[0], 5);
  EXPECT_EQ(calls, 2);
  {
    const DevicePool pool(kGpu);
    rehearse(pool);
    DeviceGraph g(pool);
    g.capture([&] { twice(); });
    g.launch();
  }
  EXPECT_EQ(calls, 3) << "the end of a graph";
  EXPECT_THROW((void)y.to(Device{}), Error);
  set_wait_guard({});
  EXPECT_EQ(y.to_vector<float>()[0], 2);
}

}  // namespace
}  // namespace lowbit
