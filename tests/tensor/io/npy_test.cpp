#include "tensor/io/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/golden.h"
#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;
using testing::ElementsAre;

std::string fixture(const std::string& name) {
  return std::string(LOWBIT_SOURCE_DIR) + "/tests/tensor/io/fixtures/" + name;
}

TEST(Npy, RoundTripsEveryTypeAndRank) {
  const TempDir dir;
  const Shape shapes[] = {Shape{}, {5}, {2, 3}, {0, 4}, {1, 2, 3, 1, 2, 2}};
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i8, DType::u8, DType::i32,
                  DType::i64, DType::b8})
    for (const Shape& s : shapes) {
      const Tensor x = test::fill("x", s, 0, 100).cast(t);
      save_npy(dir / "x.npy", x);
      const Tensor expected = t == DType::bf16 ? x.cast(DType::f32) : x;
      EXPECT_TRUE(equal_bits(load_npy(ByteSource::open(dir / "x.npy")), expected)) << x.str();
      EXPECT_EQ(test::read_file(dir / "x.npy").find('\n') % 64, 63u);
    }
}

TEST(Npy, ReadsWhatNumpyWrote) {
  const TensorMap m = load_npz(ByteSource::open(fixture("arrays.npz")));  // deflated entries
  ASSERT_EQ(m.size(), 3u);
  EXPECT_THAT(m.at("a").to_vector<float>(), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(m.at("b").shape(), (Shape{2, 3, 4}));  // Fortran order
  const auto b = m.at("b").to_vector<int32_t>();
  for (int i = 0; i < 24; ++i) EXPECT_EQ(b[size_t(i)], i);
  EXPECT_EQ(m.at("c").item<double>(), 3.5);
  EXPECT_THAT(load_npy(ByteSource::open(fixture("u2.npy"))).to_vector<int32_t>(), ElementsAre(0, 1, 2, 3, 4));
}

TEST(Npy, ArchivesRoundTrip) {
  const TempDir dir;
  const TensorMap m = {{"a.weight", test::fill("a", {2, 3}, 0, 1)},
                       {"b/c", Tensor::full({4}, 5, DType::u8)},
                       {"d", Tensor::empty({0})}};
  save_npz(dir / "m.npz", m);
  const TensorMap r = load_npz(ByteSource::open(dir / "m.npz"));
  ASSERT_EQ(r.size(), m.size());
  for (const auto& [name, t] : m) EXPECT_TRUE(equal_bits(r.at(name), t)) << name;
}

TEST(Npy, ReadsTheGoldenArchives) {
  for (const char* name : {"evolq/vit_a.npz", "evolq/vit_b.npz"}) {
    LOWBIT_GOLDEN_OR_SKIP(path, name);
    EXPECT_FALSE(load_npz(ByteSource::open(path)).empty());
  }
}

TEST(Npy, VersionsAndHeaders) {
  auto read = [](int version, const std::string& header, const std::string& data) {
    std::string s = "\x93NUMPY";
    s += char(version), s += '\0';
    const auto n = uint32_t(header.size());
    s.append(reinterpret_cast<const char*>(&n), version == 1 ? 2 : 4);
    return load_npy(ByteSource::memory(s + header + data, "test"));
  };
  const std::string good = "{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }";
  for (int v : {1, 2, 3})
    EXPECT_THAT(read(v, good, std::string("\x01\0\xff\xff", 4)).to_vector<int32_t>(), ElementsAre(1, -1));
  EXPECT_EQ(read(1, "{\"shape\":(2L,1),\"descr\":\"|u1\",\"fortran_order\":True}", "ab").shape(),
            (Shape{2, 1}));
  for (const char* bad :
       {"{'descr': '>i2', 'fortran_order': False, 'shape': (2,), }", "{'descr': '<i2', 'shape': (2,), }",
        "{'descr': [('a','<i2')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (-2,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (4294967296,4294967296,2), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (2,), } x", "{", ""})
    EXPECT_THROW(read(1, bad, std::string(4, '\0')), Error) << bad;
  EXPECT_THROW(read(4, good, std::string(4, '\0')), Error);
}

TEST(Npy, SurvivesDamage) {
  test::expect_robust([](const std::string& b) { load_npy(ByteSource::memory(b, "test")); },
                      test::read_file(fixture("u2.npy")), 5000);
  test::expect_robust([](const std::string& b) { load_npz(ByteSource::memory(b, "test")); },
                      test::read_file(fixture("arrays.npz")), 5000);
}

}  // namespace
}  // namespace lowbit
