#include "train/checkpoint/state.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <vector>

#include <unistd.h>

#include "tensor/io/zip.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
constexpr const char* kOp = "checkpoint";
constexpr const char* kChecksum = "crc32";
constexpr const char* kWeightsChecksum = "weights_crc32";

std::string get(const StringMap& meta, const char* key) {
  const auto it = meta.find(key);
  return it == meta.end() ? "" : it->second;
}

/// Makes `to` name the file `from` as well, replacing what `to` was: by a hard link, or a copy where links do
/// not work.
void keep_as(const std::string& from, const std::string& to) {
  if (!fs::exists(from)) return;
  const std::string temp = to + ".tmp";
  std::error_code ec;
  fs::remove(temp, ec);
  if (::link(from.c_str(), temp.c_str()) != 0)
    fs::copy_file(from, temp, fs::copy_options::overwrite_existing, ec);
  if (!ec) fs::rename(temp, to, ec);
  if (!ec) return;
  const std::string why = ec.message();
  fs::remove(temp, ec);
  fail(ErrorKind::run, kOp, str_cat("cannot keep ", from, " as ", to, ": ", why));
}

/// Epoch of "checkpoint-<epoch>.safetensors", -1 for other names.
int64_t epoch_of(const std::string& file) {
  const std::string_view head = "checkpoint-", tail = ".safetensors";
  if (!file.starts_with(head) || !file.ends_with(tail) || file.size() <= head.size() + tail.size()) return -1;
  int64_t epoch = -1;
  const char *begin = file.data() + head.size(), *end = file.data() + file.size() - tail.size();
  const auto [p, error] = std::from_chars(begin, end, epoch);
  return error == std::errc{} && p == end ? epoch : -1;
}

}  // namespace

std::string checksum(const TensorMap& tensors) {
  uint32_t crc = 0;
  for (const auto& [name, t] : tensors) {
    const std::string head = str_cat(name, " ", dtype_name(t.dtype()), " ", t.shape().str());
    const Tensor packed = t.to(Device{}).packed();
    crc = crc32_of(head.data(), head.size(), crc);
    crc = crc32_of(packed.view().data, packed.bytes(), crc);
  }
  char text[9];
  std::snprintf(text, sizeof text, "%08x", crc);
  return text;
}

void save_checkpoint(const std::string& path, const Checkpoint& c) {
  StringMap meta = c.meta;
  meta[kChecksum] = checksum(c.tensors);
  save_safetensors(path, c.tensors, meta);
}

Checkpoint load_checkpoint(const std::string& path) {
  TensorFile f = load_safetensors(path);
  const std::string expected = get(f.metadata, kChecksum);
  LOWBIT_CHECK(expected.empty() || expected == checksum(f.tensors), io, kOp, path,
               " is damaged (wrong checksum)");
  return {std::move(f.tensors), std::move(f.metadata)};
}

bool RunCheckpoints::last_is_intact() const {
  try {
    const Checkpoint state = load_checkpoint(path("last.state")),
                     weights = load_checkpoint(path("last.safetensors"));
    return get(state.meta, kWeightsChecksum) == get(weights.meta, kChecksum);
  } catch (const Error&) {
    return false;
  }
}

void RunCheckpoints::save_last(const Checkpoint& weights, const Checkpoint& state) {
  if (wrote_last_ || last_is_intact()) {  // a damaged pair must not push out the good one before it
    keep_as(path("last.state"), path("previous.state"));
    keep_as(path("last.safetensors"), path("previous.safetensors"));
  }
  wrote_last_ = false;
  Checkpoint paired = state;
  paired.meta[kWeightsChecksum] = checksum(weights.tensors);
  save_checkpoint(path("last.state"), paired);
  save_checkpoint(path("last.safetensors"), weights);
  wrote_last_ = true;
}

void RunCheckpoints::save_best(const Checkpoint& weights) const {
  save_checkpoint(path("best.safetensors"), weights);
}

void RunCheckpoints::save_epoch(int64_t epoch, const Checkpoint& weights) const {
  save_checkpoint(path(str_cat("checkpoint-", epoch, ".safetensors")), weights);
  if (keep_ <= 0) return;
  std::vector<int64_t> epochs;
  for (const auto& entry : fs::directory_iterator(folder_))
    if (const int64_t e = epoch_of(entry.path().filename().string()); e >= 0) epochs.push_back(e);
  std::sort(epochs.rbegin(), epochs.rend());
  for (size_t i = size_t(keep_); i < epochs.size(); ++i) {
    std::error_code ec;  // an old file that cannot be removed does no harm
    if (epochs[i] != epoch) fs::remove(path(str_cat("checkpoint-", epochs[i], ".safetensors")), ec);
  }
}

std::optional<RunCheckpoints::Resume> RunCheckpoints::load_last() const {
  std::string problem;
  auto load = [&](const std::string& file) -> std::optional<Checkpoint> {
    if (!fs::exists(path(file))) return std::nullopt;
    try {
      return load_checkpoint(path(file));
    } catch (const Error& e) {
      if (problem.empty()) problem = e.what();
      return std::nullopt;
    }
  };
  // A crash between the writes leaves a pair split over both names: every combination is tried, newest state
  // first.
  for (const char* state_file : {"last.state", "previous.state"}) {
    auto state = load(state_file);
    if (!state) continue;
    for (const char* weights_file : {"last.safetensors", "previous.safetensors"}) {
      auto weights = load(weights_file);
      if (!weights || get(state->meta, kWeightsChecksum) != get(weights->meta, kChecksum)) continue;
      Resume r{std::move(*weights), std::move(*state), ""};
      if (!problem.empty())
        r.note = str_cat(problem, "; resuming from ", path(state_file));
      else if (std::string_view(state_file) != "last.state")
        r.note =
            str_cat("the newest checkpoint in ", folder_, " is incomplete; resuming from ", path(state_file));
      return r;
    }
  }
  // Without damage: a fresh folder, or a run that was killed while it wrote its very first checkpoint.
  LOWBIT_CHECK(problem.empty(), io, kOp, "no intact checkpoint in ", folder_, ": ", problem);
  return std::nullopt;
}

}  // namespace lowbit
