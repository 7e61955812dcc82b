#pragma once
#include <string>

namespace lowbit {

/// Opens a library that lies beside the program and stays open: parts that need what not every machine has.
/// Null and the reason in `why` where it is missing or cannot be loaded.
void* open_plugin(const char* file, std::string& why);

}  // namespace lowbit
