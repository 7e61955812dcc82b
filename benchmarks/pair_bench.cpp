// One side of benchmarks/compare: answers every line on standard input with one timed round of a named piece
// of work, as a JSON line. benchmarks/peer/pair.py is the other side; the names mean the same there.
//   pair_bench step fp32|lsq|lsq_recompute|vvtq BATCH     a training step of DeiT-T: loss, gradients, AdamW
//   pair_bench lsq ROWS COLUMNS                           a 4-bit quantizer with a learned scale, both
//   directions pair_bench linear T K N                               quantize x and w, integer product, bias;
//   forward only pair_bench images FOLDER                              JPEG to a normalised 224² tensor:
//   crop, resize, flip

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "autograd/core/node.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/linear.h"
#include "data/core/loader.h"
#include "data/image/image_folder.h"
#include "nn/models/vit.h"
#include "quant/ops/lsq.h"
#include "quant/scheme/scheme.h"
#include "tensor/core/thread_pool.h"
#include "tensor/engine/isa.h"
#include "train/apps/run_main.h"
#include "train/config/backward.h"
#include "train/optim/optimizer.h"

namespace lowbit {
namespace {

double clock_seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

Tensor noise(const Shape& s, uint64_t seed) {
  Tensor t = Tensor::empty(s);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.data<float>()[i] = std::sin(float(i % 9973) * 1.7f + float(seed)) + std::cos(float(i % 7919) * 0.9f);
  return t;
}

/// A piece of work and how many times it runs per round.
struct Work {
  std::function<void()> run;
  int repeats = 1;
  double units = 1;  ///< of which one run does so many: images
};

Work training_step(const std::string& variant, int64_t batch) {
  struct State {
    VisionTransformer model{vit_config("deit_tiny_patch16_224"), 0};
    std::unique_ptr<ParameterArena> arena;
    std::unique_ptr<Optimizer> optimizer;
    Variable images;
    Tensor labels;
  };
  auto s = std::make_shared<State>();
  if (variant != "fp32") install(s->model, load_scheme(variant == "vvtq" ? "vvtq" : "lsq", {}));
  s->model.recompute_blocks = variant == "lsq_recompute";
  s->images = Variable(noise({batch, 3, 224, 224}, 1));
  s->labels = Tensor::empty({batch}, DType::i64);
  for (int64_t i = 0; i < batch; ++i) s->labels.data<int64_t>()[i] = i % 1000;
  s->arena = std::make_unique<ParameterArena>(s->model.parameters());
  s->optimizer = std::make_unique<Optimizer>(*s->arena, OptimizerOptions{});
  s->model.train();
  return {[s] {
            s->optimizer->zero_grad();
            cross_entropy(s->model(s->images), s->labels).backward();
            s->optimizer->step(1e-5);
          },
          2, double(batch)};
}

LsqSettings four_bits(bool is_weight) {
  LsqSettings s;
  s.levels = {Levels::of(4, true)};
  s.codes = is_weight ? CodeType::i8 : CodeType::u8;
  return s;
}

Work quantizer(int64_t rows, int64_t columns) {
  const Variable x(noise({rows, columns}, 2), true), scale(Tensor::full({1}, 0.25), true);
  const Tensor gy = noise({rows, columns}, 3);
  return {[=] {
            x.zero_grad(), scale.zero_grad();
            fake_quant_lsq(x, scale, {}, {}, four_bits(false)).backward(gy);
          },
          20, 1};
}

Work linear_forward(int64_t t, int64_t k, int64_t n) {
  const Variable x(noise({t, k}, 4)), w(noise({n, k}, 5)), b(noise({n}, 6)), scale(Tensor::full({1}, 0.25));
  return {[=] {
            const NoGrad off;
            linear(fake_quant_lsq(x, scale, {}, {}, four_bits(false)),
                   fake_quant_lsq(w, scale, {}, {}, four_bits(true)), b);
          },
          20, 1};
}

Work images(const std::string& root) {
  struct State {
    ImageList list;
    std::vector<std::vector<uint8_t>> files;
    Image decoded, out;
    ImageTransform::Scratch scratch;
    std::vector<float> chw = std::vector<float>(224 * 224 * 3);
    TransformOptions options;
  };
  auto s = std::make_shared<State>();
  s->list = open_image_split(root, "train");
  s->options.geometry = TransformOptions::Geometry::random_resized_crop;
  s->options.size = 224, s->options.flip = 0.5;
  s->options.interpolation = TransformOptions::Interpolation::bilinear;
  for (size_t i = 0; i < std::min<size_t>(100, s->list.paths.size()); ++i) {
    s->files.emplace_back();
    read_file(root + "/" + s->list.paths[i], s->files.back());
  }
  return {[s] {
            const ImageTransform transform(s->options);
            for (size_t i = 0; i < s->files.size(); ++i) {
              PhiloxDraws draws(sample_key(0, 0, int64_t(i)));
              const auto choose = [&](int h, int w) { return transform.part(h, w, draws); };
              const ImageView part = decode_part(s->files[i], "", choose, s->decoded);
              transform.pixels_of_part(part, draws, s->scratch, s->out);
              normalize_chw(s->out, s->options.normalization, s->chw.data());
            }
          },
          1, 100};
}

Work work_of(const std::vector<std::string>& a) {
  const auto number = [&](size_t i) { return int64_t(std::stoll(a.at(i))); };
  if (a.at(0) == "step") return training_step(a.at(1), number(2));
  if (a.at(0) == "lsq") return quantizer(number(1), number(2));
  if (a.at(0) == "linear") return linear_forward(number(1), number(2), number(3));
  if (a.at(0) == "images") return images(a.at(1));
  fail(ErrorKind::usage, "pair_bench", "unknown work " + a.at(0));
}

int serve(const std::vector<std::string>& args) {
  LOWBIT_CHECK(args.size() >= 2, usage, "pair_bench", "a piece of work must be named");
  context().backward = fastest_backward({});  // what `lowbit train` takes
  const Work w = work_of(args);
  w.run(), w.run();
  std::printf("{\"ready\": \"lowbit\", \"isa\": \"%s\", \"threads\": %d}\n", isa_name(current_isa()),
              threads());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    std::vector<double> wall, cpu;
    for (int i = 0; i < w.repeats; ++i) {
      const double t = clock_seconds(CLOCK_MONOTONIC), c = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
      w.run();
      wall.push_back(clock_seconds(CLOCK_MONOTONIC) - t);
      cpu.push_back(clock_seconds(CLOCK_PROCESS_CPUTIME_ID) - c);
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::printf("{\"wall\": %.9f, \"cpu\": %.9f, \"peak_rss\": %ld}\n",
                *std::min_element(wall.begin(), wall.end()) / w.units,
                *std::min_element(cpu.begin(), cpu.end()) / w.units, usage.ru_maxrss * 1024);
    std::fflush(stdout);
  }
  return kExitSuccess;
}

}  // namespace
}  // namespace lowbit

int main(int argc, char** argv) {
  return lowbit::exit_code_of([&] { return lowbit::serve({argv + 1, argv + argc}); });
}
