#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "tensor/core/error.h"
#include "train/metrics/averages.h"
#include "train/metrics/event_writer.h"
#include "train/metrics/log.h"
#include "train/metrics/progress.h"
#include "train/metrics/run_log.h"
#include "train/metrics/sha256.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;

struct TempFolder {
  std::string path = (fs::temp_directory_path() / ("lowbit_metrics_" + std::to_string(getpid()))).string();
  TempFolder() { fs::remove_all(path), fs::create_directories(path); }
  ~TempFolder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
};

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string l; std::getline(in, l);) lines.push_back(l);
  return lines;
}

TEST(Checksums, KnownValues) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  for (size_t n : {55, 56, 63, 64, 65}) {  // around the padding: one update against many
    Sha256 s;
    for (size_t i = 0; i < n; ++i) s.update("x");
    EXPECT_EQ(s.hex(), sha256_hex(std::string(n, 'x'))) << n;
  }
}

TEST(Progress, LinesHaveTheFixedForm) {
  TrainProgress p;
  p.epoch = 12, p.epochs = 300, p.step = 500, p.steps = 2502, p.batch = 512, p.lr = 4.731e-4;
  p.loss.add(2.995, 1), p.loss.add(2.913, 1);
  p.step_time.add(0.299), p.step_time.add(0.281);
  p.data_time.add(0.020), p.data_time.add(0.004);
  EXPECT_EQ(train_line(p),
            "Train: 12 [ 500/2502 (20%)]  Loss: 2.913 (2.954)  Time: 0.281s, 1822.1/s (0.290s, 1765.5/s)  "
            "LR: 4.731e-04  Data: 0.004 (0.012)");
  EXPECT_NEAR(seconds_left_of_epoch(p), 2001 * 0.29, 1e-9);
  EXPECT_NEAR(seconds_left_of_run(p), 2001 * 0.29 + 287 * 2502 * 0.29, 1e-6);
  const std::string status = status_text(p);
  for (const char* part :
       {"epoch 13/300", "501/2502 20%", "loss 2.954", "1765.5 img/s", "wait 4%", "ETA 9:40 / 2d "})
    EXPECT_NE(status.find(part), std::string::npos) << status << " lacks " << part;
  TopCounts c{64330, 85912, 100000};
  EXPECT_EQ(eval_result(c, 1.571), " * Acc@1 64.330 Acc@5 85.912 loss 1.571");
  EXPECT_EQ(duration_text(12), "0:12");
  EXPECT_EQ(duration_text(3723), "1:02:03");
  EXPECT_EQ(duration_text(90061), "1d 01:01:01");
  EXPECT_GT(resident_mib(), 1);
  EXPECT_GE(peak_resident_mib(), resident_mib() - 1);
}

TEST(TopK, CountsRanks) {
  const std::vector<float> x = {1, 2, 3, 4, 5, 6, 7,  //
                                7, 6, 5, 4, 3, 2, 1,  //
                                1, 1, 1, 1, 1, 1, 1,  //
                                1, 1, 1, 1, 1, 1, NAN};
  const std::vector<int64_t> y = {6, 4, 4, 6};
  const TopCounts c = count_correct(Tensor::from(std::span<const float>(x), {4, 7}),
                                    Tensor::from(std::span<const int64_t>(y), {4}));
  EXPECT_EQ(c.top1, 1);
  EXPECT_EQ(c.top5, 3);  // rank 0, rank 4, tie of the fifth place by index; the NaN row is wrong
  EXPECT_EQ(c.total, 4);
  const std::vector<int64_t> bad = {7, 0, 0, 0};
  EXPECT_THROW(count_correct(Tensor::from(std::span<const float>(x), {4, 7}),
                             Tensor::from(std::span<const int64_t>(bad), {4})),
               Error);
}

/// Splits an event file into its records, checking both checksums.
std::vector<std::string> records_of(const std::string& bytes) {
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t n = 0;
    uint32_t crc = 0;
    std::memcpy(&n, &bytes[at], 8);
    std::memcpy(&crc, &bytes[at + 8], 4);
    EXPECT_EQ(crc, masked_crc32c(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, n));
    std::memcpy(&crc, &bytes[at + 12 + n], 4);
    EXPECT_EQ(crc, masked_crc32c(records.back()));
    at += 16 + n;
  }
  return records;
}

struct Field {
  int number;
  uint64_t varint;
  std::string bytes;  ///< payload of wire types 1, 2 and 5
};

std::vector<Field> fields_of(const std::string& s) {
  std::vector<Field> fields;
  size_t at = 0;
  const auto varint = [&] {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t b = uint8_t(s.at(at++));
      v |= uint64_t(b & 127) << shift;
      if (b < 128) return v;
    }
  };
  while (at < s.size()) {
    const uint64_t key = varint();
    Field f{int(key >> 3), 0, ""};
    const size_t n = (key & 7) == 0 ? 0 : (key & 7) == 1 ? 8 : (key & 7) == 5 ? 4 : 0;
    if ((key & 7) == 0) {
      f.varint = varint();
    } else {
      const size_t length = (key & 7) == 2 ? varint() : n;
      f.bytes = s.substr(at, length);
      at += length;
    }
    fields.push_back(f);
  }
  return fields;
}

template <class T>
T value_of(const std::string& bytes) {
  T v;
  EXPECT_EQ(bytes.size(), sizeof v);
  std::memcpy(&v, bytes.data(), sizeof v);
  return v;
}

