#include "tensor/core/error.h"

namespace lowbit {

void fail(ErrorKind kind, std::string_view op, const std::string& text) { throw Error(kind, op, text); }

void fail_assert(const char* condition, const char* file, int line) {
  const std::string_view path(file);
  throw Error(ErrorKind::internal, "internal",
              str_cat("condition does not hold: ", condition, " (", path.substr(path.rfind('/') + 1), ":",
                      line, ")"));
}

}  // namespace lowbit
