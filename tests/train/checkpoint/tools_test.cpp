#include "train/checkpoint/tools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tensor/io/torch_file.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;
using testing::HasSubstr;

std::string fixture() { return std::string(LOWBIT_SOURCE_DIR) + "/tests/tensor/io/fixtures/zip.pth"; }

ErrorKind kind_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.kind();
  }
  return ErrorKind::internal;
}

TEST(Inspect, ListsSafetensors) {
  const TempDir dir;
  save_safetensors(
      dir / "a",
      {{"w", Tensor::from(std::vector<float>{1, -2, NAN}, {3})}, {"n", Tensor::full({2, 2}, 7, DType::u8)}},
      {{"k", "v"}});
  const std::string plain = inspect_file(dir / "a");
  for (const char* part : {": safetensors, ", "  k: v\n", "n  u8   [2, 2]\n", "w  f32  [3]\n",
                           "2 tensors, 7 elements, 16 bytes\n"})
    EXPECT_THAT(plain, HasSubstr(part));
  const std::string values = inspect_file(dir / "a", {"", true});
  EXPECT_THAT(values, HasSubstr("min -2 max 1 mean -0.5 non-finite 1"));
  EXPECT_THAT(values, HasSubstr("min 7 max 7 mean 7\n"));
}

TEST(Inspect, ListsTorchTreesWithRecords) {
  const std::string text = inspect_file(fixture());
  for (const char* part : {": torch, ", "  epoch: 12\n", "  args: object argparse Namespace\n",
                           "i16                 i16   [3]", "nested.list.1.deep  f32   [1]", "23 tensors"})
    EXPECT_THAT(text, HasSubstr(part));
  EXPECT_THAT(inspect_file(fixture(), {"nested.od", false}), HasSubstr("1 tensors, 4 elements, 16 bytes"));
  EXPECT_EQ(kind_of([] { inspect_file(fixture(), {"nothing", false}); }), ErrorKind::io);
  EXPECT_EQ(kind_of([] { inspect_file("/nonexistent"); }), ErrorKind::io);
}

TEST(Diff, ReportsEveryKindOfDifference) {
  const TempDir dir;
  const Tensor w = Tensor::from(std::vector<float>{1, 2, 4}, {3}),
               v = Tensor::from(std::vector<float>{1, 2.5f, 4}, {3});
  save_safetensors(dir / "a",
                   {{"same", w}, {"w", w}, {"shape", w}, {"a", w}, {"nan", Tensor::full({1}, NAN)}});
  save_torch(dir / "b", {{"module.same", w},
                         {"module.w", v},
                         {"module.shape", Tensor::zeros({2})},
                         {"module.b", w},
                         {"module.nan", Tensor::full({1}, NAN)}});
  const DiffReport d = diff_files(dir / "a", dir / "b");
  EXPECT_FALSE(d.equal);
  EXPECT_EQ(d.text,
            "only in first   a      [3]\n"
            "shape           shape  [3] against [2]\n"
            "values          w      max abs 0.5  max rel 0.2  in 1 of 3\n"
            "only in second  b      [3]\n"
            "2 tensors equal, 2 differ, 1 only in the first file, 1 only in the second; max abs 0.5, max rel "
            "0.2\n");
  EXPECT_TRUE(diff_files(dir / "a", dir / "a").equal);
}

TEST(Convert, KeepsValuesThroughEveryFormat) {
  const TempDir dir;
  TensorMap m;
  for (DType t :
       {DType::f32, DType::f64, DType::f16, DType::i8, DType::u8, DType::i32, DType::i64, DType::b8})
    m[std::string("x.") + dtype_name(t)] = test::fill("x", {2, 3}, 0, 100).cast(t);
  save_safetensors(dir / "0.safetensors", m, {{"k", "v"}});
  const char* chain[] = {"0.safetensors", "1.pth", "2.npz", "3.pt", "4.bin", "5.safetensors"};
  for (size_t i = 1; i < std::size(chain); ++i)
    EXPECT_THAT(convert_file(dir / chain[i - 1], dir / chain[i]), HasSubstr(": 8 tensors, "));
  const TensorFile last = load_safetensors(dir / "5.safetensors");
  ASSERT_EQ(last.tensors.size(), m.size());
  for (const auto& [name, t] : m) EXPECT_TRUE(equal_bits(last.tensors.at(name), t)) << name;
  convert_file(dir / "0.safetensors", dir / "6.safetensors");
  EXPECT_EQ(test::read_file(dir / "0.safetensors"), test::read_file(dir / "6.safetensors"));
}

TEST(Convert, CastsFloatsOnly) {
  const TempDir dir;
  const Tensor w = test::fill("w", {5}, 0, 1), n = Tensor::full({2}, 300, DType::i64);
  save_safetensors(dir / "a.safetensors", {{"w", w}, {"n", n}});
  for (DType t : {DType::f16, DType::bf16, DType::f32}) {
    convert_file(dir / "a.safetensors", dir / "b.pth", {t, ""});
    const WeightFile r = load_weights(dir / "b.pth", {"", false});
    EXPECT_TRUE(equal_bits(r.tensors.at("w"), w.cast(t)));
    EXPECT_TRUE(equal_bits(r.tensors.at("n"), n));
  }
  save_safetensors(dir / "big.safetensors", {{"w", Tensor::full({1}, 1e5)}});
  EXPECT_EQ(kind_of([&] {
              convert_file(dir / "big.safetensors", dir / "c.pth", {DType::f16, ""});
            }),
            ErrorKind::usage);
  EXPECT_EQ(kind_of([&] {
              convert_file(dir / "a.safetensors", dir / "c.pth", {DType::i8, ""});
            }),
            ErrorKind::usage);
  EXPECT_EQ(kind_of([&] { convert_file(dir / "a.safetensors", dir / "c.doc"); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([&] { convert_file(dir / "a.safetensors", dir / "c.npy"); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([&] { convert_file(dir / "a.safetensors", dir / "none/c.pth"); }), ErrorKind::run);
  EXPECT_FALSE(std::ifstream(dir / "c.pth")) << "nothing may be written on error";
  convert_file(dir / "big.safetensors", dir / "c.npy");
  EXPECT_EQ(load_weights(dir / "c.npy").tensors.at("c").item<float>(), 1e5f);
}

TEST(Convert, GoldenCheckpointBecomesSafetensors) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd/micro_checkpoint.pth.tar");
  const TempDir dir;
  convert_file(path, dir / "a.safetensors");
  EXPECT_TRUE(diff_files(path, dir / "a.safetensors").equal);
  EXPECT_EQ(load_safetensors(dir / "a.safetensors").metadata.at("epoch"), "12");
}

}  // namespace
}  // namespace lowbit
