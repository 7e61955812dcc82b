// Pixels that travel as bytes and are finished where the batch is used: the bits of the pipeline that does
// everything in the loader's threads, on the CPU and on a device.

#include "data/image/device_crop.h"

#include <gtest/gtest.h>

#include "data/core/loader.h"
#include "data/image/crop_plans.h"
#include "data/image/image_folder.h"
#include "data/soft_label/replay_dataset.h"
#include "tests/data/image_support.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit::test {
namespace {

std::vector<Device> devices() {
  std::vector<Device> all{Device{}};
  if (cuda_present()) all.push_back(kGpu);
  return all;
}

struct Case {
  int height, width;  ///< of the pixels
  ResizeWindow window;
};

/// One batch of crops of one size from images of all sorts.
void check(int size, const std::vector<Case>& cases) {
  const Normalization n;
  ResizeScratch scratch;
  Blob blob;
  Tensor bytes = Tensor::empty({4 << 20}, DType::u8),
         plans = Tensor::empty({int64_t(cases.size()), int64_t(sizeof(CropPlan))}, DType::u8),
         expected = Tensor::empty({int64_t(cases.size()), 1, 3, size, size});
  blob.reset(bytes.data<uint8_t>(), bytes.numel(), int64_t(cases.size()), 0);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    const ResizeWindow& w = c.window;
    const Image image = random_image(c.height, c.width, i);
    ASSERT_TRUE(leave_pixels(image.view(), w, blob, reinterpret_cast<CropPlan*>(plans.data<uint8_t>())[i]));
    Image out(size, size);
    resize_window(image.view(), w.full_height, w.full_width, w.top, w.left, w.filter, scratch, out);
    if (w.flip_horizontal) flip_horizontal(out);
    if (w.flip_vertical) flip_vertical(out);
    normalize_chw(out, n, expected.data<float>() + int64_t(i) * 3 * size * size);
  }
  for (const Device d : devices()) {
    const Tensor y = finished_crops(plans.to(d), bytes.to(d), 1, size, n);
    EXPECT_EQ(difference(y.to(Device{}), expected), "") << d.str();
  }
}

std::vector<Case> squares(int size, Filter f) {
  return {{size, size, {size, size, 0, 0, f, false, false}},
          {1, 1, {size, size, 0, 0, f, false, false}},
          {3, std::min(200, kMaxShrink * size), {size, size, 0, 0, f, true, false}},
          {size * kMaxShrink, size * kMaxShrink, {size, size, 0, 0, f, false, true}},
          {size * 7 + 3, size + 1, {size, size, 0, 0, f, true, true}},
          {50, 61, {size + 9, size + 22, 4, 17, f, true, false}},
          {size, 2 * size, {size, 2 * size, 0, size - 1, f, false, false}},
          {size + 5, size, {size, size, 0, 0, f, false, false}}};
}

TEST(DeviceCropCuda, EqualsTheStepsOfTheLoader) {
  for (const Filter f : {Filter::bilinear, Filter::bicubic})
    for (const int size : {1, 8, 37, 40}) check(size, squares(size, f));
}

TEST(DeviceCrop, ShrinkingIsLimited) {
  EXPECT_TRUE(device_crop_fits(3584, 3584, 224, 224));
  EXPECT_FALSE(device_crop_fits(3585, 100, 224, 224));
  EXPECT_FALSE(device_crop_fits(100, 3585, 224, 224));
}

TEST(Blob, KeepsTheLeastForEverybody) {
  std::vector<uint8_t> memory(1000);
  Blob blob;
  blob.reset(memory.data(), 3 * Blob::padded(100) + 50, 3, 100);
  int64_t a = -1, b = -1, c = -1;
  EXPECT_EQ(blob.take(200, a), nullptr);  // two others wait
  EXPECT_NE(blob.take(130, a), nullptr);
  EXPECT_EQ(blob.take(130, b), nullptr);
  EXPECT_NE(blob.take(100, b), nullptr);
  EXPECT_NE(blob.take(100, c), nullptr);
  EXPECT_EQ(a, 0);
  EXPECT_GE(b, 130);
  EXPECT_GE(c, b + 100);
  EXPECT_LE(blob.used(), 3 * Blob::padded(100) + 50);
}

