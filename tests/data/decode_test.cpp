#include "data/image/decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tensor/core/error.h"
#include "tests/data/fixtures.h"
#include "tests/support/golden.h"
#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

std::string error_of(const std::vector<uint8_t>& bytes, const std::string& name, Decoder d) {
  Image image;
  try {
    decode_image(bytes, name, image, d);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    return e.what();
  }
  return "";
}

struct Moments {
  double mean[3], std[3];
};
Moments moments(const Image& image) {
  Moments m{};
  const size_t n = image.bytes() / 3;
  for (size_t c = 0; c < 3; ++c) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; ++i) {
      const double v = image.data()[i * 3 + c];
      sum += v;
      squares += v * v;
    }
    m.mean[c] = sum / double(n);
    m.std[c] = std::sqrt(std::max(0.0, squares / double(n) - m.mean[c] * m.mean[c]));
  }
  return m;
}

std::vector<Decoder> jpeg_decoders() {
  if (have_turbo()) return {Decoder::turbo, Decoder::stb};
  return {Decoder::stb};
}

using Row = std::map<std::string, std::string>;

std::vector<Row> read_table(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> header;
  std::vector<Row> rows;
  for (std::string line; std::getline(in, line);) {
    std::istringstream cells(line);
    std::vector<std::string> row;
    for (std::string cell; std::getline(cells, cell, '\t');) row.push_back(cell);
    if (header.empty()) {
      header = row;
      continue;
    }
    Row named;
    for (size_t i = 0; i < header.size(); ++i) named[header[i]] = row.at(i);
    rows.push_back(named);
  }
  return rows;
}

/// The table's means are rounded to three decimals. stb_image's mean may differ from libjpeg's by the table's
/// mean absolute difference, which is over all channels: one channel may hold three times as much.
void expect_moments(const Row& row, const Image& image, double tolerance) {
  EXPECT_EQ(std::to_string(image.width()), row.at("width"));
  EXPECT_EQ(std::to_string(image.height()), row.at("height"));
  const Moments m = moments(image);
  const char* channels[3] = {"_r", "_g", "_b"};
  for (int c = 0; c < 3; ++c) {
    EXPECT_NEAR(m.mean[c], std::stod(row.at(std::string("mean") + channels[c])), tolerance) << channels[c];
  }
}

bool either_outcome(const std::string& file) {
  return file == "gen_corrupt_entropy.jpg" || file == "jpeg_ff00_header.jpg";
}

TEST(Decode, OddFilesGiveTheStatedPixelsOrACleanError) {
  LOWBIT_DATA_OR_SKIP(folder, "jpeg_odd");
  const std::vector<Row> rows = read_table(folder + "/expected.tsv");
  ASSERT_FALSE(rows.empty());
  std::vector<uint8_t> bytes;
  for (const Row& row : rows) {
    const std::string& file = row.at("file");
    SCOPED_TRACE(file);
    read_file(folder + "/" + file, bytes);
    for (Decoder d : jpeg_decoders()) {
      SCOPED_TRACE(decoder_name(d));
      Image image;
      std::string error;
      try {
        decode_image(bytes, file, image, d);
      } catch (const Error& e) {
        error = e.what();
        EXPECT_EQ(e.kind(), ErrorKind::io);
        EXPECT_NE(error.find("cannot decode " + file + ": "), std::string::npos) << error;
        EXPECT_EQ(error.find('\n'), std::string::npos);
      }
      const bool stb = d == Decoder::stb, expect_ok = row.at(stb ? "stb" : "libjpeg") == "ok";
      if (either_outcome(file) && !error.empty()) continue;
      if (either_outcome(file) && !expect_ok) continue;
      EXPECT_EQ(error.empty(), expect_ok) << error;
      if (!error.empty() || !expect_ok) continue;
      const double stb_difference = stb ? 3 * std::stod(row.at("stb_mean_abs_diff")) + 1e-3 : 0;
      expect_moments(row, image, 6e-4 + stb_difference);
    }
  }
}

