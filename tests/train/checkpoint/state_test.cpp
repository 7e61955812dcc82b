#include "train/checkpoint/state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "tests/support/golden.h"
#include "tests/support/hostile.h"
#include "tests/support/temp_dir.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using test::TempDir;
using testing::HasSubstr;

Checkpoint weights(int step) { return {{{"w", test::fill("w" + std::to_string(step), {3, 4}, 0, 1)}}, {}}; }
Checkpoint state(int step) {
  return {{{"m.w", test::fill("m" + std::to_string(step), {3, 4}, 0, 1)}}, {{"step", std::to_string(step)}}};
}

void expect_step(const RunCheckpoints& run, int step, const std::string& note) {
  const auto r = run.load_last();
  ASSERT_TRUE(r);
  EXPECT_EQ(r->state.meta.at("step"), std::to_string(step));
  EXPECT_TRUE(equal_bits(r->weights.tensors.at("w"), weights(step).tensors.at("w")));
  EXPECT_TRUE(equal_bits(r->state.tensors.at("m.w"), state(step).tensors.at("m.w")));
  EXPECT_THAT(r->note, HasSubstr(note));
  EXPECT_EQ(r->note.empty(), note.empty()) << r->note;
}

void damage(const std::string& path) {
  std::string bytes = test::read_file(path);
  bytes[bytes.size() - 3] =
      char(bytes[bytes.size() - 3] ^ 1);  // the structure stays valid: only the checksum can tell
  test::write_file(path, bytes);
}

TEST(Checkpoint, RoundTripsAndDetectsEveryFlippedBit) {
  const TempDir dir;
  save_checkpoint(dir / "c", state(1));
  EXPECT_TRUE(equal_bits(load_checkpoint(dir / "c").tensors.at("m.w"), state(1).tensors.at("m.w")));
  const std::string valid = test::read_file(dir / "c");
  uint64_t header;
  std::memcpy(&header, valid.data(), 8);
  for (size_t bit = 0; bit < 8 * (valid.size() - 8 - header); bit += 5) {
    std::string bytes = valid;
    char& b = bytes[8 + header + bit / 8];
    b = char(b ^ (1 << (bit % 8)));
    test::write_file(dir / "c", bytes);
    EXPECT_THROW(load_checkpoint(dir / "c"), Error) << bit;
  }
}

TEST(RunCheckpoints, LastFallsBackToThePreviousPair) {
  const TempDir dir;
  RunCheckpoints run(dir.path());
  EXPECT_FALSE(run.load_last());
  run.save_last(weights(1), state(1));
  expect_step(run, 1, "");
  run.save_last(weights(2), state(2));
  expect_step(run, 2, "");
  for (const char* file : {"last.state", "last.safetensors"}) {
    const std::string intact = test::read_file(dir / file);
    damage(dir / file);
    expect_step(run, 1, "wrong checksum");
    test::write_file(dir / file, intact.substr(0, intact.size() / 2));
    expect_step(run, 1, "truncated");
    test::write_file(dir / file, "");
    expect_step(run, 1, "too short");
    fs::remove(dir / file);
    expect_step(run, 1, "resuming from");
    test::write_file(dir / file, intact);
    expect_step(run, 2, "");
  }
  damage(dir / "last.state");
  damage(dir / "previous.safetensors");
  EXPECT_THROW(run.load_last(), Error);
}

TEST(RunCheckpoints, EveryMomentOfACrashLeavesAPair) {
  // The files before and after each of the four renames of the third save, as a kill would leave them.
  const TempDir dir;
  RunCheckpoints run(dir.path());
  run.save_last(weights(1), state(1));
  run.save_last(weights(2), state(2));
  auto copy = [&](const char* from, const char* to) {
    fs::copy_file(dir / from, dir / to, fs::copy_options::overwrite_existing);
  };
  copy("last.state", "previous.state");
  expect_step(run, 2, "");
  copy("last.safetensors", "previous.safetensors");
  expect_step(run, 2, "");
  const TempDir other;
  RunCheckpoints(other.path()).save_last(weights(3), state(3));
  fs::remove(dir / "last.state");  // hard-linked: replace, do not write into it
  fs::copy_file(other / "last.state", dir / "last.state");
  expect_step(run, 2, "incomplete");
  {
    RunCheckpoints resumed(
        dir.path());  // saves again after the crash: the good pair must survive until it is done
    const auto r = resumed.load_last();
    ASSERT_TRUE(r);
    EXPECT_EQ(test::read_file(dir / "previous.state"), [&] {
      const TempDir t;
      RunCheckpoints(t.path()).save_last(weights(2), state(2));
      return test::read_file(t / "last.state");
    }());
  }
  fs::remove(dir / "last.safetensors");
  fs::copy_file(other / "last.safetensors", dir / "last.safetensors");
  expect_step(run, 3, "");
}

TEST(RunCheckpoints, ADamagedLastDoesNotPushOutTheGoodOne) {
  const TempDir dir;
  {
    RunCheckpoints run(dir.path());
    run.save_last(weights(1), state(1));
    run.save_last(weights(2), state(2));
  }
  damage(dir / "last.state");
  RunCheckpoints resumed(dir.path());
  expect_step(resumed, 1, "resuming from");
  resumed.save_last(weights(5), state(5));
  expect_step(resumed, 5, "");
  damage(dir / "last.safetensors");
  expect_step(resumed, 1, "resuming from");
}

TEST(RunCheckpoints, AKillDuringTheFirstSaveMeansAFreshStart) {
  const TempDir dir;
  RunCheckpoints run(dir.path());
  run.save_last(weights(1), state(1));
  fs::remove(dir / "last.safetensors");
  EXPECT_FALSE(run.load_last());
}

TEST(RunCheckpoints, KeepsTheNewestEpochsAndTheBest) {
  const TempDir dir;
  const RunCheckpoints run(dir.path(), 2);
  test::write_file(dir / "checkpoint-x.safetensors", "not ours");
  for (int e = 8; e < 12; ++e) run.save_epoch(e, weights(e));
  run.save_best(weights(9));
  EXPECT_FALSE(fs::exists(dir / "checkpoint-9.safetensors"));
  EXPECT_TRUE(fs::exists(dir / "checkpoint-10.safetensors"));
  EXPECT_TRUE(fs::exists(dir / "checkpoint-11.safetensors"));
  EXPECT_TRUE(fs::exists(dir / "best.safetensors"));
  EXPECT_EQ(dir.entries(), 4u);
}

TEST(RunCheckpoints, FullDiskKeepsTheLastPair) {
  const TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs: " << std::strerror(errno);
  {
    RunCheckpoints run(dir.path());
    run.save_last(weights(1), state(1));
    const Checkpoint big{{{"w", test::fill("w", {1 << 17}, 0, 1)}}, {}};
    try {
      run.save_last(big, state(2));
      ADD_FAILURE() << "the disk was not full";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::run);
      EXPECT_THAT(e.what(), HasSubstr("No space left"));
    }
    expect_step(run, 1, "incomplete");
    for (const auto& p : fs::directory_iterator(dir.path())) EXPECT_NE(p.path().extension(), ".tmp");
  }
  ::umount(dir.path().c_str());
}

}  // namespace
}  // namespace lowbit
