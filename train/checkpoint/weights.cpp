#include "train/checkpoint/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>

#include "tensor/io/npy.h"
#include "tensor/io/torch_file.h"

namespace lowbit {
namespace {

using Kind = PyValue::Kind;
constexpr const char* kOp = "weights";
constexpr std::string_view kSections[] = {"state_dict", "model",          "net", "module",
                                          "model_ema",  "state_dict_ema", "ema"};
constexpr std::string_view kPrefixes[] = {"module.", "model.", "state_dict.", "_orig_mod."};

/// Follows the usual wrappers as deep as they go.
const PyValue& find_weights(const PyValue& root, std::string& section) {
  const PyValue* v = &root;
  for (int depth = 0; depth < 4; ++depth) {
    const auto* inner = std::find_if(std::begin(kSections), std::end(kSections), [&](std::string_view s) {
      const PyValue* d = v->find(s);
      return d && d->is(Kind::dict) && !d->items.empty();
    });
    if (inner == std::end(kSections)) break;
    v = v->find(*inner);
    if (!section.empty()) section += '.';
    section += *inner;
  }
  return *v;
}

void load_torch(const ByteSource& source, const WeightOptions& options, WeightFile& w) {
  const TorchFile f(source);
  w.section = options.section;
  const PyValue& v = options.section.empty() ? find_weights(f.root(), w.section)
                                             : torch_section(f.root(), options.section, w.path);
  w.tensors = f.load_all(v);
  if (!f.root().is(Kind::dict)) return;
  for (size_t i = 0; i + 1 < f.root().items.size(); i += 2) {
    const PyValue &key = *f.root().items[i], &value = *f.root().items[i + 1];
    if (key.is(Kind::string) && (value.kind <= Kind::string))
      w.metadata[key.text] = value.is(Kind::string) ? value.text : describe(value);
  }
}

void strip_prefixes(TensorMap& tensors) {
  for (bool again = !tensors.empty(); again;) {
    again = false;
    for (std::string_view prefix : kPrefixes) {
      const bool all = std::all_of(tensors.begin(), tensors.end(), [&](const auto& t) {
        return t.first.size() > prefix.size() && t.first.starts_with(prefix);
      });
      if (!all) continue;
      TensorMap shorter;
      for (auto& [name, t] : tensors) shorter[name.substr(prefix.size())] = std::move(t);
      tensors = std::move(shorter);
      again = true;
    }
  }
}

}  // namespace

const PyValue& torch_section(const PyValue& root, const std::string& path, const std::string& file) {
  const PyValue* v = &root;
  for (size_t at = 0; at <= path.size();) {
    const size_t dot = std::min(path.find('.', at), path.size());
    v = v->find(path.substr(at, dot - at));
    LOWBIT_CHECK(v, io, kOp, file, ": no section ", path);
    at = dot + 1;
  }
  return *v;
}

FileFormat detect_format(const ByteSource& source) {
  if (source.size() >= 6 && source.read_string(0, 6) == "\x93NUMPY") return FileFormat::npy;
  if (TorchFile::recognises(source)) return FileFormat::torch;
  if (ZipReader::recognises(source)) return FileFormat::npz;
  const bool header = source.size() >= 9 && source.read_le<uint64_t>(0) <= source.size() - 8 &&
                      source.read_le<char>(8) == '{';
  LOWBIT_CHECK(header, io, kOp, source.name(),
               ": neither a safetensors, torch, npy nor npz file, or truncated (", source.size(), " bytes)");
  return FileFormat::safetensors;
}

const char* format_name(FileFormat f) {
  static constexpr const char* names[] = {"safetensors", "torch", "npy", "npz"};
  return names[int(f)];
}

WeightFile load_weights(const std::string& path, const WeightOptions& options) {
  WeightFile w;
  w.path = path;
  if (path.ends_with(".index.json")) {
    TensorFile f = load_safetensors(path);
    w.tensors = std::move(f.tensors), w.metadata = std::move(f.metadata);
  } else {
    const ByteSource source = ByteSource::open(path);
    w.format = detect_format(source);
    LOWBIT_CHECK(options.section.empty() || w.format == FileFormat::torch, usage, kOp,
                 "only torch files have sections (got ", path, ")");
    if (w.format == FileFormat::safetensors) {
      TensorFile f = load_safetensors(source);
      w.tensors = std::move(f.tensors), w.metadata = std::move(f.metadata);
    } else if (w.format == FileFormat::torch) {
      load_torch(source, options, w);
    } else if (w.format == FileFormat::npz) {
      w.tensors = load_npz(source);
    } else {
      w.tensors[std::filesystem::path(path).stem().string()] = load_npy(source);
    }
  }
  LOWBIT_CHECK(!w.tensors.empty(), io, kOp, path, ": holds no tensors");
  strip_prefixes(w.tensors);
  if (options.widen)
    for (auto& [name, t] : w.tensors)
      if (t.dtype() == DType::f16 || t.dtype() == DType::bf16) t = t.cast(DType::f32);
  return w;
}

namespace {

struct Rename {
  std::string_view from, to;
};
constexpr Rename kRenames[] = {
    {"head.fc.", "head."},     // timm 0.9+ Swin
    {".mlp.0.", ".mlp.fc1."},  // torchvision's Swin in OFQ's layout
    {".mlp.3.", ".mlp.fc2."},
    {".gamma_1", ".ls1.gamma"},  // DeiT III
    {".gamma_2", ".ls2.gamma"},
    {"LayerNorm.gamma", "LayerNorm.weight"},  // BERT converted from TensorFlow
    {"LayerNorm.beta", "LayerNorm.bias"},
};
/// Computed here, stored elsewhere.
constexpr std::string_view kIgnored[] = {"relative_position_index", "attn_mask", "position_ids",
                                         "num_batches_tracked"};
constexpr std::string_view kFused = ".attn.qkv.",
                           kParts[] = {".attn.proj_q.", ".attn.proj_k.", ".attn.proj_v."};
/// What is one tensor in files and three in models, thirds of its rows.
struct Thirds {
  std::string_view fused, parts[3];
};
constexpr Thirds kThirds[] = {
    {kFused, {kParts[0], kParts[1], kParts[2]}},
    {kFused,
     {".attn.q.", ".attn.k.", ".attn.v."}},  // query-key reparameterization, without biases of q and k
    {".attn.move_qkv_b4.", {".attn.move_q_b4.", ".attn.move_k_b4.", ".attn.move_v_b4."}},  // OFQ's shift
};

std::string replaced(const std::string& s, std::string_view from, std::string_view to) {
  const size_t at = s.find(from);
  return at == std::string::npos ? "" : s.substr(0, at) + std::string(to) + s.substr(at + from.size());
}

/// timm 0.9 moved a Swin stage's patch merging from its end to the start of the next: layers.1.downsample →
/// layers.0.
std::string earlier_downsample(const std::string& name) {
  if (!name.starts_with("layers.") || name.size() < 9 || name.compare(8, 12, ".downsample.") != 0 ||
      name[7] < '1' || name[7] > '9')
    return "";
  std::string r = name;
  --r[7];
  return r;
}

/// timm 0.9 has no downsample in layers.0; then all of them move.
bool has_late_downsample(const TensorMap& t) {
  return std::none_of(t.begin(), t.end(),
                      [](const auto& e) { return e.first.starts_with("layers.0.downsample."); }) &&
         std::any_of(t.begin(), t.end(), [](const auto& e) { return !earlier_downsample(e.first).empty(); });
}

class Matcher {
 public:
  Matcher(const TensorMap& model, const WeightFile& file, const AdaptTensor& adapt)
      : model_(model), adapt_(adapt) {
    bool late = has_late_downsample(file.tensors) && !has_late_downsample(model);
    for (const auto& [name, t] : file.tensors) {
      const std::string moved = late ? earlier_downsample(name) : "";
      if (!moved.empty() && model.count(moved))
        take(moved, t, name);
      else if (model.count(name))
        take(name, t, name);
      else if (!renamed(name, t) && !split(name, t) && !fuse(name, file.tensors) && !ignored(name))
        result_.unexpected.push_back(name);
    }
    for (const auto& [name, t] : model)
      if (!seen_.count(name) && !added(name, t)) result_.missing.push_back(name);
  }
  WeightMatch take_result() { return std::move(result_); }

