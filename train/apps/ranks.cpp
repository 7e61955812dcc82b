#include "train/apps/ranks.h"

#include <cstdlib>

#include "tensor/core/backend.h"
#include "tensor/core/thread_pool.h"
#include "train/apps/run_main.h"
#include "train/config/device.h"

namespace lowbit {
namespace {

/// Of several GPUs every rank of a machine takes its own, unless --device names one.
void choose_gpu(Options& o, const Launch& l) {
  const std::string& word = o.text("device");
  if (l.size > 1 && (word == "cuda" || word == "auto") && gpu_count() > 1) {
    LOWBIT_CHECK(l.local_rank < gpu_count(), usage, "ranks", "one process for every GPU (got local rank ",
                 l.local_rank, ", ", gpu_count(), " GPUs)");
    o.set("device", str_cat("cuda:", l.local_rank), OptionOrigin::command_line);
  }
}

/// --global-batch says how many images an update has, whoever computes them.
void divide_batch(Options& o, int64_t ranks) {
  if (!find_option("global-batch", o.verb().mask) || o.integer("global-batch") == 0) return;
  const int64_t all = o.integer("global-batch"), each = o.integer("batch-size") * ranks;
  LOWBIT_CHECK(all % each == 0, usage, o.verb().name,
               "--global-batch must be a multiple of --batch-size times processes (got ", all, ", ",
               o.integer("batch-size"), " x ", ranks, ")");
  o.set("accumulate", std::to_string(all / each), OptionOrigin::command_line);
}

}  // namespace

int run_as_rank(const Options& given, const std::function<int(const Options&, Communicator&)>& f) {
  const Launch l =
      find_launch(int(given.integer("rank")), int(given.integer("world-size")),
                  int(given.integer("local-rank")), [](const char* n) { return std::getenv(n); });
  Options o = given;
  choose_gpu(o, l);
  divide_batch(o, l.size);
  const std::string folder = find_option("output", o.verb().mask) ? o.text("output") : ".";
  const auto c = open_communicator(l, run_device(o), o.seconds("rank-timeout"), folder);
  if (c->size() == 1) return f(o, *c);
  if (o.integer("threads") == 0) set_threads(threads_of_rank(*c, threads()));
  int code = kExitFailure;
  try {
    code = f(o, *c);
    barrier(*c);  // a launcher ends all processes when the first leaves with a code
    return code;
  } catch (const RankFailure& e) {
    throw RankFailure(e.code(), str_cat("rank ", c->rank(), " stops: ", e.what()));
  } catch (const Error& e) {
    code = exit_code(e.kind());
    c->fail(code, e.what());
    throw RankFailure(code, str_cat("rank ", c->rank(), ": ", e.what()));
  } catch (const std::exception& e) {
    c->fail(code, e.what());
    throw RankFailure(kExitFailure, str_cat("rank ", c->rank(), ": ", e.what()));
  }
}

}  // namespace lowbit
