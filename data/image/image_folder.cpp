#include "data/image/image_folder.h"

#include "data/image/crop_plans.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "tensor/core/error.h"

namespace lowbit {

namespace fs = std::filesystem;

namespace {

using ClassIds = std::map<std::string, int64_t, std::less<>>;

struct ClassIndex {
  ClassIds ids;                    ///< of folder names
  std::vector<std::string> names;  ///< by id
  std::string source;              ///< for messages
};

enum class FileKind : uint8_t { image, unsupported, other };

FileKind kind_of(const fs::path& file) {
  std::string e = file.extension().string();
  std::transform(e.begin(), e.end(), e.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
  for (const char* known : {".jpeg", ".jpg", ".png", ".bmp", ".gif"}) {
    if (e == known) return FileKind::image;
  }
  for (const char* known : {".webp", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".jxl", ".ppm", ".pgm"}) {
    if (e == known) return FileKind::unsupported;
  }
  return FileKind::other;
}

bool hidden(const fs::path& p) { return p.filename().native().starts_with('.'); }

/// Entries of a folder, hidden ones left out, in byte order.
std::vector<fs::directory_entry> sorted_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::directory_entry> entries;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (!hidden(it->path())) entries.push_back(*it);
  }
  LOWBIT_CHECK(!error, io, "data", "cannot read folder ", folder.string(), ": ", error.message());
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return a.path().filename().native() < b.path().filename().native();
  });
  return entries;
}

std::vector<std::string> folders_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& e : sorted_entries(folder)) {
    std::error_code unreadable;
    if (e.is_directory(unreadable)) names.push_back(e.path().filename().string());
  }
  return names;
}

bool holds_images(const fs::path& folder) {
  const auto entries = sorted_entries(folder);
  return std::any_of(entries.begin(), entries.end(),
                     [](const auto& e) { return kind_of(e.path()) == FileKind::image; });
}

std::string joined(const std::vector<std::string>& names, size_t limit = 8) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), limit); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > limit ? str_cat(text, ", … ", names.size() - limit, " more") : text;
}

/// Calls f(line number, columns) for each non-empty line of a tab-separated file.
template <class F>
void for_each_row(const fs::path& file, F&& f) {
  std::ifstream in(file);
  LOWBIT_CHECK(in.good(), io, "data", "cannot read ", file.string());
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    std::vector<std::string> columns;
    for (size_t begin = 0; begin <= line.size();) {
      const size_t end = std::min(line.find('\t', begin), line.size());
      columns.push_back(line.substr(begin, end - begin));
      begin = end + 1;
    }
    f(number, columns);
  }
  LOWBIT_CHECK(!in.bad(), io, "data", "cannot read ", file.string());
}

std::optional<int64_t> parse_id(const std::string& text) {
  int64_t id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id < 0 || id > (1 << 24))
    return std::nullopt;
  return id;
}

ClassIndex read_class_index(const fs::path& file) {
  ClassIndex index{{}, {}, file.string()};
  for_each_row(file, [&](int64_t number, const std::vector<std::string>& row) {
    if (number == 1 && row[0] == "id") return;
    const std::optional<int64_t> id = parse_id(row[0]);
    LOWBIT_CHECK(id && row.size() >= 2 && *id == int64_t(index.names.size()), io, "data", file.string(), ":",
                 number, ": expected id ", index.names.size(), ", folder name and names, separated by tabs");
    LOWBIT_CHECK(index.ids.emplace(row[1], *id).second, io, "data", file.string(), ":", number, ": class ",
                 row[1], " appears twice");
    index.names.push_back(row.size() > 2 && !row[2].empty() ? row[2] : row[1]);
  });
  LOWBIT_CHECK(!index.names.empty(), io, "data", file.string(), " is empty");
  return index;
}

/// Where the ids of a data folder come from: its class_index.tsv, else the folders of train, else those of
/// `split`.
ClassIndex classes_of(const fs::path& root, const std::string& split) {
  if (fs::exists(root / "class_index.tsv")) return read_class_index(root / "class_index.tsv");
  ClassIndex index;
  for (const fs::path& folder : {root / "train", root / split}) {
    if (!index.names.empty() || !fs::is_directory(folder)) continue;
    index.names = folders_in(folder);
    index.source = folder.string();
  }
  for (size_t i = 0; i < index.names.size(); ++i) index.ids.emplace(index.names[i], int64_t(i));
  return index;
}

int64_t id_of(const ClassIndex& classes, const std::string& name, const std::string& what) {
  const auto found = classes.ids.find(name);
  LOWBIT_CHECK(found != classes.ids.end(), io, "data", what, ": class ", name, " is not in ", classes.source);
  return found->second;
}

void append_class_folder(const fs::path& folder, const std::string& relative, int64_t id, ImageList& list) {
  const size_t before = list.paths.size();
  for (const fs::directory_entry& e : sorted_entries(folder)) {
    const FileKind kind = kind_of(e.path());
    LOWBIT_CHECK(kind != FileKind::unsupported, io, "data", "cannot decode ", e.path().string(),
                 ": format not supported (jpeg, png, gif and bmp are read)");
    if (kind == FileKind::other) {
      ++list.ignored;
      continue;
    }
    list.paths.push_back(relative + "/" + e.path().filename().string());
    list.labels.push_back(id);
  }
  LOWBIT_CHECK(list.paths.size() > before, io, "data", "class folder ", folder.string(),
               " holds no images; remove it or fill it");
}

