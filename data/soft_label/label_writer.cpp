#include "data/soft_label/label_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "data/soft_label/label_store.h"
#include "tensor/core/error.h"
#include "tensor/hd/half.h"
#include "tensor/io/torch_file.h"
#include "tensor/io/zip.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;

std::string content(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(f), {}};
}

void check_settings(const std::string& path, const std::string& found, const std::string& wanted) {
  LOWBIT_CHECK(found == wanted, io, "labels", path, " was begun with other settings: ", printable(found, 400),
               "; now they are ", wanted, "; choose another path or remove it");
}

class FolderWriter final : public LabelWriter {
 public:
  FolderWriter(std::string folder, const pack::Layout& layout, const std::string& settings)
      : folder_(std::move(folder)), half_(layout.half) {
    fs::create_directories(folder_);
    const std::string note = folder_ + "/generator.json";
    if (fs::exists(note)) check_settings(folder_, content(note), settings + "\n");
    write_file_atomic(note, settings + "\n");
  }
  bool has(const std::string& image) const override { return fs::exists(path_of(image)); }
  void add(const std::string& image, const CropLabels& labels) override {
    const std::string path = path_of(image);
    fs::create_directories(fs::path(path).parent_path());
    write_label_file(path, labels, half_);
  }
  void finish() override {}

 private:
  std::string path_of(const std::string& image) const {
    const fs::path p = fs::absolute(image).lexically_normal();
    fs::path folders;
    for (fs::path at = p.parent_path();
         std::distance(folders.begin(), folders.end()) < 3 && at.has_filename(); at = at.parent_path())
      folders = folders.empty() ? at.filename() : at.filename() / folders;
    const std::string file = p.filename().string();
    return (fs::path(folder_) / folders / file.substr(0, file.find('.'))).string() + ".tar";
  }
  std::string folder_;
  bool half_;
};

/// A file that only grows, locked against a second writer.
class GrowingFile {
 public:
  explicit GrowingFile(std::string path) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    check(fd_ >= 0, "create");
    LOWBIT_CHECK(::flock(fd_, LOCK_EX | LOCK_NB) == 0, run, "write", "another process is writing ", path_);
  }
  ~GrowingFile() { ::close(fd_); }
  GrowingFile(const GrowingFile&) = delete;
  GrowingFile& operator=(const GrowingFile&) = delete;
  void cut(uint64_t size) {
    check(::ftruncate(fd_, off_t(size)) == 0 && ::lseek(fd_, 0, SEEK_END) >= 0, "cut");
  }
  void append(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
      if (n < 0 && errno == EINTR) continue;
      check(n >= 0, "write");
      bytes.remove_prefix(size_t(n));
    }
  }
  void sync() { check(::fdatasync(fd_) == 0 || errno == EINVAL, "sync"); }
  const std::string& path() const { return path_; }

 private:
  void check(bool ok, const char* action) const {
    LOWBIT_CHECK(ok, run, "write", "cannot ", action, " ", path_, ": ", std::strerror(errno));
  }
  std::string path_;
  int fd_ = -1;
};

class ResumablePack final : public LabelWriter {
 public:
  ResumablePack(std::string path, const pack::Layout& layout, const std::string& settings)
      : path_(std::move(path)),
        layout_(layout),
        records_file_(path_ + ".partial"),
        journal_(path_ + ".partial.index") {
    LOWBIT_CHECK(!fs::exists(path_), io, "labels", path_, " exists already");
    const std::string before = content(journal_.path()), head = settings + "\n";
    uint64_t kept = 0;
    if (const size_t end = before.find('\n'); end != std::string::npos) {
      check_settings(journal_.path(), before.substr(0, end + 1), head);
      kept = read_journal(before, end + 1);
    }
    journal_.cut(kept);
    records_file_.cut(kept ? pack::kMagic.size() + records_ * uint64_t(layout_.record_bytes()) : 0);
    if (kept) return;
    journal_.append(head);
    records_file_.append(pack::kMagic);
  }
  bool has(const std::string& image) const override { return keys_.contains(label_key(image)); }
  void add(const std::string& image, const CropLabels& labels) override {
    const std::string key = label_key(image);
    std::string records;
    for (int64_t i = 0; i < labels.size(); ++i) records += layout_.encode(labels, i);
    records_file_.append(records);
    records_file_.sync();  // the journal names what is certainly there
    std::string entry = pack::index_entry(key, records_, labels.size());
    index_ += entry;
    pack::put(entry, crc32_of(entry.data(), entry.size()));
    journal_.append(entry);
    records_ += uint64_t(labels.size());
    keys_.insert(key);
  }
  void finish() override {
    records_file_.append(pack::tail(layout_, index_, records_));
    records_file_.sync();
    fs::rename(records_file_.path(), path_);
    fs::remove(journal_.path());
  }

