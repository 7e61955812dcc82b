#include "train/checkpoint/tools.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iomanip>
#include <limits>

#include "tensor/io/npy.h"
#include "tensor/io/torch_file.h"

namespace lowbit {
namespace {

using Kind = PyValue::Kind;

/// Columns of text, the last one not padded.
class Table {
 public:
  void row(std::vector<std::string> cells) {
    for (size_t i = 0; i < cells.size(); ++i) {
      if (width_.size() <= i) width_.push_back(0);
      width_[i] = std::max(width_[i], cells[i].size());
    }
    rows_.push_back(std::move(cells));
  }
  std::string str() const {
    std::ostringstream s;
    for (const auto& r : rows_)
      for (size_t i = 0; i < r.size(); ++i) {
        if (i + 1 == r.size())
          s << r[i] << "\n";
        else
          s << std::left << std::setw(int(width_[i] + 2)) << r[i];
      }
    return s.str();
  }

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> width_;
};

std::string number(double v) {
  std::ostringstream s;
  s << std::setprecision(6) << v;
  return s.str();
}

std::vector<double> doubles(const Tensor& t) { return t.cast(DType::f64).to_vector<double>(); }

std::string value_summary(const Tensor& t) {
  double low = INFINITY, high = -INFINITY, sum = 0;
  int64_t finite = 0;
  for (double v : doubles(t)) {
    if (!std::isfinite(v)) continue;
    low = std::min(low, v), high = std::max(high, v), sum += v;
    ++finite;
  }
  if (finite == 0) return t.numel() ? "no finite value" : "empty";
  std::string r = str_cat("min ", number(low), " max ", number(high), " mean ", number(sum / double(finite)));
  if (finite != t.numel()) r += str_cat(" non-finite ", t.numel() - finite);
  return r;
}

/// Rows of one listing and its totals.
struct Listing {
  explicit Listing(bool values) : values(values) {}
  bool values;
  Table table;
  int64_t tensors = 0, elements = 0;
  uint64_t bytes = 0;

  template <class Load>
  void add(const std::string& name, RawType stored, const Shape& shape, Load load) {
    static constexpr const char* names[] = {"f64", "f32", "f16", "bf16", "i64", "i32",     "i16",    "i8",
                                            "u8",  "b8",  "u16", "u32",  "u64", "f8_e4m3", "f8_e5m2"};
    std::vector<std::string> cells = {printable(name, 200), names[int(stored)], shape.str()};
    if (values) cells.push_back(value_summary(load()));
    table.row(std::move(cells));
    ++tensors, elements += shape.numel(), bytes += uint64_t(shape.numel()) * raw_size(stored);
  }
  std::string str() const {
    return str_cat(table.str(), tensors, " tensors, ", elements, " elements, ", bytes, " bytes\n");
  }
};

void list_metadata(const StringMap& metadata, std::ostringstream& out) {
  for (const auto& [key, value] : metadata)
    out << "  " << printable(key) << ": " << printable(value, 160) << "\n";
}

/// Plain values and records, as deep as people care to read.
void list_values(const PyValue& v, const std::string& path, int depth, std::ostringstream& out) {
  if (!v.is(Kind::dict)) return;
  for (size_t i = 0; i + 1 < v.items.size(); i += 2) {
    const PyValue &key = *v.items[i], &value = *v.items[i + 1];
    const std::string name = path + (key.is(Kind::string) ? printable(key.text) : describe(key));
    if (value.is(Kind::tensor) || value.is(Kind::array)) continue;
    out << "  " << name << ": " << describe(value) << "\n";
    if (depth < 1) list_values(value, name + ".", depth + 1, out);
  }
}

void inspect_torch(const ByteSource& source, const InspectOptions& options, Listing& list,
                   std::ostringstream& out) {
  const TorchFile f(source);
  const PyValue& root =
      options.section.empty() ? f.root() : torch_section(f.root(), options.section, source.name());
  out << "  root: " << describe(root) << "\n";
  list_values(root, "", 0, out);
  for (const auto& [name, v] : f.tensors(root)) {
    const TorchTensorRef* ref = v->tensor.get();
    const RawType type = ref ? ref->type : raw_type(v->array->dtype());
    const Shape shape = ref ? Shape(std::span<const int64_t>(ref->shape)) : v->array->shape();
    list.add(name, type, shape, [&, v = v] { return f.tensor(*v); });
  }
}

}  // namespace

std::string inspect_file(const std::string& path, const InspectOptions& options) {
  const ByteSource source = ByteSource::open(path);
  const FileFormat format = detect_format(source);
  LOWBIT_CHECK(options.section.empty() || format == FileFormat::torch, usage, "inspect",
               "only torch files have sections (got ", path, ")");
  std::ostringstream out;
  out << path << ": " << format_name(format) << ", " << source.size() << " bytes\n";
  Listing list(options.values);
  if (format == FileFormat::safetensors) {
    const SafetensorsReader reader(source);
    list_metadata(reader.metadata(), out);
    for (const auto& [name, e] : reader.entries())
      list.add(name, e.type, e.shape, [&, &n = name] { return reader.load(n); });
  } else if (format == FileFormat::torch) {
    inspect_torch(source, options, list, out);
  } else {
    const WeightFile w = load_weights(path, {"", false});
    for (const auto& [name, t] : w.tensors)
      list.add(name, raw_type(t.dtype()), t.shape(), [&, &x = t] { return x; });
  }
  return out.str() + list.str();
}

namespace {

struct Difference {
  double absolute = 0, relative = 0;
  int64_t elements = 0;
};

Difference difference(const Tensor& a, const Tensor& b) {
  Difference d;
  const auto x = doubles(a), y = doubles(b);
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    double absolute = std::fabs(x[i] - y[i]),
           relative = absolute / std::fmax(std::fabs(x[i]), std::fabs(y[i]));
    if (!std::isfinite(absolute)) absolute = relative = std::numeric_limits<double>::infinity();
    d.absolute = std::max(d.absolute, absolute), d.relative = std::max(d.relative, relative);
    ++d.elements;
  }
  return d;
}

}  // namespace

