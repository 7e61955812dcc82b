#include "data/soft_label/label_store.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "tensor/core/error.h"
#include "tensor/io/zip.h"

namespace lowbit {

namespace {

namespace fs = std::filesystem;
constexpr const char* kOp = "labels";
using namespace pack;

CropLabels like(SoftLabelType type, int64_t ids, int64_t probabilities) {
  CropLabels l;
  l.type = type, l.ids_each = ids, l.probabilities_each = probabilities;
  return l;
}

/// The crops of the given numbers.
CropLabels chosen(const CropLabels& all, const std::vector<int64_t>& which, const std::string& where) {
  CropLabels l = like(all.type, all.ids_each, all.probabilities_each);
  for (const int64_t i : which) {
    LOWBIT_CHECK(i >= 0 && i < all.size(), io, kOp, where, ": crop ", i, " of ", all.size(), " is missing");
    l.crops.push_back(all.crops[size_t(i)]);
    l.ids.insert(l.ids.end(), all.ids.begin() + i * all.ids_each, all.ids.begin() + (i + 1) * all.ids_each);
    const auto p = all.probabilities.begin();
    l.probabilities.insert(l.probabilities.end(), p + i * all.probabilities_each,
                           p + (i + 1) * all.probabilities_each);
  }
  return l;
}

void check_same_form(const CropLabels& l, SoftLabelType type, int64_t ids, const std::string& where) {
  LOWBIT_CHECK(l.type == type && l.ids_each == ids, io, kOp, where, " holds ",
               soft_label_name(l.type, l.ids_each), " labels, the files before it ",
               soft_label_name(type, ids));
}

class FolderStore final : public LabelStore {
 public:
  explicit FolderStore(const std::string& folder) {
    for (auto& [key, path] : label_files(folder)) files_.emplace(std::move(key), std::move(path));
    const CropLabels first = read_label_file(files_.begin()->second);
    type_ = first.type, ids_ = first.ids_each;
  }
  SoftLabelType type() const override { return type_; }
  int64_t ids_each() const override { return ids_; }
  int64_t crops(const std::string& key) const override { return whole(key).size(); }
  CropLabels read(const std::string& key, const std::vector<int64_t>& which) const override {
    return chosen(whole(key), which, files_.at(key));
  }

 private:
  /// crops() and read() follow each other: the last file of a thread is kept.
  const CropLabels& whole(const std::string& key) const {
    thread_local uint64_t owner = 0;  // not the address, which a later store may have again
    thread_local std::string last;
    thread_local CropLabels labels;
    if (owner == number_ && last == key) return labels;
    owner = 0;
    const auto file = files_.find(key);
    LOWBIT_CHECK(file != files_.end(), io, kOp, "no soft labels for ", key);
    labels = read_label_file(file->second);
    check_same_form(labels, type_, ids_, file->second);
    owner = number_, last = key;
    return labels;
  }
  static uint64_t next_number() {
    static std::atomic<uint64_t> last{0};
    return ++last;
  }
  const uint64_t number_ = next_number();
  std::unordered_map<std::string, std::string> files_;
  SoftLabelType type_ = SoftLabelType::hard;
  int64_t ids_ = 0;
};

class PackStore final : public LabelStore {
 public:
  struct Image {
    uint64_t first = 0;
    uint32_t crops = 0;
  };
  explicit PackStore(ByteSource source) : source_(std::move(source)) { open(); }
  SoftLabelType type() const override { return layout_.type; }
  int64_t ids_each() const override { return layout_.ids; }
  int64_t crops(const std::string& key) const override { return image(key).crops; }
  CropLabels read(const std::string& key, const std::vector<int64_t>& which) const override {
    const Image& im = image(key);
    CropLabels l = like(layout_.type, layout_.ids, layout_.probabilities);
    const auto bytes = uint64_t(layout_.record_bytes());
    for (const int64_t i : which) {
      LOWBIT_CHECK(i >= 0 && i < int64_t(im.crops), io, kOp, source_.name(), ": crop ", i, " of ", im.crops,
                   " of ", key, " is missing");
      const std::string record = source_.read_string(kMagic.size() + (im.first + uint64_t(i)) * bytes, bytes);
      layout_.decode(record, str_cat(source_.name(), ": ", key), l);
    }
    return l;
  }
  const std::map<std::string, Image>& images() const { return images_; }
  int64_t bytes() const { return int64_t(source_.size()); }

