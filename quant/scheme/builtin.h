#pragma once
#include <string_view>

namespace lowbit {

/// Text of a built-in scheme, or null.
const char* builtin_scheme(std::string_view name);

}  // namespace lowbit
