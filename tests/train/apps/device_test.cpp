// The same short trainings on the CPU and on a GPU. Our kernels add in the same order on both, so the
// emulated device of ENABLE_CUDA=EMULATE must give the same bits.

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/core/backend.h"
#include "tensor/io/safetensors.h"
#include "tests/support/op_case.h"
#include "tests/train/apps/process.h"

namespace lowbit::test {
namespace {

constexpr double kRate = 1e-3;
constexpr int kSteps = 3;

struct Method {
  const char* name;
  Words options;
};
void PrintTo(const Method& m, std::ostream* out) { *out << m.name; }
const Method kMethods[] = {
    {"float", {"--model-ema", "--clip-grad", "1"}},
    {"float_bf16", {"--precision", "bf16", "--drop-path", "0.2"}},
    {"lsq_bf16", four_bits() + Words{"--quantizer", "lsq", "--precision", "bf16", "--recompute"}},
    {"lsq", four_bits() + Words{"--quantizer", "lsq", "--drop-path", "0.2"}},
    {"vvtq", four_bits() + Words{"--quantizer", "vvtq", "--use-offset", "--bin-regularizer", "--recompute"}},
    {"ofq", four_bits() + Words{"--quantizer", "ofq", "--qk-reparam", "--cga-range", "0.05"}},
    {"frozen",
     four_bits() + Words{"--quantizer", "lsq", "--lr", "2e-2", "--freeze-threshold", "0.2",
                         "--freeze-momentum", "0.5", "--dampening", "0", "--dampening-final", "0.1"}},
    {"one_bit",
     {"--wbits", "1", "--abits", "1", "--calibration-images", "8", "--clip-mode", "agc", "--clip-grad",
      "0.1"}},
    {"sgd", four_bits() + Words{"--quantizer", "lsq+", "--opt", "sgd", "--accumulate", "2"}},
};

double largest_difference(const std::string& a, const std::string& b) {
  const TensorMap x = load_safetensors(a).tensors, y = load_safetensors(b).tensors;
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (const auto& [name, t] : x) {
    const std::vector<double> u = t.cast(DType::f64).to_vector<double>(),
                              v = y.at(name).cast(DType::f64).to_vector<double>();
    for (size_t i = 0; i < u.size(); ++i) {
      const double d = std::fabs(u[i] - v[i]);
      if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
    }
  }
  return worst;
}

class DeviceCuda : public ::testing::TestWithParam<Method> {};

TEST_P(DeviceCuda, TrainingEqualsTheCpu) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  const bool emulated = lowbit_run({"--version"}).out.find("cuda emulated") != std::string::npos;
  TempDir dir;
  for (const char* device : {"cpu", "cuda"}) {
    const Outcome r =
        lowbit_run(Words{"train", "--output", dir.path(), "--run", device, "--device", device,
                         "--no-library-products", "--backward", "int8x3", "--lr", std::to_string(kRate),
                         "--warmup-epochs", "0", "--max-steps", std::to_string(kSteps)} +
                   tiny_model() + tiny_data() + GetParam().options);
    ASSERT_EQ(r.code, 0) << r.err;
  }
  const std::string last = "/last.safetensors";
  EXPECT_LE(largest_difference(dir / "cpu" + last, dir / "cuda" + last), emulated ? 0 : 2 * kRate * kSteps);
}
INSTANTIATE_TEST_SUITE_P(, DeviceCuda, ::testing::ValuesIn(kMethods),
                         [](const auto& method) { return std::string(method.param.name); });

/// Everything of a step happens on the GPU that was asked for.
TEST(DevicesCuda, TheSecondOne) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  if (gpu_count() < 2) GTEST_SKIP() << "one CUDA device";
  TempDir dir;
  for (const char* device : {"cuda:0", "cuda:1"}) {
    const Outcome r =
        lowbit_run(Words{"train", "--output", dir.path(), "--run", device, "--device", device, "--max-steps",
                         "6", "--graph", "on", "--epochs", "2", "--quantizer", "lsq"} +
                   tiny_model() + tiny_data() + four_bits());
    ASSERT_EQ(r.code, 0) << r.err;
  }
  EXPECT_EQ(largest_difference(dir / "cuda:0/last.safetensors", dir / "cuda:1/last.safetensors"), 0);
}

/// Float products by the library, gradients as bf16 products: near the run on the CPU in every precision, and
/// the same bits in a second run.
TEST(DevicesCuda, LibrariesTrainInEveryPrecision) {
  if (!cuda_present()) GTEST_SKIP() << "no CUDA device";
  TempDir dir;
  const auto train = [&](const std::string& name, const Words& options) {
    const Outcome r =
        lowbit_run(Words{"train", "--output", dir.path(), "--run", name, "--lr", std::to_string(kRate),
                         "--warmup-epochs", "0", "--max-steps", std::to_string(kSteps)} +
                   tiny_model() + tiny_data() + four_bits() + options);
    ASSERT_EQ(r.code, 0) << r.err;
  };
  const auto last = [&](const std::string& name) { return dir / name + "/last.safetensors"; };
  train("cpu", {"--precision", "f32"});
  for (const char* precision : {"f32", "tf32", "bf16"}) {
    SCOPED_TRACE(precision);
    const std::string first = precision, second = first + " again";
    const Words options{"--device", "cuda", "--precision", precision, "--backward", "bf16x2"};
    train(first, options), train(second, options);
    EXPECT_LE(largest_difference(last("cpu"), last(first)), 2 * kRate * kSteps);
    EXPECT_GT(largest_difference(last("cpu"), last(first)), 0);
    EXPECT_EQ(largest_difference(last(first), last(second)), 0);
  }
}

}  // namespace
}  // namespace lowbit::test