DiffReport diff_files(const std::string& a, const std::string& b) {
  const WeightFile fa = load_weights(a), fb = load_weights(b);
  Table table;
  int64_t same = 0, differ = 0, only_a = 0, only_b = 0;
  Difference worst;
  for (const auto& [name, t] : fa.tensors) {
    const auto it = fb.tensors.find(name);
    if (it == fb.tensors.end()) {
      table.row({"only in first", printable(name, 200), t.shape().str()});
      ++only_a;
    } else if (!(t.shape() == it->second.shape())) {
      table.row(
          {"shape", printable(name, 200), str_cat(t.shape().str(), " against ", it->second.shape().str())});
      ++differ;
    } else if (const Difference d = difference(t, it->second); d.elements > 0) {
      table.row({"values", printable(name, 200),
                 str_cat("max abs ", number(d.absolute), "  max rel ", number(d.relative), "  in ",
                         d.elements, " of ", t.numel())});
      worst.absolute = std::max(worst.absolute, d.absolute),
      worst.relative = std::max(worst.relative, d.relative);
      ++differ;
    } else {
      ++same;
    }
  }
  for (const auto& [name, t] : fb.tensors)
    if (!fa.tensors.count(name))
      table.row({"only in second", printable(name, 200), t.shape().str()}), ++only_b;
  DiffReport r;
  r.equal = differ + only_a + only_b == 0;
  r.text = str_cat(table.str(), same, " tensors equal, ", differ, " differ, ", only_a,
                   " only in the first file, ", only_b, " only in the second");
  r.text += differ ? str_cat("; max abs ", number(worst.absolute), ", max rel ", number(worst.relative), "\n")
                   : "\n";
  return r;
}

namespace {

void cast_floats(TensorMap& tensors, DType dtype) {
  LOWBIT_CHECK(dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16, usage, "convert",
               "type must be f32, f16 or bf16 (got ", dtype_name(dtype), ")");
  for (auto& [name, t] : tensors) {
    if (!is_float(t.dtype()) || t.dtype() == dtype) continue;
    const Tensor narrow = t.cast(dtype);
    if (dtype != DType::f32) {
      const auto before = doubles(t), after = doubles(narrow);
      for (size_t i = 0; i < before.size(); ++i)
        LOWBIT_CHECK(std::isfinite(after[i]) || !std::isfinite(before[i]), usage, "convert", "value ",
                     number(before[i]), " of ", printable(name), " does not fit into ", dtype_name(dtype));
    }
    t = narrow;
  }
}

}  // namespace

std::string convert_file(const std::string& in, const std::string& out, const ConvertOptions& options) {
  const std::string extension = std::filesystem::path(out).extension().string();
  const bool torch = extension == ".pth" || extension == ".pt" || extension == ".bin";
  LOWBIT_CHECK(torch || extension == ".safetensors" || extension == ".npz" || extension == ".npy", usage,
               "convert", "output must end in .safetensors, .pth, .pt, .bin, .npz or .npy (got ", out, ")");
  WeightFile w = load_weights(in, {options.section, false});
  if (options.dtype) cast_floats(w.tensors, *options.dtype);
  if (torch) {
    save_torch(out, w.tensors);
  } else if (extension == ".safetensors") {
    save_safetensors(out, w.tensors, w.metadata);
  } else if (extension == ".npz") {
    save_npz(out, w.tensors);
  } else {
    LOWBIT_CHECK(w.tensors.size() == 1, usage, "convert", ".npy holds one tensor, ", in, " has ",
                 w.tensors.size(), "; use .npz");
    save_npy(out, w.tensors.begin()->second);
  }
  return str_cat(out, ": ", w.tensors.size(), " tensors, ", std::filesystem::file_size(out), " bytes");
}

}  // namespace lowbit
