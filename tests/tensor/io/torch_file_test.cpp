#include "tensor/io/torch_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "tests/support/golden.h"
#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using Kind = PyValue::Kind;
using test::TempDir;
using testing::ElementsAre;

std::string fixture(const std::string& name) {
  return std::string(LOWBIT_SOURCE_DIR) + "/tests/tensor/io/fixtures/" + name;
}

Tensor counting(const Shape& s, DType t = DType::f32) {
  std::vector<int64_t> v(size_t(s.numel()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = int64_t(i);
  return Tensor::from(v, s).cast(t);
}

/// The fixtures were written by torch 1.13: zip form, zip form with pickle protocol 4, legacy stream.
class TorchFixture : public testing::TestWithParam<const char*> {};

TEST_P(TorchFixture, HoldsWhatWasSaved) {
  const TorchFile f(fixture(GetParam()));
  const TensorMap m = f.load_all(f.root());
  std::map<std::string, Tensor> expected = {
      {"f32", counting({2, 3})},
      {"f64", counting({3}, DType::f64)},
      {"f16", counting({3}, DType::f16)},
      {"bf16", counting({3}, DType::bf16)},
      {"i64", counting({3}, DType::i64)},
      {"i32", counting({3}, DType::i32)},
      {"i16", counting({3}, DType::i32)},
      {"i8", counting({3}, DType::i8)},
      {"u8", counting({3}, DType::u8)},
      {"bool", counting({3}, DType::b8)},
      {"scalar", Tensor::full(Shape{}, 7.5)},
      {"empty", Tensor::empty({0, 4})},
      {"base", counting({4, 6})},
      {"slice", counting({4, 6}).slice(0, 1, 3).slice(1, 2, 5).packed()},
      {"transposed", counting({4, 6}).transpose(0, 1).packed()},
      {"expanded", counting({3}).expand({2, 3}).packed()},
      {"param", counting({2, 2})},
      {"nested.list.0", counting({2})},
      {"nested.list.1.deep", counting({1})},
      {"nested.od.w", counting({2, 2})},
      {"np", counting({2, 3})},
      {"npf", counting({2, 3}, DType::i64)},
      {"np_bool", Tensor::from(std::vector<float>{1, 0}, {2}).cast(DType::b8)}};
  EXPECT_EQ(m.size(), expected.size());
  for (const auto& [name, t] : expected) {
    ASSERT_TRUE(m.count(name)) << name;
    EXPECT_TRUE(equal_bits(m.at(name), t)) << name << " " << m.at(name).str();
  }
}

TEST_P(TorchFixture, KeepsPlainValuesAndOpaqueRecords) {
  const TorchFile f(fixture(GetParam()));
  const PyValue& r = f.root();
  EXPECT_EQ(r.find("epoch")->integer, 12);
  EXPECT_EQ(r.find("neg")->integer, -5);
  EXPECT_EQ(r.find("real")->real, 0.25);
  EXPECT_EQ(r.find("np_scalar")->real, 2.5);
  EXPECT_EQ(r.find("text")->text, "häll\n");
  EXPECT_TRUE(r.find("none")->is(Kind::none));
  EXPECT_TRUE(r.find("flag")->is(Kind::boolean));
  EXPECT_TRUE(r.find("big")->is(Kind::bigint));
  EXPECT_EQ(r.find("set")->items.size(), 2u);
  EXPECT_EQ(r.find("size")->items.size(), 2u);
  EXPECT_EQ(describe(*r.find("args")), "object argparse Namespace");
  EXPECT_EQ(describe(*r.find("device")), "object torch device");
  EXPECT_EQ(describe(*r.find("dtype")), "torch float16");
  EXPECT_EQ(r.find("missing"), nullptr);
}

TEST_P(TorchFixture, SurvivesDamage) {
  const std::string valid = test::read_file(fixture(GetParam()));
  auto read = [](const std::string& bytes) {
    const TorchFile f(ByteSource::memory(bytes, "test"));
    f.load_all(f.root());
  };
  test::expect_robust(read, valid, 3000);
}

INSTANTIATE_TEST_SUITE_P(Formats, TorchFixture, testing::Values("zip.pth", "protocol4.pth", "legacy.pth"),
                         [](const auto& info) { return std::filesystem::path(info.param).stem().string(); });

void unpickle_and_walk(const std::string& bytes) {
  PyTree tree;
  describe(*unpickle(bytes, tree, "test").root);
}

TEST(Pickle, SurvivesDamage) {
  const std::string zip = fixture("zip.pth");
  test::expect_robust(unpickle_and_walk, ZipReader(ByteSource::open(zip)).read("zip/data.pkl"), 20000);
}

TEST(Pickle, RefusesWhatCouldRunOrExplode) {
  auto error = [](const std::string& bytes) -> std::string {
    try {
      unpickle_and_walk(bytes);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      return e.what();
    }
    return "";
  };
  PyTree tree;  // os.system("touch …") becomes a record, nothing more
  const std::string system =
      "\x80\x02"
      "cposix\nsystem\nU\x0btouch pwned\x85R.";
  EXPECT_EQ(describe(*unpickle(system, tree, "test").root), "object posix system");
  EXPECT_FALSE(std::filesystem::exists("pwned"));
  EXPECT_THAT(error("\x80\x02iposix\nsystem\n."), testing::HasSubstr("not allowed"));
  EXPECT_THAT(error("\x80\x02"
                    "P0\n."),
              testing::HasSubstr("not allowed"));
  EXPECT_THAT(error(std::string("\x80\x02") + "\x82\x01."), testing::HasSubstr("not allowed"));
  EXPECT_THAT(error("\x80\x09N."), testing::HasSubstr("protocol"));
  EXPECT_THAT(error("\x80\x02."), testing::HasSubstr("stack is empty"));
  EXPECT_THAT(error("\x80\x02NN."), testing::HasSubstr("left over"));
  EXPECT_THAT(error("\x80\x02h\x07."), testing::HasSubstr("unknown memo"));
  EXPECT_THAT(error("\x80\x02}(NNNu."), testing::HasSubstr("odd number"));
  EXPECT_THAT(error("\x80\x02N(NNe."), testing::HasSubstr("not a container"));
  EXPECT_THAT(error("\x80\x02X\xff\xff\xff\xff."), testing::HasSubstr("truncated"));
  EXPECT_THAT(error("\x80\x02" + std::string(9'000'000, 'N') + "."), testing::HasSubstr("too many values"));
  // One long text, encoded again and again: memory must stay within a few times the file.
  std::string bomb =
      "\x80\x02"
      "c_codecs\nencode\nq";
  bomb += '\0';
  const uint32_t n = 1 << 20;
  bomb += "X" + std::string(reinterpret_cast<const char*>(&n), 4) + std::string(n, 'a') +
          "q\x01"
          "0]q\x02(";
  for (int i = 0; i < 20000; ++i)
    bomb += std::string("h\0h\x01", 4) + "X" + std::string("\x06\0\0\0latin1", 10) + "\x86R";
  EXPECT_THAT(error(bomb + "e."), testing::HasSubstr("expands too much"));
}

std::string torch_zip(const TempDir& dir, const std::string& pickle, const std::string& storage) {
  AtomicFile out(dir / "t.pth");
  ZipWriter zip(out);
  zip.add("t/data.pkl", pickle);
  zip.add("t/data/0", storage);
  zip.finish();
  out.commit();
  return dir / "t.pth";
}

std::string tensor_pickle(const std::string& offset, const std::string& shape, const std::string& stride) {
  return "\x80\x02"
         "ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x01"
         "0U\x03"
         "cpuK\x04tQ" +
         offset + "(" + shape + "t(" + stride + "t\x89}tR.";
}

TEST(TorchFile, TensorsStayInsideTheirStorage) {
  const TempDir dir;
  const std::string data(16, '\0');
  auto load = [&](const std::string& offset, const std::string& shape, const std::string& stride,
                  const std::string& storage) {
    const TorchFile f(torch_zip(dir, tensor_pickle(offset, shape, stride), storage));
    return f.load_all(f.root()).begin()->second.numel();
  };
  EXPECT_EQ(load("K\x01", "K\x03", "K\x01", data), 3);
  EXPECT_EQ(load("K\x03", "M\xff\xff", std::string("K\0", 2), data), 65535);  // expanded
  EXPECT_THROW(load("K\x02", "K\x03", "K\x01", data), Error);
  EXPECT_THROW(load("J\xff\xff\xff\xff", "K\x03", "K\x01", data), Error);
  EXPECT_THROW(load("K\x03", "K\x02", "J\xff\xff\xff\xff", data), Error);
  EXPECT_THROW(load("K\x01", "J\xff\xff\xff\xff", "K\x01", data), Error);
  EXPECT_THROW(load("K\x01", "K\x03", "K\x01", data.substr(1)), Error);
  const std::string huge = "J\xff\xff\xff\x7f";
  EXPECT_THROW(load("K\x01", huge, std::string("K\0", 2), data), Error);  // 8 GB from 4 bytes
  EXPECT_THROW(load("K\x01", huge + huge + huge, std::string("K\0K\0K\0", 6), data), Error);
}

TEST(TorchFile, SharedBranchesDoNotExplode) {
  const TempDir dir;
  std::string p = "\x80\x02]q";
  p += '\0';
  for (int i = 0; i < 60; ++i) p += std::string("](h") + char(i) + "h" + char(i) + "eq" + char(i + 1);
  p += "0";
  std::string pops;
  for (int i = 0; i < 60; ++i) pops += "0";
  const TorchFile f(torch_zip(dir, p + pops.substr(0, 60) + "h\x3c.", ""));
  try {  // 2^60 paths: only a bound on the walk ends this
    f.tensors(f.root());
    ADD_FAILURE() << "the walk was not bounded";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), testing::HasSubstr("too many values"));
  }
}

