#include "tensor/io/zip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;

std::string sample() {
  const TempDir dir;
  AtomicFile out(dir / "a.zip");
  ZipWriter zip(out);
  zip.add("x/one", "first");
  zip.add("x/empty", "");
  zip.add("two", std::string(300, 'z'));
  zip.finish();
  out.commit();
  return test::read_file(dir / "a.zip");
}

void read_all(const std::string& bytes) {
  const ZipReader zip(ByteSource::memory(bytes, "test"));
  for (const auto& [name, entry] : zip.entries()) zip.read(name);
}

TEST(Zip, RoundTripsWithAlignedEntries) {
  const std::string bytes = sample();
  const ZipReader zip(ByteSource::memory(bytes, "test"));
  ASSERT_EQ(zip.entries().size(), 3u);
  EXPECT_EQ(zip.read("x/one"), "first");
  EXPECT_EQ(zip.read("x/empty"), "");
  EXPECT_EQ(zip.read("two"), std::string(300, 'z'));
  EXPECT_THROW(zip.read("three"), Error);
  EXPECT_EQ(bytes.find("first") % 64, 0u);
  EXPECT_EQ(bytes.find("zzz") % 64, 0u);
}

TEST(Zip, ManyEntriesNeedZip64) {
  const TempDir dir;
  AtomicFile out(dir / "a.zip");
  ZipWriter zip(out);
  for (int i = 0; i < 66000; ++i) zip.add(std::to_string(i), "");
  zip.finish();
  out.commit();
  EXPECT_EQ(ZipReader(ByteSource::open(dir / "a.zip")).entries().size(), 66000u);
}

TEST(Zip, DetectsWrongContent) {
  std::string bytes = sample();
  bytes[bytes.find("first")] = 'F';
  try {
    read_all(bytes);
    ADD_FAILURE() << "damage was not noticed";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("checksum"));
  }
}

TEST(Zip, ChecksumHasTheKnownAnswerAndContinues) {
  EXPECT_EQ(crc32_of("123456789", 9), 0xCBF43926u);
  EXPECT_EQ(crc32_of("56789", 5, crc32_of("1234", 4)), 0xCBF43926u);
}

TEST(Zip, SurvivesDamage) { test::expect_robust(read_all, sample(), 10000); }

}  // namespace
}  // namespace lowbit
