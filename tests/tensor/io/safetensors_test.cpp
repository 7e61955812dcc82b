#include "tensor/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "tests/support/golden.h"
#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;

constexpr DType kAllTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i8,
                               DType::u8,  DType::i32, DType::i64,  DType::b8};

std::string file_bytes(const std::string& header, const std::string& data) {
  const uint64_t n = header.size();
  std::string r(8, '\0');
  std::memcpy(r.data(), &n, 8);
  return r + header + data;
}

TensorFile parse(const std::string& bytes) { return load_safetensors(ByteSource::memory(bytes, "test")); }

std::string error_of(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    return e.what();
  }
  return "";
}

TensorMap sample() {
  TensorMap m;
  for (DType t : kAllTypes) {
    m[std::string("t.") + dtype_name(t)] = test::fill("x", {3, 5}, 0, 100).cast(t);
    m[std::string("empty.") + dtype_name(t)] = Tensor::empty({0, 4}, t);
    m[std::string("scalar.") + dtype_name(t)] = Tensor::full(Shape{}, 1, t);
  }
  m["six"] = test::fill("six", {1, 2, 1, 3, 1, 2}, 0, 1);
  m["view"] = test::fill("v", {4, 6}, 0, 1).transpose(0, 1).slice(0, 1, 4);
  return m;
}

TEST(Safetensors, RoundTripsEveryType) {
  const TempDir dir;
  const TensorMap m = sample();
  save_safetensors(dir / "a.safetensors", m, {{"note", "ünïcode \"quoted\"\n"}});
  const TensorFile f = load_safetensors(dir / "a.safetensors");
  ASSERT_EQ(f.tensors.size(), m.size());
  for (const auto& [name, t] : m) EXPECT_TRUE(equal_bits(f.tensors.at(name), t.packed())) << name;
  EXPECT_EQ(f.metadata.at("note"), "ünïcode \"quoted\"\n");
  EXPECT_EQ(f.metadata.at("format"), "pt");
  EXPECT_EQ(dir.entries(), 1u) << "no temporary file may stay";
  save_safetensors(dir / "b.safetensors", m, {{"note", "ünïcode \"quoted\"\n"}});
  const std::string bytes = test::read_file(dir / "a.safetensors");
  EXPECT_EQ(bytes, test::read_file(dir / "b.safetensors"));
  uint64_t header;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  const SafetensorsReader reader(dir / "a.safetensors");
  for (const auto& [name, e] : reader.entries())
    EXPECT_EQ(e.offset % dtype_size(f.tensors.at(name).dtype()), 0u) << name << " is not aligned";
}

TEST(Safetensors, WidensForeignTypes) {
  const std::string header =
      R"({"a":{"dtype":"U16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"U32","shape":[1],"data_offsets":[4,8]},)"
      R"("c":{"dtype":"U64","shape":[1],"data_offsets":[8,16]},"d":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[16,21]},)"
      R"("e":{"dtype":"F8_E5M2","shape":[5],"data_offsets":[21,26]},"f":{"dtype":"I16","shape":[2],"data_offsets":[26,30]},)"
      R"("g":{"dtype":"BOOL","shape":[3],"data_offsets":[30,33]}})";
  const std::string data(
      "\xff\xff\x01\x00\xff\xff\xff\xff\x01\0\0\0\0\0\0\x40"
      "\x38\x01\x7e\xff\x84"
      "\x3c\x01\x7b\x7c\xfd"
      "\xff\xff\x02\x01\x00\x01\x07",
      33);
  const TensorFile f = parse(file_bytes(header, data));
  EXPECT_THAT(f.tensors.at("a").to_vector<int32_t>(), testing::ElementsAre(65535, 1));
  EXPECT_THAT(f.tensors.at("b").to_vector<int64_t>(), testing::ElementsAre(4294967295));
  EXPECT_THAT(f.tensors.at("c").to_vector<int64_t>(), testing::ElementsAre(0x4000000000000001));
  const auto d = f.tensors.at("d").to_vector<float>(), e = f.tensors.at("e").to_vector<float>();
  EXPECT_EQ(d[0], 1.0f);
  EXPECT_EQ(d[1], 0x1p-9f);
  EXPECT_EQ(d[2], 448.0f);
  EXPECT_TRUE(std::isnan(d[3]));
  EXPECT_EQ(d[4], -0x1p-7f);
  EXPECT_EQ(e[0], 1.0f);
  EXPECT_EQ(e[1], 0x1p-16f);
  EXPECT_EQ(e[2], 57344.0f);
  EXPECT_TRUE(std::isinf(e[3]));
  EXPECT_TRUE(std::isnan(e[4]));
  EXPECT_THAT(f.tensors.at("f").to_vector<int32_t>(), testing::ElementsAre(-1, 258));
  const Tensor g = f.tensors.at("g");
  const auto* b = static_cast<const uint8_t*>(g.view().data);
  EXPECT_THAT(std::vector<int>(b, b + 3), testing::ElementsAre(0, 1, 1));
  const std::string big = R"({"c":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}})";
  EXPECT_THAT(error_of(file_bytes(big, std::string(8, '\xff'))), testing::HasSubstr("above 2^63-1"));
}

