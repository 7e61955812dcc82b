#include "tensor/core/context.h"

#include <cstdlib>
#include <cstring>

namespace lowbit {

Context& context() {
  thread_local Context c = [] {
    Context fresh;
    const char* check = std::getenv("LOWBIT_CHECK_FINITE");
    fresh.check_finite = check && std::strcmp(check, "0") != 0;
    return fresh;
  }();
  return c;
}

}  // namespace lowbit