/// Not only the means: how far the two decoders are apart is in the table, and libjpeg-turbo stands for
/// Pillow there.
TEST(Decode, DecodersDifferOnOddFilesAsStated) {
  LOWBIT_DATA_OR_SKIP(folder, "jpeg_odd");
  if (!have_turbo()) GTEST_SKIP() << "this build has no libjpeg-turbo";
  std::vector<uint8_t> bytes;
  int compared = 0;
  for (const Row& row : read_table(folder + "/expected.tsv")) {
    if (row.at("libjpeg") != "ok" || row.at("stb") != "ok") continue;
    SCOPED_TRACE(row.at("file"));
    read_file(folder + "/" + row.at("file"), bytes);
    Image turbo, stb;
    decode_image(bytes, "a", turbo, Decoder::turbo);
    decode_image(bytes, "b", stb, Decoder::stb);
    ASSERT_EQ(turbo.bytes(), stb.bytes());
    int64_t sum = 0, largest = 0;
    for (size_t i = 0; i < turbo.bytes(); ++i) {
      const int64_t difference = std::abs(int(turbo.data()[i]) - int(stb.data()[i]));
      sum += difference;
      largest = std::max(largest, difference);
    }
    EXPECT_NEAR(double(sum) / double(turbo.bytes()), std::stod(row.at("stb_mean_abs_diff")), 6e-4);
    EXPECT_EQ(std::to_string(largest), row.at("stb_max_abs_diff"));
    ++compared;
  }
  EXPECT_GT(compared, 40);
}

TEST(Decode, GoldenJpegPixelsEqualPillow) {
  LOWBIT_GOLDEN_OR_SKIP(path, "vvtq/eval_transform.safetensors");
  LOWBIT_GOLDEN_OR_SKIP(folder, "vvtq/fkd/jpeg");
  if (!have_turbo()) GTEST_SKIP() << "this build has no libjpeg-turbo";
  const test::GoldenFile golden(path);
  int cases = 0;
  for (const std::string& name : golden.names_with_prefix("jpeg/")) {
    const std::string stem = name.substr(5, name.rfind('.') - 5);
    SCOPED_TRACE(stem);
    std::vector<uint8_t> bytes;
    read_file(folder + "/" + stem + ".JPEG", bytes);
    Image image;
    decode_image(bytes, stem, image, Decoder::turbo);
    const Tensor expected = golden.tensor(name);
    ASSERT_EQ(expected.shape(), (Shape{image.height(), image.width(), 3}));
    EXPECT_TRUE(std::equal(image.data(), image.data() + image.bytes(), expected.data_const<uint8_t>()));
    ++cases;
  }
  EXPECT_GT(cases, 0);
}

/// Every image of a folder that decodes, in parts of all sizes and places, edges and single pixels included.
void expect_parts_equal_the_whole(const std::string& folder, Decoder d, int& images) {
  std::mt19937 random(7);
  std::vector<uint8_t> bytes;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    SCOPED_TRACE(entry.path().filename().string());
    read_file(entry.path().string(), bytes);
    if (sniff_format(bytes).empty() || !error_of(bytes, "", d).empty()) continue;
    Image whole, scratch;
    decode_image(bytes, "whole", whole, d);
    const auto below = [&](int n) { return int(random() % uint32_t(n)); };
    for (int i = 0; i < 24; ++i) {
      Box b{0, 0, 1 + below(whole.height()), 1 + below(whole.width())};
      b.top = below(whole.height() - b.height + 1);
      b.left = below(whole.width() - b.width + 1);
      const ImageView part = decode_part(
          bytes, "part", [&](int, int) { return b; }, scratch, d);
      ASSERT_EQ(part.height, b.height);
      ASSERT_EQ(part.width, b.width);
      for (int y = 0; y < b.height; ++y) {
        const uint8_t* expected = whole.view().crop(b.top, b.left, b.height, b.width).row(y);
        ASSERT_TRUE(std::equal(part.row(y), part.row(y) + b.width * 3, expected))
            << b.width << " x " << b.height << " at " << b.left << ", " << b.top << ", row " << y;
      }
    }
    ++images;
  }
}

TEST(Decode, PartsEqualTheWhole) {
  LOWBIT_DATA_OR_SKIP(folder, "flowers/val/daisy");
  int images = 0;
  for (Decoder d : jpeg_decoders()) {
    SCOPED_TRACE(decoder_name(d));
    expect_parts_equal_the_whole(folder, d, images);
  }
  EXPECT_GT(images, 5);
}

TEST(Decode, PartsOfOddFilesEqualTheWhole) {
  LOWBIT_DATA_OR_SKIP(folder, "jpeg_odd");
  int images = 0;
  for (Decoder d : jpeg_decoders()) {
    SCOPED_TRACE(decoder_name(d));
    expect_parts_equal_the_whole(folder, d, images);
  }
  EXPECT_GT(images, 50);
}