/// All batches of an epoch, as they arrive on the CPU.
std::vector<Tensor> batches(const std::shared_ptr<const Dataset>& data, Device d, int workers) {
  LoaderOptions o;
  o.batch = 7, o.workers = workers, o.drop_last = false, o.device = d;
  Loader loader(data, std::make_shared<ShuffleSampler>(std::min<int64_t>(data->size(), 20), 9), o);
  loader.start(1);
  std::vector<Tensor> all;
  while (const auto b = loader.next())
    for (const Tensor& t : b->fields) all.push_back(t.to(Device{}).clone());
  return all;
}

void expect_same_batches(const std::shared_ptr<const Dataset>& here,
                         const std::shared_ptr<const Dataset>& there) {
  const std::vector<Tensor> expected = batches(here, Device{}, 0);
  for (const Device d : devices())
    for (const int workers : {0, 2}) {
      const std::vector<Tensor> y = batches(there, d, workers);
      ASSERT_EQ(y.size(), expected.size());
      for (size_t i = 0; i < y.size(); ++i)
        EXPECT_EQ(difference(y[i], expected[i]), "") << d.str() << " " << i;
    }
}

/// Small squares, so that many decoded parts find no room and are finished by the loader.
TEST(DeviceCropCuda, PhotographsArriveAsFromTheLoader) {
  LOWBIT_DATA_OR_SKIP(root, "flowers");
  const ImageList list = open_image_split(root, "val");
  std::vector<TransformOptions> all(5);
  using Geometry = TransformOptions::Geometry;
  for (TransformOptions& t : all) t.size = 48, t.resize = 56;
  all[0].geometry = Geometry::random_resized_crop, all[0].flip = 0.5, all[0].flip_vertical = 0.5;
  all[0].interpolation = TransformOptions::Interpolation::random;
  all[1].geometry = Geometry::random_resized_crop, all[1].flip = 0.5;
  all[1].rand_augment = RandAugmentPolicy::parse("rand-m9-mstd0.5-inc1");
  all[2].resize = 40;  // black borders
  all[3].geometry = Geometry::random_crop, all[3].pad = 4;
  for (const TransformOptions& t : all)
    expect_same_batches(std::make_shared<ImageDataset>(list, t),
                        std::make_shared<ImageDataset>(list, t, Decoder::auto_, ImageDataset::Form::decoded));
}

/// Four boxes for every image; those of some reach over its border.
class Boxes final : public LabelStore {
 public:
  SoftLabelType type() const override { return SoftLabelType::smoothing; }
  int64_t ids_each() const override { return 1; }
  int64_t crops(const std::string&) const override { return 4; }
  CropLabels read(const std::string& key, const std::vector<int64_t>& which) const override {
    CropLabels l;
    l.type = type(), l.ids_each = l.probabilities_each = 1;
    const bool over = key.back() % 2 != 0;
    for (const int64_t i : which) {
      l.crops.push_back(
          {0.1f * float(i), 0.2f, over && i == 2 ? 0.95f : 0.5f, 0.3f + 0.1f * float(i), i % 2 == 0});
      l.ids.push_back(int32_t(i)), l.probabilities.push_back(0.7f);
    }
    return l;
  }
};

TEST(DeviceCropCuda, CropsOfAnImageShareItsPixels) {
  LOWBIT_DATA_OR_SKIP(root, "flowers");
  const auto labels = std::make_shared<Boxes>();
  ReplayOptions o;
  o.crops = 3, o.size = 96, o.classes = 10;
  const auto here = std::make_shared<ReplayDataset>(open_image_split(root, "val"), labels, o);
  o.decoded = true;
  const auto there = std::make_shared<ReplayDataset>(open_image_split(root, "val"), labels, o);
  expect_same_batches(here, there);
}

}  // namespace
}  // namespace lowbit::test
