#include "train/dist/launch.h"

#include <charconv>
#include <cstring>

#include "tensor/core/error.h"

namespace lowbit {
namespace {

/// Variables of one launcher: rank and size make it found; the others may be missing.
struct Source {
  const char *from, *rank, *size, *local_rank;
  const char* only_with;  ///< must be set as well
  std::initializer_list<const char*> id;
};

// Open MPI comes before Slurm: its daemons are started by srun, and what they start inherits a daemon's
// numbers.
const Source kSources[] = {
    {"torchrun",
     "RANK",
     "WORLD_SIZE",
     "LOCAL_RANK",
     nullptr,
     {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"}},
    {"Open MPI",
     "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK",
     nullptr,
     {"PMIX_NAMESPACE"}},
    {"Slurm",
     "SLURM_PROCID",
     "SLURM_STEP_NUM_TASKS",
     "SLURM_LOCALID",
     "SLURM_STEP_ID",
     {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"}},
    {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", nullptr, {"PMI_FD"}},
};

int number(const GetEnvironment& get, const char* name, int fallback) {
  const char* text = get(name);
  if (!text || !*text) return fallback;
  int n = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, n);
  LOWBIT_CHECK(error == std::errc{} && stop == end && n >= 0, usage, "ranks", "$", name,
               " must be a number (got '", text, "')");
  return n;
}

Launch checked(Launch l) {
  LOWBIT_CHECK(l.size > 0 && l.rank >= 0 && l.rank < l.size, usage, "ranks", l.from,
               ": the rank must be below the number of processes (got rank ", l.rank, " of ", l.size, ")");
  return l;
}

}  // namespace

Launch find_launch(int rank, int size, int local_rank, const GetEnvironment& get) {
  if (size > 0) return checked({rank, size, local_rank >= 0 ? local_rank : rank, "--rank", ""});
  for (const Source& s : kSources) {
    if (!get(s.rank) || !get(s.size) || (s.only_with && !get(s.only_with))) continue;
    Launch l{number(get, s.rank, 0), number(get, s.size, 1), 0, s.from, ""};
    l.local_rank = number(get, s.local_rank, l.rank);
    for (const char* name : s.id)
      if (const char* value = get(name)) l.id += std::string(l.id.empty() ? "" : "-") + value;
    return checked(l);
  }
  return {};
}

}  // namespace lowbit