TEST(Decode, TruncatedFilesAreRefusedWhicheverPartIsWanted) {
  std::string cut = test::tiny_jpeg();
  cut.resize(cut.size() - 2);
  if (!have_turbo()) GTEST_SKIP() << "this build has no libjpeg-turbo";
  Image scratch;
  const auto corner = [](int, int) { return Box{0, 0, 1, 1}; };
  EXPECT_THROW(decode_part(bytes_of(cut), "cut", corner, scratch, Decoder::turbo), Error);
}

TEST(Decode, TinyJpegHasItsColours) {
  for (Decoder d : jpeg_decoders()) {
    SCOPED_TRACE(decoder_name(d));
    Image image;
    decode_image(bytes_of(test::tiny_jpeg()), "tiny", image, d);
    ASSERT_EQ(image.width(), 20);
    ASSERT_EQ(image.height(), 12);
    EXPECT_GT(image.row(6)[19 * 3], 180);  // red at the right
    EXPECT_LT(image.row(6)[0], 60);
    EXPECT_GT(image.row(6)[2], 150);  // blue at the left
    EXPECT_LT(image.row(6)[19 * 3 + 2], 90);
  }
}

TEST(Decode, ScratchImageOfAnotherSizeIsReused) {
  Image image(300, 300);
  decode_image(bytes_of(test::flat_bmp(3, 2, 9)), "p", image);
  EXPECT_EQ(image.width(), 3);
  EXPECT_EQ(image.height(), 2);
  EXPECT_EQ(image.data()[17], 9);
}

TEST(Decode, MessagesNameFileAndReason) {
  const auto text = bytes_of("This is not a photograph at all");
  EXPECT_EQ(error_of(text, "a/b.JPEG", Decoder::auto_),
            "image: cannot decode a/b.JPEG: not an image (jpeg, png, gif and bmp are read)");
  EXPECT_EQ(error_of({}, "a/b.JPEG", Decoder::auto_), "image: cannot decode a/b.JPEG: empty file");
  std::string cut = test::tiny_jpeg();
  cut.resize(cut.size() - 30);
  for (Decoder d : jpeg_decoders()) {
    EXPECT_TRUE(error_of(bytes_of(cut), "x.JPEG", d).starts_with("jpeg: cannot decode x.JPEG: "))
        << decoder_name(d);
  }
  Image image;
  if (!have_turbo()) {
    EXPECT_THROW(decode_image(bytes_of(test::tiny_jpeg()), "x", image, Decoder::turbo), Error);
  }
}

TEST(Decode, DamagedFilesNeverCrash) {
  for (Decoder d : jpeg_decoders()) {
    SCOPED_TRACE(decoder_name(d));
    const auto read = [&](const std::string& bytes) {
      Image image;
      decode_image(bytes_of(bytes), "damaged", image, d);
    };
    test::expect_robust(read, test::tiny_jpeg(), 3000);
  }
  const auto read = [&](const std::string& bytes) {
    Image image;
    decode_image(bytes_of(bytes), "damaged", image, Decoder::stb);
  };
  test::expect_robust(read, test::flat_bmp(5, 4, 77), 500);
}

TEST(Decode, DamagedFilesOfOtherFormatsNeverCrash) {
  LOWBIT_DATA_OR_SKIP(folder, "jpeg_odd");
  for (const char* file : {"gen_gif.JPEG", "gen_bmp.JPEG", "gen_png_rgba.JPEG", "gen_progressive_gray.jpg"}) {
    const std::string valid = test::read_file(folder + "/" + file);
    for (Decoder d : jpeg_decoders()) {
      for (size_t n = 0; n < valid.size(); n += 97) error_of(bytes_of(valid.substr(0, n)), file, d);
      std::mt19937 random(1);
      for (int i = 0; i < 200; ++i) {
        std::string bytes = valid;
        for (int k = 0; k < 4; ++k) bytes[random() % bytes.size()] = char(random());
        error_of(bytes_of(bytes), file, d);
      }
    }
  }
}

TEST(Decode, UnreadableFilesAreNamed) {
  test::TempDir dir;
  std::vector<uint8_t> bytes;
  for (const std::string& path : {dir / "missing.jpg", dir.path()}) {
    try {
      read_file(path, bytes);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::io);
      EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace lowbit