TEST(Safetensors, RefusesEveryBrokenRule) {
  auto entry = [](const std::string& body, const std::string& data = std::string(8, 'x')) {
    return error_of(file_bytes("{\"a\":{" + body + "}}", data));
  };
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  EXPECT_EQ(entry(good), "");
  EXPECT_THAT(entry(good, "xxxxxxxxx"), testing::HasSubstr("trailing"));
  EXPECT_THAT(entry(good, "xxxxxxx"), testing::HasSubstr("truncated"));
  EXPECT_THAT(entry(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])"),
              testing::HasSubstr("unknown dtype F33"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
              testing::HasSubstr("does not fill"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), testing::HasSubstr("[begin, end]"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), testing::HasSubstr("[begin, end]"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"),
              testing::HasSubstr("non-negative"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"),
              testing::HasSubstr("non-negative"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[1,1,1,1,1,1,2],"data_offsets":[0,8])"),
              testing::HasSubstr("dimensions"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"),
              testing::HasSubstr("integers"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"),
              testing::HasSubstr("too large"));
  EXPECT_THAT(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,16])", std::string(16, 'x')),
              testing::HasSubstr("gap"));
  EXPECT_THAT(entry(good + R"(,"more":1)"), testing::HasSubstr("entry must hold"));
  EXPECT_THAT(entry(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"),
              testing::HasSubstr("twice"));
  EXPECT_THAT(error_of(file_bytes("{\"a\":{" + good + "},\"a\":{" + good + "}}", std::string(8, 'x'))),
              testing::HasSubstr("twice"));
  EXPECT_THAT(error_of(file_bytes("{\"a\":{" + good + "},\"b\":{" + good + "}}", std::string(8, 'x'))),
              testing::HasSubstr("overlap"));
  EXPECT_THAT(error_of(file_bytes("[]", "")), testing::HasSubstr("must be a JSON object"));
  EXPECT_THAT(error_of(file_bytes("{", "")), testing::HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(file_bytes(R"({"__metadata__":{"a":1}})", "")), testing::HasSubstr("must be strings"));
  EXPECT_THAT(error_of(file_bytes(std::string(1 << 20, '['), "")), testing::HasSubstr("deeply"));
  EXPECT_THAT(error_of(std::string(8, '\xff') + "{}"), testing::HasSubstr("not a safetensors file"));
  EXPECT_THAT(error_of("short"), testing::HasSubstr("too short"));
  EXPECT_THAT(error_of(file_bytes("{\"a\\nb\":{\"dtype\":1,\"shape\":[],\"data_offsets\":[]}}", "")),
              testing::HasSubstr("a?b"));
}

TEST(Safetensors, SurvivesDamage) {
  const TempDir dir;
  save_safetensors(dir / "a", {{"w", test::fill("w", {2, 3}, 0, 1)}, {"n", Tensor::full({5}, 7, DType::i8)}},
                   {{"k", "v"}});
  test::expect_robust([](const std::string& bytes) { parse(bytes); }, test::read_file(dir / "a"), 5000);
}

TEST(Safetensors, ReadsShards) {
  const TempDir dir;
  const Tensor a = test::fill("a", {2}, 0, 1), b = test::fill("b", {3}, 0, 1);
  save_safetensors(dir / "m-1.safetensors", {{"a", a}});
  save_safetensors(dir / "m-2.safetensors", {{"b", b}});
  const std::string index = dir / "m.safetensors.index.json";
  test::write_file(
      index, R"({"metadata":{"total_size":20},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})");
  const TensorFile f = load_safetensors(index);
  EXPECT_TRUE(equal_bits(f.tensors.at("a"), a));
  EXPECT_TRUE(equal_bits(f.tensors.at("b"), b));
  for (const char* bad :
       {R"({"weight_map":{"a":"../m-1.safetensors"}})", R"({"weight_map":{"a":"gone.safetensors"}})",
        R"({"weight_map":{"x":"m-1.safetensors"}})", R"({"weight_map":{"a":1}})", R"({})", R"([])", ""}) {
    test::write_file(index, bad);
    EXPECT_THROW(load_safetensors(index), Error) << bad;
  }
}

TEST(Safetensors, MissingFileAndFolderAreIoErrors) {
  const TempDir dir;
  for (const std::string& p : {dir / "none", dir.path()}) {
    try {
      load_safetensors(p);
      ADD_FAILURE() << p;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      EXPECT_THAT(e.what(), testing::HasSubstr(p));
    }
  }
}

TEST(Golden, FillRule) {  // values of an independent Python implementation
  const auto v = test::fill_parameter("blocks.0.attn.qkv.weight", {6, 2}).to_vector<float>();
  const auto n = test::fill_parameter("norm.weight", {2}).to_vector<float>();
  const auto b = test::fill_parameter("norm.bias", {2}).to_vector<float>();
  EXPECT_THAT((std::vector<float>{v[0], v[1], v[11]}),
              testing::ElementsAre(0x1.250a220000000p-1f, -0x1.3df65c0000000p-1f, 0x1.5ccaf20000000p-3f));
  EXPECT_THAT(n, testing::ElementsAre(0x1.e7b9d00000000p-1f, 0x1.1554d60000000p+0f));
  EXPECT_THAT(b, testing::ElementsAre(0x1.1c572a0000000p-4f, 0x1.72dca40000000p-4f));
}

TEST(Golden, EveryFileLoads) {
  const std::string root = test::golden_path("");
  if (root.empty()) GTEST_SKIP() << "golden files not found";
  int files = 0;
  for (const auto& p : std::filesystem::recursive_directory_iterator(root)) {
    if (p.path().extension() != ".safetensors") continue;
    const test::GoldenFile f(p.path().string());
    for (const std::string& name : f.names()) EXPECT_TRUE(f.tensor(name).defined());
    const std::string cases = f.meta("cases");
    if (cases.starts_with("[") || cases.starts_with("{")) {
      EXPECT_FALSE(f.cases().empty()) << p.path();
    }
    ++files;
  }
  EXPECT_GT(files, 0);
}

TEST(Golden, CloseReportsTheWorstElement) {
  const Tensor a = Tensor::from(std::vector<float>{1, 2, 3}, {3}),
               b = Tensor::from(std::vector<float>{1, 2.5f, 3}, {1, 3});
  EXPECT_TRUE(test::expect_close(a, a, 0, 0, "same"));
  EXPECT_TRUE(test::expect_close(a, b, 0.2, 0, "near"));
  EXPECT_TRUE(test::expect_close_to_largest(a, b, 0.17, "near the largest"));
  static bool ok;
  static Tensor x, y;
  x = a, y = b;
  EXPECT_NONFATAL_FAILURE(ok = test::expect_close(x, y, 1e-3, 0, "far"),
                          "1 of 3 elements differ; worst at [0, 1]");
  EXPECT_FALSE(ok);
  EXPECT_NONFATAL_FAILURE(test::expect_close(x, Tensor::full({3}, NAN), 1e-3, 1, "nan"),
                          "3 of 3 elements differ");
  EXPECT_NONFATAL_FAILURE(test::expect_close(x, Tensor::full({4}, 1), 1, 1, "shape"), "shapes differ");
}

}  // namespace
}  // namespace lowbit
