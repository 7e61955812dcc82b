#include "train/dist/communicator.h"

#include <dlfcn.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "tensor/core/error.h"
#include "tensor/core/plugin.h"
#include "train/config/build_info.h"
#include "train/dist/plugins.h"

namespace lowbit {
namespace {

/// A function of a library beside the program; null and the reason where it is missing.
template <class F>
F* plugin_function(const char* file, const char* name, std::string& why) {
  void* library = open_plugin(file, why);
  auto* f = library ? reinterpret_cast<F*>(dlsym(library, name)) : nullptr;
  if (library && !f) why = str_cat(file, " is of another version");
  return f;
}

/// Null and the reason where the launcher did not start MPI processes or this program has no MPI.
std::unique_ptr<Communicator> open_mpi(const Launch& l, double limit, std::string& why) {
  if (l.from == "torchrun" || l.from == "--rank" || (l.from == "Slurm" && !std::getenv("PMIX_RANK"))) {
    why = str_cat(l.from, " starts no MPI processes");
    return nullptr;
  }
  auto* open = plugin_function<OpenMpi>("liblowbit_mpi.so", "lowbit_open_mpi", why);
  if (!open) {
    why += "; it is built where MPI is installed";
    return nullptr;
  }
  std::unique_ptr<Communicator> c(open(limit));
  LOWBIT_CHECK(c->size() == l.size && c->rank() == l.rank, usage, "ranks", "MPI must see the processes that ",
               l.from, " started (got rank ", c->rank(), " of ", c->size(), ", ", l.from, " says rank ",
               l.rank, " of ", l.size, "); is this program built with the MPI of the launcher?");
  return c;
}

}  // namespace

std::vector<std::byte> Communicator::all_gather(std::span<const std::byte> mine) {
  return {mine.begin(), mine.end()};
}
void Communicator::all_to_all(const Tensor& from, Tensor& to) { to.copy_from(from); }
void Communicator::all_gather(const Tensor& mine, Tensor& all) { all.copy_from(mine.reshape(all.shape())); }
void Communicator::start_sum(Tensor) {}
void Communicator::fail(int, const std::string&) noexcept {}

Communicator& alone() {
  static Communicator one;
  return one;
}

std::unique_ptr<Communicator> open_communicator(const Launch& l, Device device, double limit,
                                                const std::string& folder) {
  if (l.size == 1) return std::make_unique<Communicator>();
  std::string why;
  std::unique_ptr<Communicator> mpi = open_mpi(l, limit, why);
  if (!device.is_cuda()) {
    LOWBIT_CHECK(mpi, usage, "ranks", l.size,
                 " processes on the CPU need MPI: start them with mpirun or srun --mpi=pmix (", why, ")");
    return mpi;
  }
  auto* open = plugin_function<OpenNccl>("liblowbit_nccl.so", "lowbit_open_nccl", why);
  if (!open && mpi) return mpi;
  LOWBIT_CHECK(open, usage, "ranks", l.size, " processes on GPUs need NCCL, or MPI (", why, ")");
  return std::unique_ptr<Communicator>(open(l, device, limit, mpi.release(), folder));
}

bool any_rank(Communicator& c, bool mine) {
  const char flag[] = {char(mine)};
  const std::vector<char> all = gather(c, std::span<const char>(flag));
  return std::any_of(all.begin(), all.end(), [](char f) { return f != 0; });
}

std::string lead_text(Communicator& c, const std::string& mine) {
  const int64_t length[] = {int64_t(mine.size())};
  std::string text = mine;
  text.resize(size_t(gather(c, std::span<const int64_t>(length))[0]));
  const std::vector<char> all = gather(c, std::span<const char>(text));
  return {all.begin(), all.begin() + std::ptrdiff_t(text.size())};
}

void require_equal(Communicator& c, const std::string& mine, const std::string& what) {
  const std::string lead = lead_text(c, mine);
  const bool differs = lead != mine;
  if (!any_rank(c, differs)) return;
  fail(ErrorKind::usage, "ranks",
       str_cat(what, " must be the same on all ranks",
               differs ? str_cat(" (got ", mine, ", rank 0 has ", lead, ")") : "",
               "; do all of them see the same files and options?"));
}

int threads_of_rank(Communicator& c, int available) {
  struct Place {
    char host[64];
    cpu_set_t processors;
  } mine{};
  const std::string name = host_name();
  std::memcpy(mine.host, name.data(), std::min(name.size(), sizeof mine.host - 1));
  sched_getaffinity(0, sizeof mine.processors, &mine.processors);
  int sharing = 0;
  for (const Place& p : gather(c, std::span<const Place>(&mine, 1)))
    sharing += std::memcmp(&p, &mine, sizeof mine) == 0;
  return std::max(1, available / sharing);
}

}  // namespace lowbit
