// FKD's soft labels: published files of every form, replayed crops, the packed file, and damage.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "data/core/random.h"
#include "data/soft_label/replay_dataset.h"
#include "tensor/core/error.h"
#include "tests/data/image_support.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using namespace test;
namespace fs = std::filesystem;

/// Names "<set>/<class>/<image>" of the golden file that describe a label file.
std::vector<std::string> label_cases(const GoldenFile& g) {
  std::vector<std::string> all;
  for (const std::string& n : g.names())
    if (n.ends_with(".coords")) all.push_back(n.substr(0, n.size() - 7));
  return all;
}

std::string file_of(const std::string& root, const std::string& name) {
  const size_t slash = name.find('/');
  return root + "/" + name.substr(0, slash) + "/imagenet/train" + name.substr(slash) + ".tar";
}

/// Back to the array that the file holds.
std::vector<float> as_stored(const CropLabels& l) {
  if (l.type == SoftLabelType::full) return l.probabilities;
  std::vector<float> v;
  for (int64_t i = 0; i < l.size(); ++i) {
    for (int64_t k = 0; k < l.ids_each; ++k) v.push_back(float(l.ids[size_t(i * l.ids_each + k)]));
    for (int64_t k = 0; k < l.probabilities_each; ++k)
      v.push_back(l.probabilities[size_t(i * l.probabilities_each + k)]);
  }
  return v;
}

TEST(SoftLabels, GoldenFiles) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd_expected.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  const GoldenFile g(path);
  const auto cases = label_cases(g);
  ASSERT_FALSE(cases.empty());
  for (const std::string& name : cases) {
    SCOPED_TRACE(name);
    const CropLabels l = read_label_file(file_of(root, name));
    const std::vector<float> coords = g.tensor(name + ".coords").to_vector<float>(),
                             flips = g.tensor(name + ".flip").cast(DType::f32).to_vector<float>();
    ASSERT_EQ(coords.size(), l.crops.size() * 4);
    for (size_t i = 0; i < l.crops.size(); ++i) {
      const CropLabels::Crop& c = l.crops[i];
      EXPECT_EQ((std::vector<float>{c.top, c.left, c.height, c.width}),
                std::vector<float>(coords.begin() + int64_t(4 * i), coords.begin() + int64_t(4 * i + 4)));
      EXPECT_EQ(c.flip, flips[i] != 0);
    }
    EXPECT_EQ(as_stored(l), g.tensor(name + ".label").cast(DType::f32).to_vector<float>());
  }
}

TEST(SoftLabels, GoldenReplayedCrops) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/fkd_expected.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  const GoldenFile g(path);
  int boxes = 0, crops = 0, tensors = 0;
  ResizeScratch scratch;
  Image cut;
  for (const std::string& name : label_cases(g)) {
    SCOPED_TRACE(name);
    std::vector<uint8_t> bytes;
    const std::string image = root + "/imagenet/train" + name.substr(name.find('/')) + ".png";
    read_file(image, bytes);
    Image source;
    decode_image(bytes, image, source);
    const CropLabels l = read_label_file(file_of(root, name));
    const Tensor expected = g.tensor(name + ".box");
    for (int64_t k = 0; k < l.size(); ++k) {
      CropLabels::Crop c = l.crops[size_t(k)];
      const int32_t* e = expected.data_const<int32_t>() + 4 * k;
      EXPECT_EQ(replayed_box(c, source.height(), source.width()),
                (Box{e[1], e[0], e[3] - e[1], e[2] - e[0]}));
      ++boxes;
      const auto replayed = [&](int size, Filter filter) {
        Image out(size, size);
        replay_crop(source.view(), c, filter, scratch, cut, out);
        return out;
      };
      const std::string number = "." + std::to_string(k);
      for (const int size : {64, 224}) {
        const std::string key = name + ".crop" + std::to_string(size) + number;
        if (!g.has(key)) continue;
        EXPECT_TRUE(equal_bits(as_tensor(replayed(size, Filter::bilinear)), g.tensor(key))) << key;
        ++crops;
      }
      if (const std::string key = name + ".tensor64" + number; g.has(key)) {
        Tensor t = Tensor::empty({3, 64, 64});
        normalize_chw(replayed(64, Filter::bilinear), {}, t.data<float>());
        EXPECT_TRUE(equal_bits(t, g.tensor(key))) << key;
        ++tensors;
      }
      c.flip = false;
      if (const std::string key = name + ".bicubic64_noflip" + number; g.has(key)) {
        EXPECT_TRUE(equal_bits(as_tensor(replayed(64, Filter::bicubic)), g.tensor(key))) << key;
        ++crops;
      }
    }
  }
  EXPECT_GT(boxes, 0);
  int stored = 0;
  for (const std::string& n : g.names())
    stored += n.find(".crop") != std::string::npos || n.find(".bicubic64") != std::string::npos;
  EXPECT_EQ(crops, stored) << "every stored crop is compared";
  EXPECT_GT(tensors, 0);
}

