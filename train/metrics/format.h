#pragma once
#include <string>

namespace lowbit {

/// printf into a string; what is longer than 511 characters is cut.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace lowbit
