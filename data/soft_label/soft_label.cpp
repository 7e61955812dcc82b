#include "data/soft_label/soft_label.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/core/error.h"
#include "tensor/io/torch_file.h"

namespace lowbit {

namespace {

using Kind = PyValue::Kind;
constexpr const char* kOp = "labels";
constexpr int64_t kMaxCrops = 1 << 20;

/// Coordinates, flips and labels: arrays, tensors, or a list of booleans.
Tensor component(const TorchFile& f, const PyValue& v, const std::string& where) {
  if (v.is(Kind::tensor) || v.is(Kind::array)) return f.tensor(v);
  const bool list = (v.is(Kind::list) || v.is(Kind::tuple)) && int64_t(v.items.size()) <= kMaxCrops;
  LOWBIT_CHECK(list, io, kOp, where, ": expected an array, a tensor or a list of booleans (got ", describe(v),
               ")");
  std::vector<float> values;
  for (const PyValue* item : v.items) {
    LOWBIT_CHECK(item->is(Kind::boolean) || item->is(Kind::integer), io, kOp, where,
                 ": a list may hold booleans only (got ", describe(*item), ")");
    values.push_back(float(item->integer != 0));
  }
  return Tensor::from(values, {int64_t(values.size())});
}

std::vector<float> floats(const Tensor& t, const std::string& where) {
  std::vector<float> v = t.cast(DType::f32).to_vector<float>();
  for (const float x : v) LOWBIT_CHECK(std::isfinite(x), io, kOp, where, ": a value is not finite");
  return v;
}

int32_t class_id(float x, const std::string& where) {
  LOWBIT_CHECK(x >= 0 && x < 16777216 && x == std::floor(x), io, kOp, where,
               ": a class id is no whole number (got ", x, ")");
  return int32_t(x);
}

/// [M] ids, [M, 2] one id and its probability, [M, 2, k] ids over probabilities, [M, C] probabilities.
void read_labels(const Tensor& t, const std::string& where, CropLabels& l) {
  const std::vector<float> v = floats(t, where);
  const int64_t m = t.ndim() > 0 ? t.size(0) : 0;
  if (t.ndim() == 1) {
    l.type = SoftLabelType::hard, l.ids_each = 1;
    for (const float x : v) l.ids.push_back(class_id(x, where));
  } else if (t.ndim() == 2 && t.size(1) != 2) {
    l.type = SoftLabelType::full, l.probabilities_each = t.size(1);
    l.probabilities = v;
  } else if (t.ndim() == 2 || (t.ndim() == 3 && t.size(1) == 2)) {
    const int64_t k = t.ndim() == 2 ? 1 : t.size(2);
    l.type = t.ndim() == 2 ? SoftLabelType::smoothing : SoftLabelType::marginal;
    l.ids_each = l.probabilities_each = k;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < k; ++j) {
        l.ids.push_back(class_id(v[size_t(i * 2 * k + j)], where));
        l.probabilities.push_back(v[size_t((i * 2 + 1) * k + j)]);
      }
  } else {
    throw Error(ErrorKind::io, kOp, str_cat(where, ": labels have an unknown form ", t.shape().str()));
  }
  for (const float p : l.probabilities)
    LOWBIT_CHECK(p >= 0 && p <= 1.001F, io, kOp, where, ": a probability lies outside 0 … 1 (got ", p, ")");
}

}  // namespace

std::string soft_label_name(SoftLabelType type, int64_t k) {
  switch (type) {
    case SoftLabelType::full:
      return "ori";
    case SoftLabelType::hard:
      return "hard";
    case SoftLabelType::smoothing:
      return "smoothing";
    case SoftLabelType::marginal:
      return str_cat("marginal_smoothing_k", k);
    case SoftLabelType::marginal_renorm:
      return str_cat("marginal_renorm_k", k);
  }
  return "";
}

std::pair<SoftLabelType, int64_t> soft_label_named(const std::string& name) {
  if (name == "ori") return {SoftLabelType::full, 0};
  if (name == "hard") return {SoftLabelType::hard, 1};
  if (name == "smoothing") return {SoftLabelType::smoothing, 1};
  if (name == "marginal_renorm") return {SoftLabelType::marginal_renorm, 5};
  for (const auto& [prefix, type] : {std::pair{"marginal_smoothing_k", SoftLabelType::marginal},
                                     std::pair{"marginal_renorm_k", SoftLabelType::marginal_renorm}}) {
    const std::string digits = name.starts_with(prefix) ? name.substr(std::string(prefix).size()) : "";
    const bool number = !digits.empty() && digits.size() <= 3 && digits[0] != '0' &&
                        digits.find_first_not_of("0123456789") == std::string::npos;
    if (number) return {type, std::stoll(digits)};
  }
  throw Error(
      ErrorKind::usage, kOp,
      str_cat(
          "soft label type must be ori, hard, smoothing, marginal_smoothing_k5 (any k) or marginal_renorm_k5 "
          "(got ",
          name, ")"));
}

