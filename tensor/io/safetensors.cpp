#include "tensor/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "tensor/io/atomic_file.h"

namespace lowbit {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr const char* kOp = "safetensors";

/// In the order of RawType.
constexpr const char* kTypeNames[] = {"F64", "F32",  "F16", "BF16", "I64", "I32",     "I16",    "I8",
                                      "U8",  "BOOL", "U16", "U32",  "U64", "F8_E4M3", "F8_E5M2"};

std::optional<RawType> find_type(const std::string& name) {
  for (size_t i = 0; i < std::size(kTypeNames); ++i)
    if (name == kTypeNames[i]) return RawType(i);
  return std::nullopt;
}

/// Parses JSON nested at most `max_depth` deep, without duplicate keys: both would let a small file cost much
/// memory or mean two things.
json parse_json(const std::string& text, const std::string& file, int max_depth) {
  std::vector<std::set<std::string>> keys;
  auto check = [&](int depth, json::parse_event_t event, json& value) {
    LOWBIT_CHECK(depth <= max_depth, io, kOp, file, ": header is nested too deeply");
    if (event == json::parse_event_t::object_start) keys.resize(size_t(depth) + 1), keys.back().clear();
    if (event == json::parse_event_t::key) {
      keys.resize(size_t(depth));
      LOWBIT_CHECK(keys.back().insert(value.get<std::string>()).second, io, kOp, file,
                   ": name appears twice: ", printable(value.get<std::string>()));
    }
    return true;
  };
  try {
    return json::parse(text, check);
  } catch (const json::exception& e) {
    fail(ErrorKind::io, kOp, str_cat(file, ": header is not valid JSON: ", printable(e.what(), 160)));
  }
}

StringMap parse_string_map(const json& object, const std::string& file) {
  LOWBIT_CHECK(object.is_object(), io, kOp, file, ": __metadata__ must be an object of strings");
  StringMap r;
  for (const auto& [key, value] : object.items()) {
    LOWBIT_CHECK(value.is_string(), io, kOp, file, ": metadata must be strings (key ", printable(key), ")");
    r[key] = value.get<std::string>();
  }
  return r;
}

/// Non-negative integers of a JSON array.
std::vector<int64_t> parse_sizes(const json& entry, const char* key, const std::string& where) {
  const auto it = entry.find(key);
  LOWBIT_CHECK(it != entry.end() && it->is_array(), io, kOp, where, ": ", key, " must be a list");
  std::vector<int64_t> r;
  for (const json& v : *it) {
    LOWBIT_CHECK(v.is_number_unsigned() && v.get<uint64_t>() < (uint64_t(1) << 62), io, kOp, where, ": ", key,
                 " must hold non-negative integers");
    r.push_back(v.get<int64_t>());
  }
  return r;
}

SafetensorsReader::Entry parse_entry(const json& entry, const std::string& where, uint64_t data_begin) {
  LOWBIT_CHECK(entry.is_object() && entry.size() == 3, io, kOp, where,
               ": entry must hold dtype, shape and data_offsets");
  const auto dtype = entry.find("dtype");
  LOWBIT_CHECK(dtype != entry.end() && dtype->is_string(), io, kOp, where, ": dtype must be a string");
  const std::string name = dtype->get<std::string>();
  const auto type = find_type(name);
  LOWBIT_CHECK(type, io, kOp, where, ": unknown dtype ", printable(name));
  const auto dims = parse_sizes(entry, "shape", where);
  SafetensorsReader::Entry e{*type, {}, 0, 0};
  e.shape = checked_shape(dims.data(), dims.size(), *type, where, e.bytes);
  const auto offsets = parse_sizes(entry, "data_offsets", where);
  LOWBIT_CHECK(offsets.size() == 2 && offsets[0] <= offsets[1], io, kOp, where,
               ": data_offsets must be [begin, end]");
  LOWBIT_CHECK(e.bytes == uint64_t(offsets[1] - offsets[0]), io, kOp, where, ": shape ", e.shape.str(), " ",
               name, " does not fill its ", offsets[1] - offsets[0], " bytes");
  e.offset = data_begin + uint64_t(offsets[0]);
  return e;
}

std::string index_text(const std::string& path) {
  const ByteSource s = ByteSource::open(path);
  LOWBIT_CHECK(s.size() <= kMaxHeader, io, kOp, path, ": index is longer than ", kMaxHeader, " bytes");
  return s.read_string(0, s.size());
}

TensorFile load_sharded(const std::string& path) {
  const json index = parse_json(index_text(path), path, 8);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  LOWBIT_CHECK(index.is_object() && map != index.end() && map->is_object(), io, kOp, path, ": no weight_map");
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [name, file] : map->items()) {
    LOWBIT_CHECK(file.is_string(), io, kOp, path, ": weight_map must hold file names");
    const auto shard = file.get<std::string>();
    LOWBIT_CHECK(
        !shard.empty() && shard.find('/') == std::string::npos && shard.find('\0') == std::string::npos, io,
        kOp, path, ": shard must be a file beside the index (got ", printable(shard), ")");
    shards[shard].push_back(name);
  }
  TensorFile r;
  for (const auto& [shard, names] : shards) {
    const SafetensorsReader reader((std::filesystem::path(path).parent_path() / shard).string());
    for (const std::string& name : names) r.tensors[name] = reader.load(name);
    r.metadata.insert(reader.metadata().begin(), reader.metadata().end());
  }
  return r;
}

}  // namespace