TEST(TorchFile, SavedFilesReadBack) {
  const TempDir dir;
  TensorMap m;
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i8, DType::u8, DType::i32,
                  DType::i64, DType::b8})
    m[dtype_name(t)] = counting({2, 3}, t);
  m["scalar"] = Tensor::full(Shape{}, 3);
  m["empty"] = Tensor::empty({3, 0, 2});
  m["view"] = counting({3, 4}).transpose(0, 1);
  save_torch(dir / "a.pth", m);
  const TorchFile f(dir / "a.pth");
  const TensorMap r = f.load_all(f.root());
  ASSERT_EQ(r.size(), m.size());
  for (const auto& [name, t] : m) EXPECT_TRUE(equal_bits(r.at(name), t.packed())) << name;
  save_torch(dir / "b.pth", m);
  EXPECT_EQ(test::read_file(dir / "a.pth"), test::read_file(dir / "b.pth"));
}

TEST(TorchFile, GoldenSoftLabels) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd_expected.safetensors");
  const test::GoldenFile golden(path);
  int files = 0;
  for (const std::string& name : golden.names()) {
    if (!name.ends_with(".coords")) continue;
    const std::string key = name.substr(0, name.size() - 7);  // <set>/<class>/<image>
    const size_t slash = key.find('/');
    LOWBIT_GOLDEN_OR_SKIP(
        file, "vvtq/fkd/" + key.substr(0, slash) + "/imagenet/train" + key.substr(slash) + ".tar");
    const TorchFile f(file);
    ASSERT_EQ(f.root().items.size(), 3u);
    const char* parts[] = {".coords", ".flip", ".label"};
    for (size_t i = 0; i < 3; ++i) {
      const PyValue& v = *f.root().items[i];
      const Tensor expected = golden.tensor(key + parts[i]);
      if (v.is(Kind::list)) {  // flips as Python bools
        ASSERT_EQ(int64_t(v.items.size()), expected.numel());
        for (size_t k = 0; k < v.items.size(); ++k)
          EXPECT_EQ(v.items[k]->integer, expected.to_vector<uint8_t>()[k]);
      } else {
        EXPECT_TRUE(equal_bits(f.tensor(v).cast(expected.dtype()), expected)) << key << parts[i];
      }
    }
    ++files;
  }
  EXPECT_GT(files, 10);
}

TEST(TorchFile, GoldenLabelFilesOfEveryFormatSurviveDamage) {
  const std::string root = test::golden_path("vvtq/fkd");
  if (root.empty()) GTEST_SKIP() << "golden files not found";
  for (const auto& p : std::filesystem::recursive_directory_iterator(root)) {
    if (p.path().filename() != "a_1.tar") continue;
    auto read = [](const std::string& bytes) {
      const TorchFile f(ByteSource::memory(bytes, "test"));
      f.load_all(f.root());
    };
    test::expect_robust(read, test::read_file(p.path().string()), 500);
  }
}

TEST(TorchFile, GoldenCheckpoints) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd/micro_checkpoint.pth.tar");
  const TorchFile f(path);
  EXPECT_EQ(f.root().find("epoch")->integer, 12);
  const auto all = f.tensors(*f.root().find("state_dict"));
  EXPECT_GT(all.size(), 10u);
  for (const auto& [name, v] : all) EXPECT_TRUE(f.tensor(*v).defined()) << name;
  EXPECT_GT(f.tensors(*f.root().find("optimizer")).size(), 10u);
  EXPECT_TRUE(f.root().find("best_acc1")->is(Kind::tensor));
}

}  // namespace
}  // namespace lowbit