void check_folder(const fs::path& root, const std::string& split) {
  LOWBIT_CHECK(fs::is_directory(root), io, "data", "folder ", root.string(), " does not exist");
  LOWBIT_CHECK(fs::is_directory(root / split), io, "data", "folder ", root.string(), " has no folder ", split,
               " (folders in it: ", joined(folders_in(root)), ")");
}

}  // namespace

ImageList open_image_split(const std::string& root, const std::string& split) {
  check_folder(root, split);
  const fs::path folder = fs::path(root) / split, label_file = fs::path(root) / (split + "_labels.tsv");
  const std::vector<std::string> names = folders_in(folder);
  if (names.empty() && fs::exists(label_file)) return read_image_list(root, label_file.string());
  LOWBIT_CHECK(!names.empty(), io, "data", folder.string(), " has no class folders",
               holds_images(folder)
                   ? str_cat("; its images lie side by side: sort them into one folder for each class, "
                             "or list them as path<TAB>class id in ",
                             label_file.string())
                   : "");
  const ClassIndex classes = classes_of(root, split);
  ImageList list{root, {}, {}, classes.names, 0};
  for (const std::string& name : names) {
    append_class_folder(folder / name, split + "/" + name, id_of(classes, name, (folder / name).string()),
                        list);
  }
  return list;
}

ImageList read_image_list(const std::string& root, const std::string& list_file) {
  LOWBIT_CHECK(fs::is_directory(root), io, "data", "folder ", root, " does not exist");
  const ClassIndex classes = classes_of(root, "val");
  ImageList list{root, {}, {}, classes.names, 0};
  int64_t largest = -1;
  for_each_row(list_file, [&](int64_t number, const std::vector<std::string>& row) {
    const std::string where = str_cat(list_file, ":", number);
    std::optional<int64_t> id;
    if (row.size() == 1) {
      id = id_of(classes, fs::path(row[0]).parent_path().filename().string(), where);
    } else {
      id = parse_id(row[1]);
      LOWBIT_CHECK(id && row.size() == 2, io, "data", where, ": expected path<TAB>class id");
      LOWBIT_CHECK(classes.names.empty() || *id < list.classes(), io, "data", where,
                   ": class id must be below ", list.classes(), " (got ", *id, "); ", classes.source,
                   " names the classes");
    }
    largest = std::max(largest, *id);
    list.paths.push_back(row[0]);
    list.labels.push_back(*id);
  });
  LOWBIT_CHECK(!list.paths.empty(), io, "data", list_file, " names no images");
  for (int64_t id = list.classes(); id <= largest; ++id) list.class_names.push_back(std::to_string(id));
  return list;
}

std::vector<Dataset::Field> ImageDataset::fields() const {
  const int64_t size = transform_.options().size;
  const Field image = form_ == Form::decoded ? crop_plan_field(1)
                                             : Field{"image", Shape{3, size, size},
                                                     form_ == Form::pixels ? DType::u8 : DType::f32};
  return {image, {"label", Shape{}, DType::i64}};
}

Dataset::BlobSize ImageDataset::blob_size() const {
  return form_ == Form::decoded ? crop_blob_size(transform_.options().size, 1) : BlobSize{};
}

void ImageDataset::finish(std::vector<Tensor>& fields, const Tensor& bytes) const {
  fields[0] =
      finished_crops(fields[0], bytes, 1, transform_.options().size, transform_.options().normalization)
          .select(1, 0);
}

void ImageDataset::read(int64_t index, const RngKey& key, std::span<const View> out) const {
  LOWBIT_ASSERT(form_ != Form::decoded);
  read_into(index, key, out, nullptr);
}

void ImageDataset::read_with_bytes(int64_t index, const RngKey& key, std::span<const View> out,
                                   Blob& blob) const {
  read_into(index, key, out, &blob);
}

void ImageDataset::read_into(int64_t index, const RngKey& key, std::span<const View> out, Blob* blob) const {
  struct Scratch {
    std::vector<uint8_t> bytes;
    Image decoded, pixels;
    ImageTransform::Scratch transform;
  };
  thread_local Scratch s;
  const std::string path = list_.root + "/" + list_.paths[size_t(index)];
  read_file(path, s.bytes);
  PhiloxDraws draws(key);
  const auto choose = [&](int height, int width) { return transform_.part(height, width, draws); };
  const ImageView part = decode_part(s.bytes, path, choose, s.decoded, decoder_);
  *out[1].as<int64_t>() = list_.labels[size_t(index)];
  if (blob) {
    PhiloxDraws ahead = draws;
    if (const auto window = transform_.window_of_part(part.height, part.width, ahead))
      if (leave_pixels(part, *window, *blob, *out[0].as<CropPlan>())) return;
  }
  transform_.pixels_of_part(part, draws, s.transform, s.pixels);
  if (blob)
    leave_finished({&s.pixels, 1}, *blob, {out[0].as<CropPlan>(), 1});
  else if (form_ == Form::pixels)
    planes_chw(s.pixels, out[0].as<uint8_t>());
  else
    normalize_chw(s.pixels, transform_.options().normalization, out[0].as<float>());
}

}  // namespace lowbit