 private:
  void take(const std::string& name, const Tensor& t, const std::string& from) {
    const Tensor& target = model_.at(name);
    seen_.insert(name);
    Tensor fitted = t;
    const bool same_values = t.numel() == target.numel() && t.numel() == 1;  // 0-dim against one element
    if (!(t.shape() == target.shape())) {
      if (same_values)
        fitted = t.reshape(target.shape());
      else
        fitted = adapt_ ? adapt_(name, t, target.shape()) : Tensor{};
    }
    if (!fitted.defined() || !(fitted.shape() == target.shape())) {
      result_.mismatched.push_back({name, target.shape(), t.shape()});
      return;
    }
    result_.matched[name] = fitted.cast(target.dtype());
    if (name != from) result_.renamed.push_back(from + " -> " + name);
  }

  bool renamed(const std::string& name, const Tensor& t) {
    for (const Rename& r : kRenames) {
      const std::string to = replaced(name, r.from, r.to);
      if (to.empty() || !model_.count(to)) continue;
      take(to, t, name);
      return true;
    }
    return false;
  }

  /// blocks.0.attn.qkv.weight of the file → proj_q, proj_k, proj_v of the model, and so on.
  bool split(const std::string& name, const Tensor& t) {
    if (t.ndim() < 1 || t.size(0) % 3 != 0) return false;
    const int64_t rows = t.size(0) / 3;
    for (const Thirds& thirds : kThirds) {
      if (!model_.count(replaced(name, thirds.fused, thirds.parts[2]))) continue;
      for (int i = 0; i < 3; ++i)
        if (const std::string to = replaced(name, thirds.fused, thirds.parts[i]); model_.count(to))
          take(to, t.slice(0, i * rows, (i + 1) * rows).packed(), name);
      return true;
    }
    return false;
  }

