#include "tensor/io/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/core/error.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

using test::TempDir;

template <class F>
std::string run_error(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::run);
    return e.what();
  }
  return "";
}

TEST(AtomicFile, AppearsOnlyOnCommit) {
  const TempDir dir;
  test::write_file(dir / "f", "old");
  {
    AtomicFile f(dir / "f");
    f.write("new content");
    EXPECT_EQ(test::read_file(dir / "f"), "old");
    EXPECT_THAT(run_error([&] { AtomicFile second(dir / "f"); }),
                testing::HasSubstr("another process is writing"));
    f.commit();
    EXPECT_EQ(test::read_file(dir / "f"), "new content");
    EXPECT_THAT(run_error([&] { f.write("x"); }), testing::HasSubstr("closed"));
  }
  {
    AtomicFile abandoned(dir / "f");
    abandoned.write("half");
  }
  EXPECT_EQ(test::read_file(dir / "f"), "new content");
  EXPECT_EQ(dir.entries(), 1u);
}

TEST(AtomicFile, ReplacesTheTemporaryOfAKilledWriter) {
  const TempDir dir;
  test::write_file(dir / "f.tmp", "a long rest of a killed process");
  write_file_atomic(dir / "f", "ok");
  EXPECT_EQ(test::read_file(dir / "f"), "ok");
  EXPECT_EQ(dir.entries(), 1u);
}

TEST(AtomicFile, WritesThroughSymbolicLinks) {
  const TempDir dir;
  test::write_file(dir / "target", "old");
  ASSERT_EQ(::symlink("target", (dir / "link").c_str()), 0);
  write_file_atomic(dir / "link", "new");
  EXPECT_EQ(test::read_file(dir / "target"), "new");
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "link"));
}

TEST(AtomicFile, UnwritablePlacesAreRunErrors) {
  const TempDir dir;
  EXPECT_THAT(run_error([&] { write_file_atomic(dir / "none/f", "x"); }), testing::HasSubstr("No such file"));
  EXPECT_THAT(run_error([&] { write_file_atomic(dir.path(), "x"); }),
              testing::HasSubstr("not a regular file"));
  EXPECT_THAT(run_error([&] { write_file_atomic("/proc/lowbit-test", "x"); }),
              testing::HasSubstr("/proc/lowbit-test"));
  EXPECT_THAT(run_error([&] { write_file_atomic("", "x"); }), testing::HasSubstr("file name"));
  if (::geteuid() == 0) return;  // root may write into a read-only folder
  ::chmod(dir.path().c_str(), 0500);
  EXPECT_THAT(run_error([&] { write_file_atomic(dir / "f", "x"); }), testing::HasSubstr("Permission denied"));
  ::chmod(dir.path().c_str(), 0700);
}

TEST(AtomicFile, FullDiskLeavesTheOldFile) {
  const TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
  write_file_atomic(dir / "f", "old");
  const std::string message = run_error([&] { write_file_atomic(dir / "f", std::string(1 << 20, 'x')); });
  EXPECT_THAT(message, testing::HasSubstr("No space left on device"));
  EXPECT_EQ(test::read_file(dir / "f"), "old");
  EXPECT_EQ(dir.entries(), 1u);
  ::umount(dir.path().c_str());
}

}  // namespace
}  // namespace lowbit