 private:
  const Image& image(const std::string& key) const {
    const auto it = images_.find(key);
    LOWBIT_CHECK(it != images_.end(), io, kOp, source_.name(), ": no soft labels for ", key);
    return it->second;
  }
  void open();
  void read_header(const std::string& text);
  void read_index(const std::string& index, uint64_t records);
  ByteSource source_;
  Layout layout_;
  std::map<std::string, Image> images_;
};

void PackStore::open() {
  const std::string& where = source_.name();
  const uint64_t size = source_.size();
  LOWBIT_CHECK(size >= kMagic.size() + kFooter && source_.read_string(0, kMagic.size()) == kMagic, io, kOp,
               where, ": not a packed label file");
  LOWBIT_CHECK(source_.read_string(size - kMagic.size(), kMagic.size()) == kMagic, io, kOp, where,
               " is cut off");
  const uint64_t footer = size - kFooter;
  const auto json = source_.read_le<uint64_t>(footer), at = source_.read_le<uint64_t>(footer + 8),
             length = source_.read_le<uint64_t>(footer + 16);
  uint64_t end = 0;
  const bool inside = at >= kMagic.size() && checked_add(at, length, end) && checked_add(end, json, end);
  LOWBIT_CHECK(inside && end == footer, io, kOp, where, ": the index lies outside the file");
  const std::string tail = source_.read_string(at, length + json);
  LOWBIT_CHECK(crc32_of(tail.data(), tail.size()) == source_.read_le<uint32_t>(footer + 24), io, kOp, where,
               ": the index is damaged (wrong checksum)");
  read_header(tail.substr(length));
  read_index(tail.substr(0, length), (at - kMagic.size()) / uint64_t(layout_.record_bytes()));
}

void PackStore::read_header(const std::string& text) {
  try {
    const nlohmann::json h = nlohmann::json::parse(text);
    layout_.type = soft_label_named(h.at("type")).first;
    layout_.ids = h.at("ids"), layout_.probabilities = h.at("probabilities");
    layout_.half = h.at("half"), layout_.wide = h.at("wide_ids");
  } catch (const std::exception& e) {
    throw Error(ErrorKind::io, kOp, str_cat(source_.name(), ": the header is not understood"));
  }
  const auto plausible = [](int64_t n) { return n >= 0 && n <= (1 << 20); };
  LOWBIT_CHECK(plausible(layout_.ids) && plausible(layout_.probabilities), io, kOp, source_.name(),
               ": the header is not understood");
}

void PackStore::read_index(const std::string& index, uint64_t records) {
  const char* at = index.data();
  const char* end = at + index.size();
  const auto need = [&](ptrdiff_t n) {
    LOWBIT_CHECK(end - at >= n, io, kOp, source_.name(), ": the index is cut off");
  };
  while (at < end) {
    need(2);
    const auto length = take<uint16_t>(at);
    need(length + 12);
    std::string key(at, length);
    at += length;
    Image im;
    im.first = take<uint64_t>(at), im.crops = take<uint32_t>(at);
    LOWBIT_CHECK(im.first <= records && im.crops <= records - im.first, io, kOp, source_.name(),
                 ": records of ", printable(key), " lie outside the file");
    images_.emplace(std::move(key), im);
  }
}

void count(LabelSummary& s, const CropLabels& l) {
  s.type = l.type, s.ids_each = l.ids_each;
  s.least_crops = s.images == 0 ? l.size() : std::min(s.least_crops, l.size());
  s.most_crops = std::max(s.most_crops, l.size());
  ++s.images, s.crops += l.size();
  for (const int32_t id : l.ids) s.highest_class = std::max(s.highest_class, id);
}

}  // namespace

std::string label_key(const std::string& image_path) {
  const fs::path p(image_path);
  const std::string file = p.filename().string();
  return p.parent_path().filename().string() + "/" + file.substr(0, file.find('.'));
}

std::vector<std::pair<std::string, std::string>> label_files(const std::string& folder) {
  LOWBIT_CHECK(fs::is_directory(folder), io, kOp, folder,
               " is neither a packed label file nor a folder of label files");
  std::map<std::string, std::string> files;
  std::error_code e;
  fs::recursive_directory_iterator it(folder, fs::directory_options::follow_directory_symlink, e), end;
  LOWBIT_CHECK(!e, io, kOp, "cannot read folder ", folder, ": ", e.message());
  for (; it != end; it.increment(e)) {
    LOWBIT_CHECK(!e, io, kOp, "cannot read folder ", folder, ": ", e.message());
    if (it->path().extension() != ".tar" || !it->is_regular_file()) continue;
    const std::string path = it->path().string();
    const auto [other, inserted] = files.emplace(label_key(path), path);
    LOWBIT_CHECK(inserted, io, kOp, "two label files for ", other->first, ": ", other->second, " and ", path);
  }
  LOWBIT_CHECK(!files.empty(), io, kOp, "no label files (*.tar) below ", folder);
  return {files.begin(), files.end()};
}

std::unique_ptr<LabelStore> open_labels(const std::string& path) {
  if (fs::is_directory(path)) return std::make_unique<FolderStore>(path);
  return std::make_unique<PackStore>(ByteSource::open(path));
}

struct PackWriter::Impl {
  Impl(const std::string& path, const Layout& l) : file(path), layout(l) { file.write(kMagic); }
  AtomicFile file;
  Layout layout;
  uint64_t records = 0;
  std::string index;
};

PackWriter::PackWriter(const std::string& path, const Layout& layout)
    : impl_(std::make_unique<Impl>(path, layout)) {}
PackWriter::~PackWriter() = default;

void PackWriter::add(const std::string& key, const CropLabels& l) {
  impl_->index += index_entry(key, impl_->records, l.size());
  std::string records;
  for (int64_t i = 0; i < l.size(); ++i) records += impl_->layout.encode(l, i);
  impl_->file.write(records);
  impl_->records += uint64_t(l.size());
}

void PackWriter::finish() {
  impl_->file.write(tail(impl_->layout, impl_->index, impl_->records));
  impl_->file.commit();
}

LabelSummary pack_labels(const std::string& folder, const std::string& out,
                         const std::function<void(int64_t, int64_t)>& progress) {
  const auto files = label_files(folder);
  Layout layout;
  {
    const CropLabels first = read_label_file(files[0].second);
    layout = {first.type, first.ids_each, first.probabilities_each, true, false};
  }
  for (;;) {  // again in a wider form when a file does not fit
    LabelSummary s;
    PackWriter writer(out, layout);
    bool fits = true;
    for (const auto& [key, path] : files) {
      const CropLabels l = read_label_file(path);
      check_same_form(l, layout.type, layout.ids, path);
      fits = layout.holds(l);
      if (!fits) {
        const Layout full_precision{layout.type, layout.ids, layout.probabilities, false, layout.wide};
        layout.half = layout.half && full_precision.holds(l) ? false : layout.half;
        layout.wide = layout.wide || !full_precision.holds(l);
        break;
      }
      writer.add(key, l);
      count(s, l);
      progress(s.images, int64_t(files.size()));
    }
    if (!fits) continue;
    writer.finish();
    s.bytes = int64_t(fs::file_size(out));
    return s;
  }
}

LabelSummary verify_labels(const std::string& path) {
  LabelSummary s;
  if (fs::is_directory(path)) {
    for (const auto& [key, file] : label_files(path)) {
      const CropLabels l = read_label_file(file);
      if (s.images > 0) check_same_form(l, s.type, s.ids_each, file);
      count(s, l);
      s.bytes += int64_t(fs::file_size(file));
    }
    return s;
  }
  const PackStore store(ByteSource::open(path));
  for (const auto& [key, image] : store.images()) {
    std::vector<int64_t> all(image.crops);
    for (size_t i = 0; i < all.size(); ++i) all[i] = int64_t(i);
    count(s, store.read(key, all));
  }
  s.bytes = store.bytes();
  return s;
}

}  // namespace lowbit
