#include "train/step/build.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "data/core/synthetic.h"
#include "data/image/image_folder.h"
#include "data/soft_label/replay_dataset.h"
#include "quant/scheme/scheme.h"
#include "train/config/device.h"

namespace lowbit {
namespace {

/// `limit` samples spread evenly over the list (files are sorted by class, so over the classes too).
std::vector<int64_t> spread(int64_t n, int64_t limit) {
  const int64_t count = limit > 0 ? std::min(limit, n) : n;
  std::vector<int64_t> chosen(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) chosen[size_t(i)] = i * n / count;
  return chosen;
}

/// A fixed choice of samples in an order that (seed, epoch) determine.
class ShuffledSubset final : public Sampler {
 public:
  ShuffledSubset(std::vector<int64_t> chosen, uint64_t seed)
      : chosen_(std::move(chosen)), order_(int64_t(chosen_.size()), seed) {}
  int64_t size() const override { return order_.size(); }
  std::vector<int64_t> epoch(int64_t e) const override {
    std::vector<int64_t> order = order_.epoch(e);
    for (int64_t& i : order) i = chosen_[size_t(i)];
    return order;
  }

 private:
  std::vector<int64_t> chosen_;
  ShuffleSampler order_;
};

using Geometry = TransformOptions::Geometry;
using Interpolation = TransformOptions::Interpolation;

Interpolation interpolation(const std::string& name) {
  if (name == "bilinear") return Interpolation::bilinear;
  return name == "random" ? Interpolation::random : Interpolation::bicubic;
}

void statistics(const Options& o, const ImageConfig& c, TransformOptions& t) {
  const std::vector<double> mean = o.reals("mean", 3), std = o.reals("std", 3);
  for (size_t i = 0; i < 3; ++i) {
    t.normalization.mean[i] = o.given("mean") ? float(mean[i]) : c.mean[i];
    t.normalization.std[i] = o.given("std") ? float(std[i]) : c.std[i];
  }
}

std::string numbers(const float (&v)[3]) {
  std::string s;
  for (float x : v) {
    char text[32];
    s.append(s.empty() ? 0 : 1, ',').append(text, std::to_chars(text, text + sizeof text, x).ptr);
  }
  return s;
}

TransformOptions eval_transform(const Options& o, const ImageConfig& c) {
  TransformOptions t;
  t.size = int(c.image_size);
  t.interpolation = interpolation(o.text("interpolation"));
  t.resize = o.real("crop-pct") > 0 ? resize_for_crop_pct(t.size, o.real("crop-pct")) : 0;
  statistics(o, c, t);
  return t;
}

TransformOptions train_transform(const Options& o, const ImageConfig& c) {
  if (o.text("augment") == "none") return eval_transform(o, c);
  TransformOptions t;
  t.size = int(c.image_size);
  t.interpolation = interpolation(o.text("train-interpolation"));
  t.flip = o.real("hflip"), t.flip_vertical = o.real("vflip");
  if (!o.text("aa").empty())
    t.rand_augment = RandAugmentPolicy::parse(o.text("aa"));
  else
    t.color_jitter = o.real("color-jitter");
  if (o.text("augment") == "pad") {
    t.geometry = Geometry::random_crop;
    t.pad = int(o.integer("pad"));
    t.resize = t.size;
  } else {
    t.geometry = Geometry::random_resized_crop;
    const std::vector<double> scale = o.reals("scale", 2), ratio = o.reals("ratio", 2);
    LOWBIT_CHECK(scale[0] <= scale[1] && ratio[0] <= ratio[1], usage, "",
                 "--scale and --ratio take two numbers LO,HI with LO <= HI");
    std::copy(scale.begin(), scale.end(), t.scale);
    std::copy(ratio.begin(), ratio.end(), t.ratio);
  }
  statistics(o, c, t);
  return t;
}

BatchAugmentOptions batch_augment(const Options& o, const ImageConfig& c) {
  using Mode = MixupOptions::Mode;
  BatchAugmentOptions b;
  b.mixup.mixup = o.real("mixup"), b.mixup.cutmix = o.real("cutmix");
  if (const std::vector<double> range = o.reals("cutmix-minmax"); !range.empty()) {
    LOWBIT_CHECK(range.size() == 2 && range[0] < range[1], usage, "",
                 "--cutmix-minmax takes two numbers LO,HI with LO < HI");
    b.mixup.minmax = {range[0], range[1]};
  }
  b.mixup.probability = o.real("mixup-prob"), b.mixup.switch_probability = o.real("mixup-switch-prob");
  const std::string& mode = o.text("mixup-mode");
  b.mixup.mode = mode == "batch"  ? Mode::batch
                 : mode == "pair" ? Mode::pair
                 : mode == "elem" ? Mode::elem
                                  : Mode::half;
  b.mixup_off_epoch = o.integer("mixup-off-epoch");
  b.erasing.probability = o.real("reprob"), b.erasing.count = int(o.integer("recount"));
  const std::string& fill = o.text("remode");
  b.erasing.mode = fill == "const"  ? ErasingOptions::Mode::constant
                   : fill == "rand" ? ErasingOptions::Mode::channel
                                    : ErasingOptions::Mode::pixel;
  b.smoothing = o.real("smoothing"), b.classes = c.classes, b.seed = uint64_t(o.integer("seed"));
  TransformOptions t;
  statistics(o, c, t);
  b.normalization = t.normalization;
  return b;
}

/// Whether batches arrive as decoded pixels and are finished on the GPU.
bool finish_on_gpu(const Options& o) {
  const std::string& where = o.text("augment-device");
  const bool gpu = run_device(o).is_cuda();
  LOWBIT_CHECK(gpu || where != "cuda", usage, "", "--augment-device cuda needs --device cuda");
  return gpu && where != "cpu";
}

ImageDataset::Form image_form(const Options& o, bool mixed) {
  using Form = ImageDataset::Form;
  return mixed ? Form::pixels : finish_on_gpu(o) ? Form::decoded : Form::normalized;
}

/// The training images as the options want them: with stored labels and crops, to be mixed and erased, or
/// plain.
std::shared_ptr<const Dataset> training_images(const Options& o, const ImageConfig& c, ImageList list,
                                               DataSets& d) {
  const BatchAugmentOptions b = batch_augment(o, c);
  if (o.text("soft-labels").empty()) {
    if (b.on()) d.augment = std::make_shared<BatchAugment>(b);
    return std::make_shared<ImageDataset>(std::move(list), train_transform(o, c), Decoder::auto_,
                                          image_form(o, b.on()));
  }
  LOWBIT_CHECK(
      !b.on() && o.text("aa").empty(), usage, "",
      "--soft-labels belong to stored crops as they are: no --mixup, --cutmix, --reprob, --aa with them");
  ReplayOptions r;
  r.crops = o.integer("crops"), r.size = int(c.image_size), r.classes = c.classes;
  r.filter = o.text("train-interpolation") == "bicubic" && o.given("train-interpolation") ? Filter::bicubic
                                                                                          : Filter::bilinear;
  r.normalization = b.normalization;
  r.decoded = finish_on_gpu(o);
  r.renormalize = o.text("soft-label-type") == "marginal_renorm";
  std::shared_ptr<const LabelStore> labels = open_labels(o.text("soft-labels"));
  d.description += str_cat(soft_label_name(labels->type(), labels->ids_each()), " soft labels, ", r.crops,
                           " crops a visit, ");
  auto all = std::make_shared<ReplayDataset>(std::move(list), std::move(labels), r);
  d.crops = r.crops;
  if (r.crops > 1) d.train_single = all->with_crops(1);
  return all;
}

/// Number of the first validation image: the same however many images are trained on.
constexpr int64_t kSyntheticValidation = 1'000'000'000;

void open_synthetic(const Options& o, const ImageConfig& c, bool with_train, DataSets& d) {
  SyntheticDataset::Options s;
  s.classes = c.classes, s.size = int(c.image_size), s.seed = uint64_t(o.integer("seed"));
  s.samples = with_train ? std::max<int64_t>(o.integer("limit-train"), 0) : 0;
  if (s.samples == 0) s.samples = 1024;
  const int64_t validation = o.integer("limit-val") > 0 ? o.integer("limit-val") : 256;
  LOWBIT_CHECK(
      !with_train || (!batch_augment(o, c).on() && o.text("soft-labels").empty() && o.text("aa").empty()),
      usage, "",
      "--synthetic images are not augmented: leave out --aa, --mixup, --cutmix, --reprob and --soft-labels");
  if (with_train) d.train = std::make_shared<SyntheticDataset>(s);
  s.first = kSyntheticValidation, s.samples = validation;
  d.val = std::make_shared<SyntheticDataset>(s);
  d.classes = c.classes;
  d.description = "synthetic images";
}

bool is_head(const std::string& name) { return name.starts_with("head.") || name.starts_with("head_dist."); }

constexpr const char* kSavedOptions[] = {
    "model", "image-size", "patch-size", "embed-dim",  "depth",      "heads",    "mlp-ratio",    "wbits",
    "abits", "edge-bits",  "quantizer",  "use-offset", "qk-reparam", "crop-pct", "interpolation"};
constexpr const char* kPrefix = "lowbit.";

}  // namespace

ModelPlan model_plan(const Options& o, int64_t classes, int64_t image_size) {
  ModelChanges m;
  m.image_size = image_size > 0 ? image_size : o.integer("image-size"), m.classes = classes;
  m.patch = o.integer("patch-size"), m.width = o.integer("embed-dim"), m.depth = o.integer("depth");
  m.heads = o.integer("heads"), m.mlp_ratio = o.real("mlp-ratio");
  m.qk_reparam = o.flag("qk-reparam");
  if (find_option("drop-path", o.verb().mask)) m.dropout = o.real("drop"), m.drop_path = o.real("drop-path");
  return plan_model(o.text("model"), m);
}

DataSets open_data(const Options& o, const ImageConfig& c, bool with_train) {
  DataSets d;
  if (o.flag("synthetic")) {
    open_synthetic(o, c, with_train, d);
  } else {
    LOWBIT_CHECK(!o.text("data").empty(), usage, "",
                 "--data is required: a folder with train/<class>/<image> and val/<class>/<image>, or use "
                 "--synthetic");
    ImageList val = open_image_split(o.text("data"), o.text("val-split"));
    d.classes = val.classes();
    d.description = str_cat(o.text("data"), ": ", val.classes(), " classes, ");
    if (with_train) {
      ImageList train = open_image_split(o.text("data"), o.text("train-split"));
      d.description += str_cat(train.size(), " training and ");
      ImageConfig trained = c;
      trained.classes = o.integer("num-classes") > 0 ? o.integer("num-classes") : d.classes;
      d.train = training_images(o, trained, std::move(train), d);
    }
    d.description += str_cat(val.size(), " validation images");
    d.val = std::make_shared<ImageDataset>(std::move(val), eval_transform(o, c), Decoder::auto_,
                                           image_form(o, false));
  }
  if (d.train && o.integer("aug-repeats") > 0) {
    LOWBIT_CHECK(o.integer("limit-train") == 0, usage, "", "--aug-repeats does not go with --limit-train");
    d.train_order = std::make_shared<RepeatedSampler>(d.train->size(), o.integer("aug-repeats"),
                                                      uint64_t(o.integer("seed")));
  } else if (d.train)
    d.train_order = std::make_shared<ShuffledSubset>(spread(d.train->size(), o.integer("limit-train")),
                                                     uint64_t(o.integer("seed")));
  d.val_order = std::make_shared<ListSampler>(spread(d.val->size(), o.integer("limit-val")));
  return d;
}

void prepare_batch(Loader::Batch& b, const BatchAugment* augment, int64_t epoch, Device device) {
  if (augment) {
    const BatchAugment::Result r = (*augment)(b.fields[0], b.fields[1], epoch, b.index);
    b.fields = {r.images.to(device), b.fields[1].slice(0, 0, r.images.size(0)).to(device)};
    if (r.targets.defined()) b.fields.push_back(r.targets.to(device));
  } else if (b.fields.size() > 2) {
    const Shape images = b.fields[0].shape();
    const int64_t crops = images[1], n = images[0] * crops;
    const std::vector<int64_t> labels = b.fields[1].to_vector<int64_t>();
    std::vector<int64_t> each;
    for (const int64_t label : labels) each.insert(each.end(), size_t(crops), label);
    b.fields = {b.fields[0].reshape({n, images[2], images[3], images[4]}),
                Tensor::from(std::span<const int64_t>(each), {n}, device),
                b.fields[2].reshape({n, b.fields[2].size(-1)})};
  }
}

StringMap saved_settings(const WeightFile& file) {
  StringMap s;
  for (const auto& [key, value] : file.metadata)
    if (key.starts_with(kPrefix)) s[key.substr(std::string_view(kPrefix).size())] = value;
  const auto head = file.tensors.find("head.weight");
  if (head != file.tensors.end() && head->second.ndim() == 2)
    s["num-classes"] = std::to_string(head->second.size(0));
  return s;
}

bool take_saved_settings(Options& o, const WeightFile& file, bool classes) {
  bool taken = false;
  for (const auto& [name, value] : saved_settings(file)) {
    const bool is_classes = name == "num-classes";
    if (!find_option(name, o.verb().mask) || (is_classes && !classes)) continue;
    o.set(name, value, OptionOrigin::weight_file);
    taken = taken || is_classes;
  }
  return taken;
}

std::string input_statistic(const Options& o, const ImageConfig& c, const std::string& which) {
  TransformOptions t;
  statistics(o, c, t);
  return numbers(which == "mean" ? t.normalization.mean : t.normalization.std);
}

StringMap settings_to_save(const Options& o, const ImageConfig& c) {
  StringMap s;
  for (const char* name : kSavedOptions) s[std::string(kPrefix) + name] = o.raw(name);
  s[std::string(kPrefix) + "num-classes"] = std::to_string(c.classes);
  for (const char* name : {"mean", "std"}) s[std::string(kPrefix) + name] = input_statistic(o, c, name);
  return s;
}

std::vector<std::string> load_into(ImageModel& model, const WeightFile& file, bool replace_head,
                                   bool allow_partial) {
  WeightFile f = file;
  std::vector<std::string> notes;
  const TensorMap own = model.state();
  if (replace_head)
    for (auto it = f.tensors.begin(); it != f.tensors.end();) {
      const auto mine = own.find(it->first);
      const bool drop =
          is_head(it->first) && (mine == own.end() || mine->second.shape() != it->second.shape());
      if (drop)
        notes.push_back(str_cat("new classifier: ", it->first, " ", it->second.shape().str(),
                                " of the file is not used"));
      it = drop ? f.tensors.erase(it) : std::next(it);
    }
  const AdaptTensor adapt = [&](const std::string& name, const Tensor& t, const Shape& target) {
    const Tensor fitted = model.fitted(name, t);
    if (fitted.defined())
      notes.push_back(str_cat(name, " resized from ", t.shape().str(), " to ", target.str()));
    return fitted;
  };
  WeightMatch match = match_weights(own, f, adapt);
  const std::set<std::string> quantizers = quantizer_state(model);
  const auto is_quantizer = [&](const std::string& name) { return quantizers.contains(name); };
  const bool float_file = std::all_of(quantizers.begin(), quantizers.end(),
                                      [&](const std::string& name) { return !match.matched.contains(name); });
  const std::set<std::string> optional = model.optional_state();
  std::erase_if(match.missing, [&](const std::string& name) {
    return optional.contains(name) || (replace_head && is_head(name)) || (float_file && is_quantizer(name));
  });
  require_match(match, file.path, allow_partial);
  model.load(match.matched, false);
  if (!match.complete()) notes.push_back("weights: " + match.summary() + "\n" + match.table());
  for (const std::string& r : match.renamed) notes.push_back("renamed: " + r);
  return notes;
}

}  // namespace lowbit