SafetensorsReader::SafetensorsReader(ByteSource source) : source_(std::move(source)) {
  const std::string& file = source_.name();
  LOWBIT_CHECK(source_.size() >= 8, io, kOp, file, ": too short for a safetensors file (", source_.size(),
               " bytes)");
  const uint64_t header = source_.read_le<uint64_t>(0);
  LOWBIT_CHECK(header <= kMaxHeader && header <= source_.size() - 8, io, kOp, file,
               ": not a safetensors file or truncated (header of ", header, " bytes in a file of ",
               source_.size(), ")");
  const json root = parse_json(source_.read_string(8, header), file, 4);
  LOWBIT_CHECK(root.is_object(), io, kOp, file, ": header must be a JSON object");
  std::vector<std::pair<uint64_t, uint64_t>> spans;
  for (const auto& [name, value] : root.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_string_map(value, file);
      continue;
    }
    Entry e = parse_entry(value, str_cat(file, ": tensor ", printable(name)), 8 + header);
    spans.emplace_back(e.offset, e.offset + e.bytes);
    entries_.emplace(name, std::move(e));
  }
  std::sort(spans.begin(), spans.end());
  uint64_t end = 8 + header;
  for (const auto& [first, last] : spans) {
    LOWBIT_CHECK(first == end, io, kOp, file,
                 ": tensors must follow each other without gap or overlap (byte ", first, " after ", end,
                 ")");
    end = last;
  }
  LOWBIT_CHECK(end == source_.size(), io, kOp, file, ": truncated or with trailing bytes (header describes ",
               end, " bytes, file has ", source_.size(), ")");
}

Tensor SafetensorsReader::load(const std::string& name) const {
  const auto it = entries_.find(name);
  LOWBIT_CHECK(it != entries_.end(), io, kOp, source_.name(), ": no tensor ", printable(name));
  const Entry& e = it->second;
  return read_raw(e.type, e.shape, source_, e.offset, str_cat(source_.name(), ": tensor ", printable(name)));
}

TensorFile load_safetensors(ByteSource source) {
  const SafetensorsReader reader(std::move(source));
  TensorFile r{{}, reader.metadata()};
  for (const auto& [name, entry] : reader.entries()) r.tensors[name] = reader.load(name);
  return r;
}

TensorFile load_safetensors(const std::string& path) {
  return path.ends_with(".index.json") ? load_sharded(path) : load_safetensors(ByteSource::open(path));
}

void save_safetensors(const std::string& path, const TensorMap& tensors, const StringMap& metadata) {
  std::vector<std::pair<std::string, Tensor>> order;
  for (const auto& [name, t] : tensors) {
    LOWBIT_CHECK(t.defined() && name != "__metadata__", value, kOp,
                 "tensor cannot be written: ", printable(name));
    order.emplace_back(name, t);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return dtype_size(a.second.dtype()) > dtype_size(b.second.dtype());
  });
  json root = json::object();
  root["__metadata__"] = metadata;
  if (!metadata.count("format")) root["__metadata__"]["format"] = "pt";
  uint64_t offset = 0;
  for (const auto& [name, t] : order) {
    const uint64_t end = offset + t.bytes();
    root[name] = {{"dtype", kTypeNames[int(raw_type(t.dtype()))]},
                  {"shape", std::vector<int64_t>(t.shape().begin(), t.shape().end())},
                  {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string header;
  try {
    header = root.dump();
  } catch (const json::exception&) {
    fail(ErrorKind::value, kOp, "names and metadata must be valid UTF-8");
  }
  header.resize((header.size() + 7) / 8 * 8, ' ');
  AtomicFile out(path);
  const uint64_t length = header.size();
  out.write(&length, sizeof length);
  out.write(header);
  for (const auto& [name, t] : order) {
    const Tensor packed = t.to(Device{}).packed();
    out.write(packed.view().data, packed.bytes());
  }
  out.commit();
}

}  // namespace lowbit
