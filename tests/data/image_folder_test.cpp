#include "data/image/image_folder.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "data/core/loader.h"
#include "tensor/core/error.h"
#include "tests/data/fixtures.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;

void put(const std::string& path, const std::string& bytes) {
  fs::create_directories(fs::path(path).parent_path());
  test::write_file(path, bytes);
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

std::string split_error(const std::string& root, const std::string& split = "train") {
  return error_of([&] { open_image_split(root, split); });
}

TEST(ImageFolder, ClassesAndFilesInByteOrder) {
  test::TempDir dir;
  for (const char* name :
       {"b/2.jpg", "b/10.JPEG", "B/x.png", "a/z.gif", "a/.hidden.jpg", "a/notes.txt", "a/Z.bmp"}) {
    put(dir / ("train/" + std::string(name)), "x");
  }
  put(dir / "train/.cache/x.jpg", "x");
  put(dir / "train/readme.md", "x");
  const ImageList list = open_image_split(dir.path(), "train");
  EXPECT_EQ(list.class_names, (std::vector<std::string>{"B", "a", "b"}));
  EXPECT_EQ(list.paths, (std::vector<std::string>{"train/B/x.png", "train/a/Z.bmp", "train/a/z.gif",
                                                  "train/b/10.JPEG", "train/b/2.jpg"}));
  EXPECT_EQ(list.labels, (std::vector<int64_t>{0, 1, 1, 2, 2}));
  EXPECT_EQ(list.ignored, 1);
}

TEST(ImageFolder, SymbolicLinksAreFollowed) {
  test::TempDir dir, elsewhere;
  put(elsewhere / "c/1.jpg", "x");
  put(elsewhere / "single.jpg", "x");
  put(dir / "train/d/2.jpg", "x");
  fs::create_symlink(elsewhere / "c", dir / "train/c");
  fs::create_symlink(elsewhere / "single.jpg", dir / "train/d/1.jpg");
  EXPECT_EQ(open_image_split(dir.path(), "train").paths,
            (std::vector<std::string>{"train/c/1.jpg", "train/d/1.jpg", "train/d/2.jpg"}));
}

TEST(ImageFolder, SplitThatLacksClassesKeepsTheIdsOfTrain) {
  test::TempDir dir;
  for (const char* name : {"train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/a/1.jpg", "val/c/1.jpg"}) {
    put(dir / name, "x");
  }
  const ImageList val = open_image_split(dir.path(), "val");
  EXPECT_EQ(val.labels, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(val.classes(), 3);
  put(dir / "val/d/1.jpg", "x");
  EXPECT_NE(split_error(dir.path(), "val").find("class d is not in " + (dir / "train")), std::string::npos);
}

TEST(ImageFolder, ClassIndexGivesTheIds) {
  test::TempDir dir;
  put(dir / "class_index.tsv", "id\twnid\tnames\n0\tn01\ttench, Tinca\n1\tn02\tgoldfish\n2\tn03\tshark\n");
  put(dir / "val/n03/1.jpg", "x");
  put(dir / "val/n01/1.jpg", "x");
  const ImageList list = open_image_split(dir.path(), "val");
  EXPECT_EQ(list.labels, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(list.class_names, (std::vector<std::string>{"tench, Tinca", "goldfish", "shark"}));
  put(dir / "val/n99/1.jpg", "x");
  EXPECT_NE(split_error(dir.path(), "val").find("class n99 is not in " + (dir / "class_index.tsv")),
            std::string::npos);
  put(dir / "class_index.tsv", "id\twnid\tnames\n0\tn01\ttench\n2\tn02\tgoldfish\n");
  EXPECT_NE(split_error(dir.path(), "val").find("class_index.tsv:3: expected id 1"), std::string::npos);
  put(dir / "class_index.tsv", "0\tn01\n1\tn01\n");
  EXPECT_NE(split_error(dir.path(), "val").find("class_index.tsv:2: class n01 appears twice"),
            std::string::npos);
}

TEST(ImageFolder, FlatSplitWithLabelFile) {
  test::TempDir dir;
  put(dir / "train/a/1.jpg", "x");
  put(dir / "train/b/1.jpg", "x");
  put(dir / "val/2.jpg", "x");
  put(dir / "val/1.jpg", "x");
  const std::string unsorted = split_error(dir.path(), "val");
  EXPECT_NE(unsorted.find("has no class folders; its images lie side by side"), std::string::npos)
      << unsorted;
  put(dir / "val_labels.tsv", "val/2.jpg\t1\r\n\nval/1.jpg\t0\n");
  const ImageList list = open_image_split(dir.path(), "val");
  EXPECT_EQ(list.paths, (std::vector<std::string>{"val/2.jpg", "val/1.jpg"}));
  EXPECT_EQ(list.labels, (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(list.classes(), 2);
  put(dir / "val_labels.tsv", "val/2.jpg\t2\n");
  EXPECT_NE(split_error(dir.path(), "val").find("val_labels.tsv:1: class id must be below 2 (got 2)"),
            std::string::npos);
  for (const char* bad :
       {"val/2.jpg\tone\n", "val/2.jpg\t-1\n", "val/2.jpg\t1\tmore\n", "val/2.jpg\t1.5\n"}) {
    put(dir / "val_labels.tsv", bad);
    EXPECT_NE(split_error(dir.path(), "val").find("val_labels.tsv:1: expected path<TAB>class id"),
              std::string::npos);
  }
  put(dir / "val_labels.tsv", "\n");
  EXPECT_NE(split_error(dir.path(), "val").find("names no images"), std::string::npos);
}

TEST(ImageFolder, ListWithoutIdsTakesTheFolder) {
  test::TempDir dir;
  put(dir / "train/a/1.jpg", "x");
  put(dir / "train/b/1.jpg", "x");
  put(dir / "calibration.txt", "train/b/1.jpg\ntrain/a/1.jpg\n");
  EXPECT_EQ(read_image_list(dir.path(), dir / "calibration.txt").labels, (std::vector<int64_t>{1, 0}));
  put(dir / "calibration.txt", "train/b/1.jpg\ntrain/q/1.jpg\n");
  EXPECT_NE(error_of([&] {
              read_image_list(dir.path(), dir / "calibration.txt");
            }).find("calibration.txt:2: class q"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              read_image_list(dir.path(), dir / "none.txt");
            }).find("cannot read " + (dir / "none.txt")),
            std::string::npos);
}

TEST(ImageFolder, MessagesSayWhatIsMissing) {
  test::TempDir dir;
  EXPECT_EQ(split_error(dir / "none"), "data: folder " + (dir / "none") + " does not exist");
  put(dir / "test/a/1.jpg", "x");
  EXPECT_EQ(split_error(dir.path()),
            "data: folder " + dir.path() + " has no folder train (folders in it: test)");
  fs::create_directories(dir / "train");
  EXPECT_EQ(split_error(dir.path()), "data: " + (dir / "train") + " has no class folders");
  put(dir / "train/a/1.jpg", "x");
  fs::create_directories(dir / "train/b");
  EXPECT_EQ(split_error(dir.path()),
            "data: class folder " + (dir / "train/b") + " holds no images; remove it or fill it");
  put(dir / "train/b/photo.webp", "x");
  EXPECT_NE(split_error(dir.path()).find("photo.webp: format not supported"), std::string::npos);
}

TransformOptions tiny_transform() {
  TransformOptions o;
  o.geometry = TransformOptions::Geometry::random_resized_crop;
  o.size = 16;
  o.flip = 0.5;
  return o;
}

TEST(ImageFolder, UnreadableImagesAreNamedWhenTheyAreReached) {
  test::TempDir dir;
  put(dir / "train/a/1.jpg", test::tiny_jpeg());
  put(dir / "train/a/2.jpg", "this is text");
  put(dir / "train/a/3.jpg", test::tiny_jpeg().substr(0, 300));
  put(dir / "train/a/4.jpg", "");
  fs::create_symlink(dir / "gone.jpg", dir / "train/a/5.jpg");
  const auto data = std::make_shared<ImageDataset>(open_image_split(dir.path(), "train"), tiny_transform());
  for (int64_t bad : {1, 2, 3, 4}) {
    LoaderOptions o;
    o.batch = 1;
    Loader loader(data, std::make_shared<ListSampler>(std::vector<int64_t>{0, bad}), o);
    loader.start(0);
    ASSERT_TRUE(loader.next());
    const std::string message = error_of([&] { loader.next(); });
    EXPECT_NE(message.find(dir / ("train/a/" + std::to_string(bad + 1) + ".jpg")), std::string::npos)
        << message;
  }
}

TEST(ImageFolder, DatasetGivesNormalisedPixels) {
  test::TempDir dir;
  put(dir / "train/a/1.bmp", test::flat_bmp(30, 20, 100));
  put(dir / "train/b/1.bmp", test::flat_bmp(9, 40, 200));
  const ImageDataset data(open_image_split(dir.path(), "train"), tiny_transform());
  ASSERT_EQ(data.size(), 2);
  Tensor image = Tensor::empty(data.fields()[0].shape), label = Tensor::empty({1}, DType::i64);
  const View views[2] = {image.mutable_view(), label.mutable_view()};
  const Normalization n;
  for (int64_t i : {0, 1}) {
    data.read(i, sample_key(0, 0, i), views);
    EXPECT_EQ(label.item<int64_t>(), i);
    for (int64_t c = 0; c < 3; ++c) {
      const float expected = ((i ? 200.f : 100.f) / 255.f - n.mean[c]) / n.std[c];
      for (float v : image.select(0, c).to_vector<float>()) ASSERT_EQ(v, expected);
    }
  }
}

/// Real photographs through threads: the same bytes for any number of workers.
TEST(ImageFolder, PhotographsDoNotDependOnWorkers) {
  LOWBIT_DATA_OR_SKIP(root, "imagenet");
  TransformOptions transform = tiny_transform();
  transform.size = 64;
  transform.interpolation = TransformOptions::Interpolation::random;
  const auto data = std::make_shared<ImageDataset>(open_image_split(root, "train"), transform);
  std::vector<Tensor> expected;
  for (int workers : {0, 1, 2, 3}) {
    LoaderOptions o;
    o.batch = 16;
    o.workers = workers;
    Loader loader(data, std::make_shared<ShuffleSampler>(64, 9), o);
    loader.start(1);
    size_t i = 0;
    while (const auto b = loader.next()) {
      if (workers == 0) expected.push_back(b->fields[0].clone());
      EXPECT_TRUE(equal_bits(expected.at(i++), b->fields[0]));
    }
    EXPECT_EQ(i, 4u);
  }
}

TEST(ImageFolder, ImageNetSubsetKeepsItsClassIds) {
  LOWBIT_DATA_OR_SKIP(root, "imagenet");
  for (const std::string split : {"train", "val"}) {
    const ImageList folders = open_image_split(root, split);
    const ImageList listed = read_image_list(root, root + "/" + split + "_labels.tsv");
    EXPECT_EQ(folders.classes(), 1000);
    ASSERT_EQ(folders.size(), listed.size());
    std::map<std::string, int64_t> ids;
    for (int64_t i = 0; i < listed.size(); ++i) ids[listed.paths[size_t(i)]] = listed.labels[size_t(i)];
    for (int64_t i = 0; i < folders.size(); ++i) {
      EXPECT_EQ(ids.at(folders.paths[size_t(i)]), folders.labels[size_t(i)]) << folders.paths[size_t(i)];
    }
  }
  const ImageList calibration = read_image_list(root, root + "/calib_100.txt");
  EXPECT_EQ(calibration.size(), 100);
}

TEST(ImageFolder, OtherSampleFoldersOpen) {
  LOWBIT_DATA_OR_SKIP(tiny, "tinyimagenet10");
  LOWBIT_DATA_OR_SKIP(flowers, "flowers");
  EXPECT_EQ(open_image_split(tiny, "train").size(), 4000);
  EXPECT_EQ(open_image_split(tiny, "val").size(), 500);
  EXPECT_EQ(open_image_split(tiny, "val").classes(), 10);
  EXPECT_EQ(open_image_split(flowers, "train").size(), 300);
  EXPECT_EQ(open_image_split(flowers, "val").class_names.at(1), "dandelion");
}

}  // namespace
}  // namespace lowbit
