#include "data/image/transforms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <numeric>

#include "data/image/decode.h"
#include "data/image/erasing.h"
#include "tensor/core/error.h"
#include "tests/data/image_support.h"
#include "tests/support/golden.h"

namespace lowbit {
namespace {

using namespace test;

Tensor as_chw(const Image& image) { return as_tensor(image).permute({2, 0, 1}).packed(); }

Tensor normalized(const Image& image, const Normalization& n) {
  Tensor t = Tensor::empty({3, image.height(), image.width()});
  normalize_chw(image, n, t.data<float>());
  return t;
}

Image evaluate(const Image& source, int size, int shorter_side,
               TransformOptions::Interpolation interpolation) {
  TransformOptions o;
  o.size = size;
  o.resize = shorter_side;
  o.interpolation = interpolation;
  ImageTransform::Scratch scratch;
  Image out;
  NoDraws none;
  ImageTransform(o).pixels(source.view(), none, scratch, out);
  return out;
}

TransformOptions::Interpolation interpolation_of(const nlohmann::json& settings) {
  const bool bilinear = settings.value("interpolation", "bicubic") == "bilinear";
  return bilinear ? TransformOptions::Interpolation::bilinear : TransformOptions::Interpolation::bicubic;
}

void check_random_resized_crop(const test::GoldenFile& golden, const std::string& name,
                               const nlohmann::json& s) {
  const Image source = image_from(golden.tensor(s.value("input", "image/in/x")));
  TransformOptions o;
  o.geometry = TransformOptions::Geometry::random_resized_crop;
  o.size = s.at("size").get<int>();
  o.interpolation = interpolation_of(s);
  for (int i = 0; i < 2; ++i) {  // the area range of the case is that of its first draw
    o.scale[i] = s.at("draws").at(0).at(size_t(1 + i)).get<double>();
  }
  ForcedDraws for_box(s.at("draws")), for_pixels(s.at("draws"));
  const Box box = random_resized_crop(source.height(), source.width(), o.scale, o.ratio, for_box);
  EXPECT_TRUE(for_box.exhausted());
  const auto expected = s.at("box_top_left_height_width").get<std::vector<int>>();
  EXPECT_EQ(box, (Box{expected[0], expected[1], expected[2], expected[3]}));
  ImageTransform::Scratch scratch;
  Image out;
  ImageTransform(o).pixels(source.view(), for_pixels, scratch, out);
  EXPECT_TRUE(equal_bits(as_tensor(out), golden.tensor(name + "/out/y")));
}

void check_erasing(const test::GoldenFile& golden, const std::string& name, const nlohmann::json& s) {
  const std::string mode = s.at("mode");
  ErasingOptions o;
  o.probability = s.at("probability");
  o.mode = mode == "const"  ? ErasingOptions::Mode::constant
           : mode == "rand" ? ErasingOptions::Mode::channel
                            : ErasingOptions::Mode::pixel;
  const Tensor x = golden.tensor(name + "/in/x");
  Tensor y = x.clone();
  ForcedDraws draws(s.at("draws"));
  const int height = int(x.size(1)), width = int(x.size(2));
  const std::vector<Box> boxes =
      random_erasing(o, draws, {7, 0, 0, nullptr}, 3, height, width, y.data<float>());
  EXPECT_TRUE(draws.exhausted());
  const auto box = s.at("changed_box_top_left_height_width").get<std::vector<int>>();
  ASSERT_EQ(boxes.size(), box.empty() ? 0u : 1u);
  if (!box.empty()) {
    EXPECT_EQ(boxes[0], (Box{box[0], box[1], box[2], box[3]}));
  }
  // The noise is another than the reference's: its box is compared by its form only.
  const Tensor expected = golden.tensor(name + "/out/y");
  for (int64_t c = 0; c < 3; ++c)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const auto at = [&](const Tensor& t) { return t.data_const<float>()[(c * height + i) * width + j]; };
        const bool inside =
            !boxes.empty() && i >= box[0] && i < box[0] + box[2] && j >= box[1] && j < box[1] + box[3];
        if (!inside || mode == "const") {
          ASSERT_EQ(at(y), at(expected)) << c << ", " << i << ", " << j;
        } else {
          ASSERT_NE(at(y), at(x)) << c << ", " << i << ", " << j;
          if (mode == "rand") {
            ASSERT_EQ(at(y), y.data_const<float>()[(c * height + box[0]) * width + box[1]]);
          }
        }
      }
}

TEST(Transforms, GoldenTimmTransforms) {
  LOWBIT_GOLDEN_OR_SKIP(path, "ofq/transforms.safetensors");
  const test::GoldenFile golden(path);
  int checked = 0;
  for (const auto& [name, settings] : golden.cases()) {
    SCOPED_TRACE(name);
    ++checked;
    if (name.starts_with("erase")) {
      check_erasing(golden, name, settings);
      continue;
    }
    const Image source =
        image_from(golden.tensor(settings.value("input", "image/in/x").find("_chw") == std::string::npos
                                     ? settings.value("input", "image/in/x")
                                     : std::string("image/in/x")));
    if (name.starts_with("rrc")) {
      check_random_resized_crop(golden, name, settings);
    } else if (name == "hflip") {
      Image flipped = image_from(golden.tensor("image/in/x"));
      flip_horizontal(flipped);
      EXPECT_TRUE(equal_bits(as_tensor(flipped), golden.tensor("hflip/out/y")));
    } else if (name.starts_with("eval")) {
      const int size = settings.at("size").get<int>(), side = settings.at("resize_to").get<int>();
      EXPECT_EQ(resize_for_crop_pct(size, settings.at("crop_pct").get<double>()), side);
      const Image out = evaluate(source, size, side, interpolation_of(settings));
      EXPECT_TRUE(equal_bits(as_chw(out), golden.tensor(name + "/out/y_chw")));
    } else if (name == "normalize") {
      const Tensor chw = golden.tensor(settings.at("input").get<std::string>());
      const Image image = image_from(chw.permute({1, 2, 0}).packed());
      Tensor y = golden.tensor("normalize/out/y");
      test::expect_close(normalized(image, {}), y.reshape({3, chw.size(1), chw.size(2)}), 1e-6, 1e-6, name);
    } else {
      ADD_FAILURE() << "unknown kind of case";
    }
  }
  EXPECT_GT(checked, 0);
}

TEST(Transforms, GoldenVvtqEvaluation) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/eval_transform.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(folder, "vvtq/fkd/imagenet");
  const test::GoldenFile golden(path);
  int cases = 0;
  for (const std::string& name : golden.names_with_prefix("val/")) {
    const std::string suffix = ".resized_size";
    if (!name.ends_with(suffix)) continue;
    SCOPED_TRACE(name);
    const std::string stem = name.substr(0, name.size() - suffix.size());
    std::vector<uint8_t> bytes;
    read_file(folder + "/" + stem + ".png", bytes);
    Image source;
    decode_image(bytes, stem, source);
    const Box full = resized_shorter_side(source.height(), source.width(), 256);
    EXPECT_EQ(full.width, golden.tensor(name).data_const<int32_t>()[0]);
    EXPECT_EQ(full.height, golden.tensor(name).data_const<int32_t>()[1]);
    const Image crop = evaluate(source, 224, 256, TransformOptions::Interpolation::bilinear);
    if (golden.has(stem + ".crop")) {
      EXPECT_TRUE(equal_bits(as_tensor(crop), golden.tensor(stem + ".crop")));
    }
    const Tensor mean = golden.tensor(stem + ".crop_mean");
    for (size_t c = 0; c < 3; ++c) {
      double sum = 0;
      for (size_t i = c; i < crop.bytes(); i += 3) sum += crop.data()[i];
      EXPECT_NEAR(sum / (224 * 224), mean.data_const<float>()[c], 1e-4);
    }
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

TEST(Transforms, GoldenEvolqEvaluation) {
  LOWBIT_GOLDEN_OR_SKIP(path, "evolq/transforms.safetensors");
  const test::GoldenFile golden(path);
  const Normalization imagenet, half{{0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
  int cases = 0;
  for (const std::string& name : golden.names()) {
    const std::string suffix = ".float_corner";
    if (!name.ends_with(suffix)) continue;
    SCOPED_TRACE(name);
    const size_t dot = name.find('.');
    const std::string type = name.substr(0, dot),
                      number = name.substr(dot + 1, name.size() - suffix.size() - dot - 1);
    const bool wide = type == "deit" || type == "levit";
    const Image source = image_from(golden.tensor("img" + number));
    const Image crop = evaluate(source, 224, resize_for_crop_pct(224, wide ? 0.875 : 0.9),
                                TransformOptions::Interpolation::bicubic);
    // The file allows one level on 0.1 % of the pixels; the same algorithm gives all of them.
    EXPECT_TRUE(equal_bits(as_chw(crop), golden.tensor((wide ? "deit." : "vit.") + number)));
    const Tensor y = normalized(crop, type == "vit" ? half : imagenet);
    EXPECT_TRUE(equal_bits(y.slice(1, 0, 4).slice(2, 0, 4).packed(), golden.tensor(name)));
    for (int64_t c = 0; c < 3; ++c) {
      const std::vector<float> v = y.select(0, c).to_vector<float>();
      EXPECT_NEAR(std::accumulate(v.begin(), v.end(), 0.0) / double(v.size()),
                  golden.tensor(type + "." + number + ".mean").data_const<double>()[c], 1e-6);
    }
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

TEST(Transforms, ReferencePixelsOfPretrainedModel) {
  LOWBIT_DATA_OR_SKIP(reference, "weights/deit_tiny_reference.safetensors");
  LOWBIT_DATA_OR_SKIP(folder, "imagenet");
  if (!have_turbo()) GTEST_SKIP() << "this build has no libjpeg-turbo";
  const test::GoldenFile golden(reference);
  for (const std::string split : {"val", "train"}) {
    const Tensor expected = golden.tensor(split + ".pixels");
    std::ifstream list(folder + "/" + split + "_labels.tsv");
    for (int64_t i = 0; i < expected.size(0); ++i) {
      std::string line;
      ASSERT_TRUE(std::getline(list, line));
      const std::string path = line.substr(0, line.find('\t'));
      SCOPED_TRACE(path);
      std::vector<uint8_t> bytes;
      read_file(folder + "/" + path, bytes);
      Image source;
      decode_image(bytes, path, source);
      const Image crop =
          evaluate(source, 224, split == "val" ? 0 : 256, TransformOptions::Interpolation::bicubic);
      EXPECT_TRUE(equal_bits(as_tensor(crop), expected.select(0, i).packed()));
    }
  }
}

/// The definition, one output at a time, without windows, blocks or lanes.
Image plain_resize(const Image& source, int height, int width, Filter filter) {
  const auto pass = [&](const Image& in, int n, bool across) {
    const int from = across ? in.width() : in.height();
    if (n == from) {
      Image same(in.height(), in.width());
      std::copy_n(in.data(), in.bytes(), same.data());
      return same;
    }
    ResizeTaps taps;
    taps.compute(from, n, 0, n, filter);
    Image out(across ? in.height() : n, across ? n : in.width());
    for (int y = 0; y < out.height(); ++y) {
      for (int x = 0; x < out.width(); ++x) {
        const int o = across ? x : y;
        for (int c = 0; c < 3; ++c) {
          int64_t sum = 1 << 21;
          for (int k = 0; k < taps.count[size_t(o)]; ++k) {
            const int i = taps.first[size_t(o)] + k;
            const ImageView v = in.view();
            sum += int64_t(taps.weight[size_t(o * taps.taps + k)]) *
                   (across ? v.row(y)[i * 3 + c] : v.row(i)[x * 3 + c]);
          }
          out.row(y)[x * 3 + c] = uint8_t(std::clamp<int64_t>(sum >> 22, 0, 255));
        }
      }
    }
    return out;
  };
  return pass(pass(source, width, true), height, false);
}

TEST(Resize, EqualsTheDefinitionForAnySizeAndWindow) {
  const int sizes[][4] = {{1, 1, 5, 7},      {7, 5, 1, 1},      {37, 53, 37, 53}, {37, 53, 37, 20},
                          {37, 53, 90, 53},  {64, 64, 65, 63},  {200, 3, 50, 9},  {3, 200, 11, 60},
                          {90, 120, 31, 33}, {13, 17, 224, 224}};
  ResizeScratch scratch;
  for (Filter filter : {Filter::bilinear, Filter::bicubic}) {
    for (const auto& [h, w, height, width] : sizes) {
      SCOPED_TRACE(testing::Message() << w << " x " << h << " -> " << width << " x " << height);
      const Image source = random_image(h, w, uint64_t(h * 1000 + w));
      const Image expected = plain_resize(source, height, width, filter);
      Image out(height, width);
      resize(source.view(), filter, scratch, out);
      EXPECT_TRUE(equal_bits(as_tensor(out), as_tensor(expected)));
      const int top = height / 3, left = width / 4, rows = std::max(1, height / 2),
                columns = std::max(1, width / 2);
      Image window(rows, columns), cut(rows, columns);
      resize_window(source.view(), height, width, top, left, filter, scratch, window);
      crop_zero_padded(expected.view(), top, left, cut);
      EXPECT_TRUE(equal_bits(as_tensor(window), as_tensor(cut)));
    }
  }
}

TEST(Resize, ReadsOnlyInsideTheCrop) {
  Image source = random_image(40, 50, 3), changed = random_image(40, 50, 3);
  const Box box{10, 12, 20, 25};
  for (int y = 0; y < 40; ++y) {
    for (int x = 0; x < 50; ++x) {
      const bool inside = y >= 10 && y < 30 && x >= 12 && x < 37;
      if (!inside) std::fill_n(changed.row(y) + x * 3, 3, uint8_t(255));
    }
  }
  ResizeScratch scratch;
  Image a(33, 35), b(33, 35);
  resize(source.view().crop(box.top, box.left, box.height, box.width), Filter::bicubic, scratch, a);
  resize(changed.view().crop(box.top, box.left, box.height, box.width), Filter::bicubic, scratch, b);
  EXPECT_TRUE(equal_bits(as_tensor(a), as_tensor(b)));
}

TEST(Resize, WindowOutsideTheImageIsRefused) {
  const Image source = random_image(8, 8, 1);
  ResizeScratch scratch;
  Image out(5, 5);
  EXPECT_THROW(resize_window(source.view(), 8, 8, 4, 0, Filter::bilinear, scratch, out), Error);
}

TEST(Crop, ZeroPaddingAndReflection) {
  const Image source = random_image(4, 5, 9);
  Image padded(8, 9), reflected(8, 9), away(2, 2);
  crop_zero_padded(source.view(), -2, -3, padded);
  crop_reflected(source.view(), -2, -3, reflected);
  crop_zero_padded(source.view(), -9, 40, away);
  for (size_t i = 0; i < away.bytes(); ++i) EXPECT_EQ(away.data()[i], 0);
  const auto mirror = [](int i, int n) { return i < 0 ? -i : i >= n ? 2 * n - 2 - i : i; };
  for (int y = 0; y < 8; ++y) {
    for (int x = 0; x < 9; ++x) {
      const int sy = y - 2, sx = x - 3;
      const bool inside = sy >= 0 && sy < 4 && sx >= 0 && sx < 5;
      for (int c = 0; c < 3; ++c) {
        EXPECT_EQ(padded.row(y)[x * 3 + c], inside ? source.view().row(sy)[sx * 3 + c] : 0);
        EXPECT_EQ(reflected.row(y)[x * 3 + c], source.view().row(mirror(sy, 4))[mirror(sx, 5) * 3 + c]);
      }
    }
  }
  Image too_far(9, 9);
  EXPECT_THROW(crop_reflected(source.view(), -4, 0, too_far), Error);
}

TEST(Transforms, CenterCropPadsSmallImages) {
  const Image source = random_image(3, 8, 5);
  const Image out = evaluate(source, 6, 0, TransformOptions::Interpolation::bicubic);
  Image expected(6, 6);
  crop_zero_padded(source.view(), -1, 1, expected);
  EXPECT_TRUE(equal_bits(as_tensor(out), as_tensor(expected)));
  EXPECT_EQ(center_offset(7, 4), 2);  // 1.5, half to even
  EXPECT_EQ(center_offset(9, 4), 2);  // 2.5
  EXPECT_EQ(center_offset(3, 6), -1);
}

TEST(Transforms, RandomResizedCropStaysInsideAndCoversItsRanges) {
  const double scale[2] = {0.08, 1}, ratio[2] = {3.0 / 4, 4.0 / 3};
  double smallest = 1, largest = 0;
  int distinct_corners = 0;
  for (int64_t i = 0; i < 2000; ++i) {
    PhiloxDraws draws(sample_key(7, 3, i));
    const Box b = random_resized_crop(300, 400, scale, ratio, draws);
    ASSERT_TRUE(b.top >= 0 && b.left >= 0 && b.top + b.height <= 300 && b.left + b.width <= 400);
    const double share = double(b.height) * b.width / (300 * 400), aspect = double(b.width) / b.height;
    ASSERT_GT(share, 0.078);
    ASSERT_TRUE(aspect > 0.74 && aspect < 1.35) << aspect;
    smallest = std::min(smallest, share);
    largest = std::max(largest, share);
    distinct_corners += b.top > 0 && b.left > 0;
  }
  EXPECT_LT(smallest, 0.1);
  EXPECT_GT(largest, 0.9);
  EXPECT_GT(distinct_corners, 1500);
  PhiloxDraws draws(sample_key(7, 3, 0));
  const Box narrow = random_resized_crop(1000, 1, scale, ratio, draws);
  EXPECT_EQ(narrow, (Box{(1000 - 1) / 2, 0, 1, 1}));
}

TEST(Transforms, AreAPureFunctionOfTheKey) {
  const Image source = random_image(70, 90, 11);
  for (auto geometry :
       {TransformOptions::Geometry::random_resized_crop, TransformOptions::Geometry::random_crop}) {
    TransformOptions o;
    o.geometry = geometry;
    o.size = 32;
    o.resize = 32;
    o.pad = 4;
    o.flip = 0.5;
    o.interpolation = TransformOptions::Interpolation::random;
    const ImageTransform transform(o);
    const auto result = [&](int64_t epoch, int64_t index) {
      ImageTransform::Scratch scratch;
      Image out;
      PhiloxDraws draws(sample_key(1, epoch, index));
      transform.pixels(source.view(), draws, scratch, out);
      return as_tensor(out);
    };
    EXPECT_TRUE(equal_bits(result(2, 5), result(2, 5)));
    EXPECT_FALSE(equal_bits(result(2, 5), result(3, 5)));
    EXPECT_FALSE(equal_bits(result(2, 5), result(2, 6)));
  }
}

TEST(Transforms, BadOptionsAreRefused) {
  const auto refused = [](auto&& change) {
    TransformOptions o;
    change(o);
    EXPECT_THROW(ImageTransform{o}, Error);
  };
  refused([](TransformOptions& o) { o.size = 0; });
  refused([](TransformOptions& o) { o.resize = -1; });
  refused([](TransformOptions& o) { o.flip = 1.5; });
  refused([](TransformOptions& o) { o.scale[0] = 2; });
  TransformOptions o;
  o.geometry = TransformOptions::Geometry::random_crop;
  o.size = 64;
  o.resize = 0;
  const Image small = random_image(20, 20, 1);
  ImageTransform::Scratch scratch;
  Image out;
  PhiloxDraws draws({});
  EXPECT_THROW(ImageTransform(o).pixels(small.view(), draws, scratch, out), Error);
}

}  // namespace
}  // namespace lowbit
