#pragma once
// How a launcher tells a process which rank it is.

#include <functional>
#include <string>

namespace lowbit {

struct Launch {
  int rank = 0, size = 1;
  int local_rank = 0;  ///< among the ranks of this machine: the number of its GPU
  std::string from;    ///< who said so: "--rank", "torchrun", "Open MPI", "Slurm", "PMI"; empty: one process
  std::string id;      ///< differs from run to run, the same on all ranks; may be empty
};

using GetEnvironment = std::function<const char*(const char* name)>;

/// The first that is there: the given rank, size and local rank (size 0: not given), torchrun's variables,
/// Open MPI's, Slurm's (in a step only: a shell inside an allocation is one process), PMI's (MPICH, Intel
/// MPI). Errors  usage: a rank outside the size, numbers that are none
Launch find_launch(int rank, int size, int local_rank, const GetEnvironment& get);

}  // namespace lowbit
