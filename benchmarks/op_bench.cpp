// Times the perf part of every op case of the tests (tests/support/op_case.h):
//
//   op_bench [--filter=REGEX] [--warm] [--seconds=0.5] [--threads=N] [--json=FILE]
//
// Per case and direction: three warm-ups, then runs until `seconds` of measured time; median, 10th and 90th
// percentile; caches are flushed between runs unless --warm. "of copy" is the share of the bandwidth that a
// parallel copy reaches in the same process.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <regex>

#include "autograd/core/variable.h"
#include "lowbit_version.h"
#include "tensor/core/context.h"
#include "tensor/core/thread_pool.h"
#include "tests/support/golden.h"
#include "tests/support/op_case.h"

namespace lowbit {
namespace {

using nlohmann::json;
using test::InputSpec;
using test::OpCase;

struct Options {
  std::string filter = ".*", json_path;
  bool warm = false;
  double seconds = 0.5;
};

/// Evicts everything: writes a buffer larger than the last-level cache.
class CacheFlusher {
 public:
  CacheFlusher() {
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    bytes_.resize(std::clamp<size_t>(size_t(std::max(l3, 0L)) * 2, size_t(64) << 20, size_t(256) << 20));
  }
  void operator()() {
    ++round_;
    parallel_for(int64_t(bytes_.size() / 64), 1 << 14, [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) bytes_[size_t(i) * 64] = round_;
    });
  }

 private:
  std::vector<unsigned char> bytes_;
  unsigned char round_ = 0;
};

struct Timing {
  double median, p10, p90;  // seconds
  int64_t runs;
};

template <class F>
Timing measure(const Options& o, F&& f) {
  static CacheFlusher flush;
  using Clock = std::chrono::steady_clock;
  std::vector<double> t;
  double total = 0;
  for (int run = -3; run < 5 || total < o.seconds; ++run) {
    if (!o.warm) flush();
    const auto start = Clock::now();
    f();
    const double s = std::chrono::duration<double>(Clock::now() - start).count();
    if (run >= 0) t.push_back(s), total += s;
  }
  std::sort(t.begin(), t.end());
  const auto at = [&](double q) { return t[size_t(q * double(t.size() - 1) + 0.5)]; };
  return {at(0.5), at(0.1), at(0.9), int64_t(t.size())};
}

/// Bytes per second, read plus written, of a copy too large for the caches.
double copy_bandwidth(const Options& o) {
  const Tensor from = Tensor::zeros({int64_t(16) << 20});  // 64 MiB
  Tensor to = Tensor::zeros(from.shape());
  return 2.0 * double(from.bytes()) / measure(o, [&] { to.copy_from(from); }).median;
}

json report(const std::string& name, const Timing& t, double bytes, double flops, double copy) {
  const double rate = bytes / t.median;
  std::printf("%-52s %9.1f %9.1f %9.1f %8.2f %7.0f%% %9.2f\n", name.c_str(), t.median * 1e6, t.p10 * 1e6,
              t.p90 * 1e6, rate / 1e9, 100 * rate / copy, flops / t.median / 1e9);
  std::fflush(stdout);
  return {{"name", name},
          {"median_us", t.median * 1e6},
          {"p10_us", t.p10 * 1e6},
          {"p90_us", t.p90 * 1e6},
          {"runs", t.runs},
          {"bytes", bytes},
          {"gb_per_s", rate / 1e9},
          {"share_of_copy", rate / copy},
          {"gflop_per_s", flops / t.median / 1e9}};
}

void bench_case(const std::string& suite, const OpCase& c, const Options& o, double copy, json& results) {
  const std::string name = suite + "/" + c.name;
  if (c.perf.inputs.empty() || !std::regex_search(name, std::regex(o.filter))) return;
  const std::vector<Tensor> in = test::make_inputs(c, c.perf.inputs);
  std::vector<Variable> v;
  double read = 0, differentiable = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    const bool grad = c.perf.inputs[i].differentiable && is_float(in[i].dtype());
    v.emplace_back(in[i], grad);
    read += double(in[i].bytes());
    if (grad) differentiable += double(in[i].bytes());
  }
  Variable y;
  const auto forward = [&] {
    NoGrad off;
    y = c.fn(v);
  };
  forward();
  const double bytes = c.perf.bytes > 0 ? c.perf.bytes : read + double(y.data().bytes());
  results.push_back(report(name + ".fwd", measure(o, forward), bytes, c.perf.flops, copy));
  if (c.gradient == test::Gradient::none) return;
  y = c.fn(v);
  const Tensor gy = test::fill("gy", y.shape(), 0, 1);
  const auto backward = [&] {
    for (const Variable& x : v) x.zero_grad();
    y.backward(gy, true);
  };
  const double back =
      c.perf.backward_bytes > 0 ? c.perf.backward_bytes : double(gy.bytes()) + 2 * differentiable;
  results.push_back(report(name + ".bwd", measure(o, backward), back, 2 * c.perf.flops, copy));
}

std::string processor() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

int run(const Options& o) {
  const double copy = copy_bandwidth(o);
  std::printf("%s, %d threads, copy %.1f GB/s (read + write)%s\n", processor().c_str(), threads(), copy / 1e9,
              o.warm ? ", warm caches" : "");
  std::printf("%-52s %9s %9s %9s %8s %8s %9s\n", "case", "median us", "p10", "p90", "GB/s", "of copy",
              "GFLOP/s");
  json results = json::array();
  for (const test::RegisteredCase& r : test::registered_op_cases())
    bench_case(r.suite, r.op, o, copy, results);
  LOWBIT_CHECK(!results.empty(), usage, "op_bench", "no case matches --filter (got ", o.filter, ")");
  if (o.json_path.empty()) return 0;
  const json all{{"benchmark", "op_bench"},
                 {"machine", processor()},
                 {"threads", threads()},
                 {"compiler", __VERSION__},
                 {"revision", LOWBIT_GIT_DESCRIBE},
                 {"copy_gb_per_s", copy / 1e9},
                 {"warm", o.warm},
                 {"results", results}};
  std::ofstream out(o.json_path);
  out << all.dump(1) << "\n";
  out.close();
  LOWBIT_CHECK(bool(out), run, "op_bench", "cannot write the result (got --json=", o.json_path, ")");
  return 0;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i], value = a.substr(std::min(a.size(), a.find('=') + 1));
    if (a == "--warm")
      o.warm = true;
    else if (a.starts_with("--filter="))
      o.filter = value;
    else if (a.starts_with("--json="))
      o.json_path = value;
    else if (a.starts_with("--seconds="))
      o.seconds = std::strtod(value.c_str(), nullptr);
    else if (a.starts_with("--threads="))
      set_threads(std::atoi(value.c_str()));
    else
      fail(ErrorKind::usage, "op_bench",
           "options are --filter=REGEX --warm --seconds=S --threads=N --json=FILE (got " + a + ")");
  }
  return o;
}

}  // namespace
}  // namespace lowbit

int main(int argc, char** argv) {
  try {
    return lowbit::run(lowbit::parse(argc, argv));
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 2;
  }
}
