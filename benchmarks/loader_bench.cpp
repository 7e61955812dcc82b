// Images per second of the input pipeline: reading, decoding and resizing on one core, then the loader with
// workers.
//
//   loader_bench <data folder> [split] [size] [workers]     e.g.  loader_bench data/imagenet train 224 2
//
// One JSON line for each measurement on standard output, a table on standard error. img/s is by the clock,
// img/s/core by the processor time spent, which other load on the machine does not touch.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "data/core/loader.h"
#include "data/image/image_folder.h"
#include "tensor/core/error.h"
#include "tensor/core/thread_pool.h"

namespace {

using namespace lowbit;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Processor time: what a core does in a second, whatever else runs on the machine.
double cpu_seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

/// Everything a stage works on, made before it is timed.
struct Corpus {
  ImageList list;
  std::vector<std::vector<uint8_t>> encoded;
  std::vector<Image> decoded;
};

Corpus load_corpus(const std::string& root, const std::string& split) {
  Corpus c{open_image_split(root, split), {}, {}};
  constexpr size_t kImages = 200;  // enough to average over sizes, little enough to hold decoded
  c.list.paths.resize(std::min(c.list.paths.size(), kImages));
  c.list.labels.resize(c.list.paths.size());
  for (const std::string& path : c.list.paths) {
    c.encoded.emplace_back();
    read_file(root + "/" + path, c.encoded.back());
    decode_image(c.encoded.back(), path, c.decoded.emplace_back());
  }
  return c;
}

void report(const std::string& stage, const std::string& decoder, int workers, double rate, double per_core) {
  std::printf(
      "{\"stage\": \"%s\", \"decoder\": \"%s\", \"workers\": %d, \"images_per_s\": %.1f, "
      "\"images_per_s_per_core\": %.1f}\n",
      stage.c_str(), decoder.c_str(), workers, rate, per_core);
  std::fprintf(stderr, "%-40s %-14s %8d %12.1f %12.1f %10.3f\n", stage.c_str(), decoder.c_str(), workers,
               rate, per_core, 1e3 / per_core);
}

/// Median over five passes of the images per second of f(image number) on this thread.
void time_stage(const std::string& stage, const std::string& decoder, size_t images,
                const std::function<void(size_t)>& f) {
  std::vector<double> rates, per_core;
  for (int pass = 0; pass < 6; ++pass) {
    const auto begin = Clock::now();
    const double cpu = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
    for (size_t i = 0; i < images; ++i) f(i);
    if (pass == 0) continue;  // warms up
    rates.push_back(double(images) / seconds_since(begin));
    per_core.push_back(double(images) / (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - cpu));
  }
  for (auto* v : {&rates, &per_core}) std::nth_element(v->begin(), v->begin() + 2, v->end());
  report(stage, decoder, 0, rates[2], per_core[2]);
}

void time_loader(const Corpus& c, const TransformOptions& transform, int workers) {
  LoaderOptions o;
  o.batch = std::min<int64_t>(32, c.list.size());
  o.workers = workers;
  const auto data = std::make_shared<ImageDataset>(c.list, transform);
  Loader loader(data, std::make_shared<ShuffleSampler>(data->size(), 0), o);
  int64_t images = 0;
  auto begin = Clock::now();
  double cpu = 0;
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    if (epoch == 1) {
      begin = Clock::now();
      cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
    }
    loader.start(epoch);
    while (const auto batch = loader.next()) images += epoch > 0 ? batch->size : 0;
  }
  const double seconds = seconds_since(begin);
  report("loader", decoder_name(), workers, double(images) / seconds,
         double(images) / (cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu));
}

void run(const std::string& root, const std::string& split, int size, int workers) {
  const Corpus c = load_corpus(root, split);
  const size_t n = c.encoded.size();
  std::fprintf(stderr, "%zu images of %s/%s\n%-40s %-14s %8s %12s %12s %10s\n", n, root.c_str(),
               split.c_str(), "stage", "decoder", "workers", "img/s", "img/s/core", "ms/img");
  std::vector<uint8_t> bytes;
  time_stage("read", "-", n, [&](size_t i) { read_file(root + "/" + c.list.paths[i], bytes); });
  Image image, out;
  for (Decoder d : {Decoder::turbo, Decoder::stb}) {
    if (d == Decoder::turbo && !have_turbo()) continue;
    time_stage("decode", decoder_name(d), n, [&](size_t i) { decode_image(c.encoded[i], "", image, d); });
  }
  TransformOptions train, eval;
  train.geometry = TransformOptions::Geometry::random_resized_crop;
  train.size = eval.size = size;
  train.flip = 0.5;
  eval.resize = resize_for_crop_pct(size, 0.875);
  ImageTransform::Scratch scratch;
  for (auto interpolation :
       {TransformOptions::Interpolation::bilinear, TransformOptions::Interpolation::bicubic}) {
    train.interpolation = eval.interpolation = interpolation;
    const std::string filter =
        interpolation == TransformOptions::Interpolation::bilinear ? " bilinear" : " bicubic";
    const auto stage = [&](const std::string& name, const TransformOptions& o) {
      const ImageTransform transform(o);
      time_stage("decode and " + name + filter, decoder_name(), n, [&](size_t i) {
        PhiloxDraws draws(sample_key(0, 0, int64_t(i)));
        const auto choose = [&](int h, int w) { return transform.part(h, w, draws); };
        transform.pixels_of_part(decode_part(c.encoded[i], "", choose, image), draws, scratch, out);
      });
      time_stage(name + filter, "-", n, [&](size_t i) {
        PhiloxDraws draws(sample_key(0, 0, int64_t(i)));
        transform.pixels(c.decoded[i].view(), draws, scratch, out);
      });
    };
    stage("random resized crop", train);
    stage("resize, center crop", eval);
  }
  std::vector<float> chw(size_t(size) * size_t(size) * 3);
  time_stage("normalise", "-", n, [&](size_t) { normalize_chw(out, train.normalization, chw.data()); });
  for (int w = 0; w <= workers; ++w) time_loader(c, train, w);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 5) {
    std::fprintf(stderr, "usage: loader_bench <data folder> [split] [size] [workers]\n");
    return 2;
  }
  enable_flush_to_zero();
  try {
    run(argv[1], argc > 2 ? argv[2] : "train", argc > 3 ? std::stoi(argv[3]) : 224,
        argc > 4 ? std::stoi(argv[4]) : 2);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
