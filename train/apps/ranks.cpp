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

}  // namespace

int run_as_rank(const Options& given, const std::function<int(const Options&, Communicator&)>& f) {
  const Launch l =
      find_launch(int(given.integer("rank")), int(given.integer("world-size")),
                  int(given.integer("local-rank")), [](const char* n) { return std::getenv(n); });
  Options o = given;
  choose_gpu(o, l);
  static Communicator* open = nullptr;  // that of a verb that runs others
  if (open) {
    const int code = f(o, *open);
    barrier(*open);  // what rank 0 has written is there for the next verb
    return code;
  }
  const std::string folder = find_option("output", o.verb().mask) ? o.text("output") : ".";
  const auto c = open_communicator(l, run_device(o), o.seconds("rank-timeout"), folder);
  if (c->size() == 1) return f(o, *c);
  if (o.integer("threads") == 0) set_threads(threads_of_rank(*c, threads()));
  int code = kExitFailure;
  open = c.get();
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