  /// proj_q, proj_k, proj_v of the file → attn.qkv of the model.
  bool fuse(const std::string& name, const TensorMap& file) {
    for (std::string_view part : kParts) {
      const std::string fused = replaced(name, part, kFused);
      if (fused.empty() || !model_.count(fused)) continue;
      if (seen_.count(fused)) return true;  // done with the first of the three
      std::array<const Tensor*, 3> parts{};
      for (size_t i = 0; i < 3; ++i) {
        const auto it = file.find(replaced(name, part, kParts[i]));
        if (it == file.end()) return false;
        parts[i] = &it->second;
      }
      const Tensor& q = *parts[0];
      for (const Tensor* p : parts)
        if (q.ndim() < 1 || !(p->shape() == q.shape()) || p->dtype() != q.dtype()) return false;
      Shape shape = q.shape();
      shape.set(0, 3 * q.size(0));
      Tensor all = Tensor::empty(shape, q.dtype());
      for (int i = 0; i < 3; ++i)
        all.slice(0, i * q.size(0), (i + 1) * q.size(0)).copy_from(*parts[size_t(i)]);
      take(fused, all, name);
      return true;
    }
    return false;
  }

  /// OFQ's quantized Swin has a bias in its merging layers where float files have none: it starts at zero.
  bool added(const std::string& name, const Tensor& t) {
    constexpr std::string_view bias = ".reduction.bias";
    if (!name.ends_with(bias) || !seen_.count(name.substr(0, name.size() - 4) + "weight")) return false;
    result_.matched[name] = Tensor::zeros(t.shape(), t.dtype());
    result_.renamed.push_back("zeros -> " + name);
    return true;
  }

  bool ignored(const std::string& name) const {
    // VVTQ's Swin has a quantizer that it never calls.
    if (name.starts_with("patch_embed.quant.") && model_.count("patch_embed.norm.weight")) return true;
    return std::any_of(std::begin(kIgnored), std::end(kIgnored),
                       [&](std::string_view end) { return name.ends_with(end); });
  }

  const TensorMap& model_;
  const AdaptTensor& adapt_;
  WeightMatch result_;
  std::set<std::string> seen_;
};

}  // namespace

WeightMatch match_weights(const TensorMap& model, const WeightFile& file, const AdaptTensor& adapt) {
  return Matcher(model, file, adapt).take_result();
}

std::string WeightMatch::summary() const {
  return str_cat(missing.size(), " missing, ", unexpected.size(), " unexpected, ", mismatched.size(),
                 " of another shape");
}

std::string WeightMatch::examples() const {
  std::string s;
  const auto add = [&](const std::string& text) { s += (s.empty() ? "" : ", ") + text; };
  if (!missing.empty()) add("no " + printable(missing[0], 80));
  if (!unexpected.empty()) add("unexpected " + printable(unexpected[0], 80));
  if (!mismatched.empty())
    add(str_cat(printable(mismatched[0].name, 80), " ", mismatched[0].file.str(), " where the model has ",
                mismatched[0].model.str()));
  return s;
}

std::string WeightMatch::table() const {
  std::ostringstream s;
  for (const std::string& n : missing) s << "missing     " << printable(n, 200) << "\n";
  for (const std::string& n : unexpected) s << "unexpected  " << printable(n, 200) << "\n";
  for (const Mismatch& m : mismatched)
    s << "mismatched  " << printable(m.name, 200) << "  model " << m.model.str() << "  file " << m.file.str()
      << "\n";
  return s.str();
}

void require_match(const WeightMatch& match, const std::string& path, bool allow_partial) {
  LOWBIT_CHECK(!match.matched.empty(), io, kOp, path, " does not fit the model: no tensor in common (",
               match.examples(), ")");
  LOWBIT_CHECK(match.complete() || allow_partial, io, kOp, path,
               " does not fit the model: ", match.examples(), " (", match.summary(),
               "; --allow-partial loads what fits and lists the rest)");
}

}  // namespace lowbit