 private:
  /// Takes the complete entries; where they end.
  uint64_t read_journal(const std::string& text, size_t begin) {
    const uint64_t there = fs::file_size(records_file_.path());
    while (text.size() - begin >= 2) {
      const char* at = text.data() + begin;
      const size_t name = pack::take<uint16_t>(at), entry = 2 + name + 8 + 4;
      if (text.size() - begin < entry + 4) break;
      const std::string key(at, name);
      at += name + 8;
      const auto crops = pack::take<uint32_t>(at);
      if (pack::take<uint32_t>(at) != crc32_of(text.data() + begin, entry)) break;
      const uint64_t end = pack::kMagic.size() + (records_ + crops) * uint64_t(layout_.record_bytes());
      if (there < end) break;
      index_ += text.substr(begin, entry);
      records_ += crops;
      keys_.insert(key);
      begin += entry + 4;
    }
    return begin;
  }
  std::string path_;
  pack::Layout layout_;
  GrowingFile records_file_, journal_;
  std::string index_;
  uint64_t records_ = 0;
  std::set<std::string> keys_;
};

}  // namespace

void write_label_file(const std::string& path, const CropLabels& l, bool half) {
  const int64_t m = l.size();
  std::vector<float> coords, values;
  Tensor flips = Tensor::empty({m}, DType::b8);
  auto* flip = static_cast<uint8_t*>(flips.mutable_view().data);
  for (int64_t i = 0; i < m; ++i) {
    const CropLabels::Crop& c = l.crops[size_t(i)];
    coords.insert(coords.end(), {c.top, c.left, c.height, c.width});
    flip[i] = c.flip;
    for (int64_t k = 0; k < l.ids_each; ++k) values.push_back(float(l.ids[size_t(i * l.ids_each + k)]));
    const auto p = l.probabilities.begin() + i * l.probabilities_each;
    values.insert(values.end(), p, p + l.probabilities_each);
  }
  const DType real = half ? DType::f16 : DType::f32;
  Tensor labels;
  if (l.type == SoftLabelType::hard) {
    const std::vector<int64_t> ids(l.ids.begin(), l.ids.end());
    labels = Tensor::from(std::span<const int64_t>(ids), {m});
  } else {
    const Shape s = l.type == SoftLabelType::full        ? Shape{m, l.probabilities_each}
                    : l.type == SoftLabelType::smoothing ? Shape{m, 2}
                                                         : Shape{m, 2, l.ids_each};
    labels = Tensor::from(std::span<const float>(values), s).cast(real);
  }
  save_torch_arrays(path, {Tensor::from(std::span<const float>(coords), {m, 4}).cast(real), flips, labels});
}

std::unique_ptr<LabelWriter> folder_writer(const std::string& folder, const pack::Layout& layout,
                                           const std::string& settings) {
  return std::make_unique<FolderWriter>(folder, layout, settings);
}

std::unique_ptr<LabelWriter> pack_writer(const std::string& path, const pack::Layout& layout,
                                         const std::string& settings) {
  return std::make_unique<ResumablePack>(path, layout, settings);
}

}  // namespace lowbit
