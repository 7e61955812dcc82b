#pragma once
#include <string>

#include "tensor/core/device.h"
#include "train/config/options.h"

namespace lowbit {

/// What --device names: cpu, cuda, cuda:N, or auto: the first GPU where one can be used, else the CPU.
/// Errors  usage: another word; a GPU is named and none can be used, with the reason
Device run_device(const Options& o);

/// One line on what the program can compute with: "cpu; cuda" or "cpu; no cuda: <reason>".
std::string devices_line();

}  // namespace lowbit
