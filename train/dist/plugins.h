#pragma once
// What the libraries beside the program give: liblowbit_mpi.so and liblowbit_nccl.so.

#include <string>

#include "train/dist/communicator.h"

namespace lowbit {

/// Starts MPI; the ranks are those of its world.
using OpenMpi = Communicator*(double limit);
/// `host`, owned by the result, carries what is not on the GPU; null: NCCL does that too, started over a file
/// in `folder`.
using OpenNccl = Communicator*(const Launch& l, Device device, double limit, Communicator* host,
                               const std::string& folder);

}  // namespace lowbit