TEST(SoftLabels, GoldenForms) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/kd_loss.safetensors");
  const GoldenFile g(path);
  const Tensor teacher = g.tensor("teacher_prob");
  const int64_t n = teacher.size(0), classes = teacher.size(1);
  int checked = 0;
  for (const std::string& key : g.names()) {
    if (!key.ends_with(".full")) continue;
    const std::string name = key.substr(0, key.size() - 5);
    SCOPED_TRACE(name);
    const auto [type, k] = soft_label_named(name);
    CropLabels l;
    l.type = type;
    l.ids_each = k;
    l.probabilities_each = type == SoftLabelType::full ? classes : type == SoftLabelType::hard ? 0 : k;
    l.crops.resize(size_t(n));
    for (int64_t i = 0; i < n; ++i)
      keep_soft_label({teacher.data_const<float>() + i * classes, size_t(classes)}, l);
    if (g.has(name + ".stored")) {
      EXPECT_EQ(as_stored(l), g.tensor(name + ".stored").cast(DType::f32).to_vector<float>());
    }
    Tensor full = Tensor::empty({n, classes});
    for (int64_t i = 0; i < n; ++i) recover_soft_label(l, i, classes, name, full.data<float>() + i * classes);
    EXPECT_TRUE(expect_close(full, g.tensor(key), g.rtol(), g.atol(), name));
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

bool same(const CropLabels& a, const CropLabels& b) {
  bool equal =
      a.type == b.type && a.size() == b.size() && a.ids == b.ids && a.probabilities == b.probabilities;
  for (size_t i = 0; equal && i < a.crops.size(); ++i) {
    const CropLabels::Crop &x = a.crops[i], &y = b.crops[i];
    equal =
        x.top == y.top && x.left == y.left && x.height == y.height && x.width == y.width && x.flip == y.flip;
  }
  return equal;
}

void check_pack(const std::string& folder) {
  const TempDir dir;
  const std::string out = dir.path() + "/labels.pack";
  const LabelSummary packed = pack_labels(folder, out, [](int64_t, int64_t) {}), tree = verify_labels(folder),
                     checked = verify_labels(out);
  EXPECT_EQ(packed.crops, tree.crops);
  EXPECT_EQ(checked.crops, tree.crops);
  EXPECT_EQ(checked.images, tree.images);
  EXPECT_LT(packed.bytes, tree.bytes);
  const auto store = open_labels(out), files = open_labels(folder);
  EXPECT_EQ(store->type(), files->type());
  for (const auto& [key, path] : label_files(folder)) {
    ASSERT_EQ(store->crops(key), files->crops(key));
    std::vector<int64_t> which(size_t(store->crops(key)));
    std::iota(which.rbegin(), which.rend(), int64_t(0));
    EXPECT_TRUE(same(store->read(key, which), files->read(key, which))) << key;
  }
}

TEST(SoftLabels, APackHoldsTheSameValuesInLess) {
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  int sets = 0;
  for (const auto& e : fs::directory_iterator(root)) {
    if (!e.path().filename().string().starts_with("soft_")) continue;
    SCOPED_TRACE(e.path().string());
    check_pack(e.path().string());
    ++sets;
  }
  EXPECT_GT(sets, 0);
}

TEST(SoftLabels, PublishedSetsPack) {
  LOWBIT_DATA_OR_SKIP(root, "fkd_labels");
  for (const auto& e : fs::directory_iterator(root)) {
    SCOPED_TRACE(e.path().string());
    check_pack(e.path().string());
  }
}

TEST(SoftLabels, TrainingReadsTheSameBytesFromEitherForm) {
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  const TempDir dir;
  pack_labels(root + "/soft_k5", dir.path() + "/labels.pack", [](int64_t, int64_t) {});
  ReplayOptions o;
  o.crops = 3, o.size = 32;
  const ImageList list = open_image_split(root + "/imagenet", "train");
  const ReplayDataset tree(list, open_labels(root + "/soft_k5"), o),
      pack(list, open_labels(dir.path() + "/labels.pack"), o);
  const auto sample = [&](const ReplayDataset& d, int64_t i, int64_t epoch) {
    std::vector<Tensor> fields;
    std::vector<View> views;
    for (const Dataset::Field& f : d.fields()) fields.push_back(Tensor::empty(f.shape, f.dtype));
    for (Tensor& t : fields) views.push_back(t.mutable_view());
    d.read(i, sample_key(1, epoch, i), views);
    return fields;
  };
  int different = 0;
  for (int64_t i = 0; i < tree.size(); ++i) {
    const auto a = sample(tree, i, 0), b = sample(pack, i, 0), later = sample(pack, i, 1);
    for (size_t f = 0; f < a.size(); ++f) EXPECT_TRUE(equal_bits(a[f], b[f])) << i;
    different += !equal_bits(a[0], later[0]);
  }
  EXPECT_GT(different, 0);  // another epoch, other crops
}

/// Bytes that this process has read from files so far.
int64_t bytes_read() {
  std::ifstream f("/proc/self/io");
  std::string name;
  int64_t n = -1;
  f >> name >> n;
  return name == "rchar:" ? n : -1;
}

TEST(SoftLabels, FourOf500CropsReadFourRecords) {
  const TempDir dir;
  const std::string path = dir.path() + "/labels.pack";
  pack::Layout layout;
  layout.type = SoftLabelType::marginal, layout.ids = layout.probabilities = 5;
  CropLabels all;
  all.type = layout.type, all.ids_each = all.probabilities_each = 5;
  for (int i = 0; i < 500; ++i) {
    all.crops.push_back({float(i) / 1000, 0.25f, 0.5f, 0.5f, i % 2 == 0});
    for (int k = 0; k < 5; ++k) all.ids.push_back(100 * k + i), all.probabilities.push_back(0.125f);
  }
  PackWriter writer(path, layout);
  writer.add("n01/a", all);
  writer.finish();
  const auto record = uint64_t(layout.record_bytes());
  std::vector<uint8_t> bytes;
  read_file(path, bytes);
  const std::vector<int64_t> which = {499, 3, 250, 4};
  for (int64_t i = 0; i < 500; ++i)  // every other record is damaged: to read it would be an error
    if (std::find(which.begin(), which.end(), i) == which.end())
      bytes[pack::kMagic.size() + uint64_t(i) * record] ^= 1;
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  const auto store = open_labels(path);
  const int64_t before = bytes_read();
  const CropLabels four = store->read("n01/a", which);
  const int64_t after = bytes_read();
  ASSERT_EQ(four.size(), 4);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(four.ids[5 * i], int32_t(which[i]));
  EXPECT_THROW(store->read("n01/a", {5}), Error);
  if (before < 0) GTEST_SKIP() << "no /proc/self/io here: the bytes read are not counted";
  EXPECT_LE(after - before, int64_t(4 * record) + 1024) << "the counter reads a little itself";
  EXPECT_LT(after - before, int64_t(500 * record) / 4);
}

TEST(SoftLabels, DamageIsRefused) {
  LOWBIT_GOLDEN_OR_SKIP(root, "vvtq/fkd");
  const TempDir dir;
  const std::string good = dir.path() + "/good", bad = dir.path() + "/bad";
  pack_labels(root + "/soft_hard", good, [](int64_t, int64_t) {});
  std::vector<uint8_t> bytes;
  read_file(good, bytes);
  const auto refused = [&](const std::vector<uint8_t>& content) {
    std::ofstream(bad, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()), std::ssize(content));
    try {
      verify_labels(bad);
    } catch (const Error& e) {
      return e.kind() == ErrorKind::io;
    }
    return false;
  };
  for (size_t n = 0; n < bytes.size(); n += 3)
    EXPECT_TRUE(refused({bytes.begin(), bytes.begin() + int64_t(n)})) << "cut at " << n;
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<uint8_t> changed = bytes;
    changed[i] ^= 0x10;
    EXPECT_TRUE(refused(changed)) << "byte " << i;
  }
  const std::string tar = file_of(root, "soft_k5/n00000001/a_1");
  std::vector<uint8_t> tree;
  read_file(tar, tree);
  for (size_t n = 0; n < tree.size(); n += 97) {
    std::ofstream(bad, std::ios::binary).write(reinterpret_cast<const char*>(tree.data()), int64_t(n));
    EXPECT_THROW(read_label_file(bad), Error) << n;
  }
  EXPECT_THROW(read_label_file(root + "/micro_fp.pth"), Error);  // a torch file, but of something else
  EXPECT_THROW(open_labels(dir.path() + "/missing"), Error);
  EXPECT_THROW(open_labels(dir.path()), Error);  // a folder without label files
}

}  // namespace
}  // namespace lowbit
