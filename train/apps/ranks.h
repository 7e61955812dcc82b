#pragma once
// A verb that several processes carry out together.

#include <functional>

#include "train/config/options.h"
#include "train/dist/communicator.h"

namespace lowbit {

/// Finds out which rank this process is, opens the communicator, gives the rank its GPU and its share of the
/// processors, and runs f with the options that follow from it. An error of one rank ends all of them with
/// its text and code; nobody leaves before the others are done. Within f, and so within the verbs that it
/// runs, the same ranks go on.
int run_as_rank(const Options& given, const std::function<int(const Options&, Communicator&)>& f);

}  // namespace lowbit