TEST(EventWriter, RecordsCanBeReadBack) {
  const TempFolder dir;
  std::string path;
  {
    EventWriter w(dir.path);
    w.scalar("train/loss", 300, 2.5);
    const std::vector<float> values = {0, 1, 1, 4, NAN};
    w.histogram("scale", 7, values);
    path = w.path();
  }
  EXPECT_NE(path.find("tfevents"), std::string::npos);
  const auto records = records_of(read_all(path));
  ASSERT_EQ(records.size(), 3u);
  const auto first = fields_of(records[0]);
  EXPECT_EQ(first.at(1).bytes, "brain.Event:2");
  EXPECT_NEAR(value_of<double>(first.at(0).bytes), unix_time(), 60);

  const auto event = fields_of(records[1]);
  EXPECT_EQ(event.at(1).varint, 300u);
  ASSERT_EQ(event.at(2).number, 5);
  const auto value = fields_of(fields_of(event.at(2).bytes).at(0).bytes);
  EXPECT_EQ(value.at(0).bytes, "train/loss");
  EXPECT_EQ(value_of<float>(value.at(1).bytes), 2.5f);

  const auto histogram =
      fields_of(fields_of(fields_of(fields_of(records[2]).at(2).bytes).at(0).bytes).at(1).bytes);
  ASSERT_EQ(histogram.size(), 7u);
  const double expected[] = {0, 4, 4, 6, 18};  // min, max, num, sum, sum of squares
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(value_of<double>(histogram[i].bytes), expected[i]);
  EXPECT_EQ(histogram[5].bytes.size(), histogram[6].bytes.size());
  double total = 0;
  for (size_t i = 0; i < histogram[6].bytes.size(); i += 8)
    total += value_of<double>(histogram[6].bytes.substr(i, 8));
  EXPECT_EQ(total, 4);
}

TEST(RunLog, WritesAndContinues) {
  const TempFolder dir;
  {
    RunLog log({dir.path, true, 0, 0});
    log.event(1, 0, "train", {{"loss", 2.25}, {"grad_norm", NAN}});
    log.event(2, 1, "train", {{"loss", INFINITY}});
    EpochSummary s;
    s.epoch = 0, s.train_loss = 2.25, s.eval_top1 = 50, s.lr = 1e-3;
    log.epoch(s);
    s.epoch = 1;
    log.epoch(s);
  }
  auto lines = lines_of(dir / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 2u);
  const auto j = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(j.at("loss"), 2.25);
  EXPECT_EQ(j.at("grad_norm"), "nan");
  EXPECT_EQ(j.at("step"), 1);
  EXPECT_EQ(j.at("split"), "train");
  EXPECT_EQ(nlohmann::json::parse(lines[1]).at("loss"), "inf");
  EXPECT_EQ(lines_of(dir / "summary.csv"),
            (std::vector<std::string>{"epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,img_per_s,osc_share",
                                      "0,2.25,,50.0,,0.001,,", "1,2.25,,50.0,,0.001,,"}));
  std::ofstream(dir / "metrics.jsonl", std::ios::app) << "{\"cut";
  RunLog({dir.path, false, 1, 1});  // resumed at epoch 1, step 1
  EXPECT_EQ(lines_of(dir / "metrics.jsonl").size(), 1u);
  EXPECT_EQ(lines_of(dir / "summary.csv").size(), 2u);
}

TEST(RunLog, FoldersAndManifest) {
  const TempFolder dir;
  const std::string a = make_run_folder(dir.path, "", "deit"), b = make_run_folder(dir.path, "", "deit");
  EXPECT_NE(a, b);
  EXPECT_EQ(make_run_folder(dir.path, "x", "deit"), dir / "x");
  EXPECT_EQ(make_run_folder(dir.path, "x", "deit"), dir / "x");
  std::ofstream(dir / "file") << "";
  EXPECT_THROW(make_run_folder(dir / "file", "x", "deit"), Error);
  Manifest m;
  m.command_line = {"lowbit", "train"};
  m.digests["weights"] = sha256_hex("w");
  m.decoder = "stb";
  const auto j = nlohmann::json::parse(manifest_json(m));
  EXPECT_EQ(j.at("command line").at(1), "train");
  EXPECT_EQ(j.at("sha256").at("weights"), sha256_hex("w"));
  EXPECT_EQ(j.at("start time"), "1970-01-01T00:00:00.000Z");
  for (const char* key : {"version", "cpu", "host", "decoder", "features"})
    EXPECT_TRUE(j.contains(key)) << key;
}

TEST(Log, EveryLineOfTheFileHasTimeLevelAndRank) {
  const TempFolder dir;
  {
    Log log({LogLevel::error, dir / "log.txt", 0});
    log.info("one\ntwo");
    log.warning("three\n");
    log.debug("");
  }
  const auto lines = lines_of(dir / "log.txt");
  ASSERT_EQ(lines.size(), 4u);
  const std::regex form(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) rank0 .*)");
  for (const auto& l : lines) EXPECT_TRUE(std::regex_match(l, form)) << l;
  EXPECT_TRUE(lines[1].ends_with("INFO rank0 two"));
  EXPECT_TRUE(lines[2].ends_with("WARNING rank0 three"));
}

TEST(AppendFile, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "/dev/full not found";
  AppendFile f("/dev/full");
  EXPECT_THROW(f.write("x"), Error);
  EXPECT_THROW(AppendFile("/no/such/folder/x"), Error);
}

}  // namespace
}  // namespace lowbit