void recover_soft_label(const CropLabels& l, int64_t i, int64_t classes, const std::string& where, float* p) {
  const float* kept = l.probabilities.data() + i * l.probabilities_each;
  if (l.type == SoftLabelType::full) {
    LOWBIT_CHECK(l.probabilities_each == classes, io, kOp, where, ": labels are of ", l.probabilities_each,
                 " classes, the model has ", classes);
    std::copy_n(kept, classes, p);
    return;
  }
  float sum = 0;
  for (int64_t k = 0; k < l.probabilities_each; ++k) sum += kept[k];
  float rest = 0;
  if (l.type == SoftLabelType::smoothing || l.type == SoftLabelType::marginal)
    rest = classes > l.ids_each ? (1 - sum) / float(classes - l.ids_each) : 0;
  std::fill_n(p, classes, rest);
  const float norm = l.type == SoftLabelType::marginal_renorm ? std::max(sum, 1e-12F) : 1;
  for (int64_t k = 0; k < l.ids_each; ++k) {
    const int32_t id = l.ids[size_t(i * l.ids_each + k)];
    LOWBIT_CHECK(id < classes, io, kOp, where, ": class ", id, " of a label, the model has ", classes);
    p[id] = l.type == SoftLabelType::hard ? 1 : kept[k] / norm;
  }
}

void keep_soft_label(std::span<const float> p, CropLabels& l) {
  if (l.type == SoftLabelType::full) {
    l.probabilities.insert(l.probabilities.end(), p.begin(), p.end());
    return;
  }
  std::vector<int32_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  const auto k = std::min<ptrdiff_t>(l.ids_each, std::ssize(p));
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t a, int32_t b) {
    return p[size_t(a)] != p[size_t(b)] ? p[size_t(a)] > p[size_t(b)] : a < b;
  });
  for (ptrdiff_t i = 0; i < k; ++i) {
    l.ids.push_back(order[size_t(i)]);
    if (l.type != SoftLabelType::hard) l.probabilities.push_back(p[size_t(order[size_t(i)])]);
  }
}

CropLabels read_label_file(const std::string& path) {
  const TorchFile f(path);
  const PyValue& root = f.root();
  LOWBIT_CHECK((root.is(Kind::list) || root.is(Kind::tuple)) && root.items.size() == 3, io, kOp, path,
               ": not a soft-label file, which holds [coordinates, flips, labels] (got ", describe(root),
               ")");
  const Tensor coords = component(f, *root.items[0], path), flips = component(f, *root.items[1], path),
               labels = component(f, *root.items[2], path);
  const int64_t boxes = coords.ndim() == 2 && coords.size(1) == 4 ? coords.size(0) : -1;
  const int64_t m = labels.ndim() > 0 ? labels.size(0) : 0;
  // The generator may write more coordinates than labels; only labelled crops count.
  LOWBIT_CHECK(boxes >= m && flips.ndim() == 1 && flips.size(0) >= m && m > 0 && m <= kMaxCrops, io, kOp,
               path, ": coordinates, flips and labels do not belong together (got ", coords.shape().str(),
               ", ", flips.shape().str(), ", ", labels.shape().str(), ")");
  CropLabels l;
  read_labels(labels, path, l);
  const std::vector<float> c = floats(coords, path), flip = floats(flips, path);
  for (int64_t i = 0; i < m; ++i) {
    const float* at = c.data() + 4 * i;
    const bool inside =
        std::fabs(at[0]) <= 2 && std::fabs(at[1]) <= 2 && at[2] > 0 && at[2] <= 2 && at[3] > 0 && at[3] <= 2;
    LOWBIT_CHECK(inside, io, kOp, path, ": crop ", i, " lies far outside the image (got ", at[0], ", ", at[1],
                 ", ", at[2], ", ", at[3], ")");
    l.crops.push_back({at[0], at[1], at[2], at[3], flip[size_t(i)] != 0});
  }
  return l;
}

}  // namespace lowbit
