#pragma once
// The one exception type. Text pattern: "<op>: <what must hold> (got <operands>)[; <hint>]", one line, lower
// case.

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lowbit {

/// `usage`: the user's command is wrong (exit code 2); `io`: unreadable or inconsistent input file (3);
/// `numeric`: non-finite values (4); `run`: a failure at run time, e.g. a full disk (1).
enum class ErrorKind : uint8_t {
  shape,
  dtype,
  device,
  value,
  io,
  cuda,
  capture,
  usage,
  numeric,
  run,
  internal
};

class Error : public std::runtime_error {
 public:
  /// `op` names what failed; empty where the text says it, as of an option.
  Error(ErrorKind k, std::string_view op, const std::string& text)
      : std::runtime_error(op.empty() ? text : std::string(op) + ": " + text), kind_(k) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

/// Concatenates anything that can be streamed.
template <class... A>
std::string str_cat(const A&... a) {
  std::ostringstream s;
  (s << ... << a);
  return s.str();
}

[[noreturn]] void fail(ErrorKind kind, std::string_view op, const std::string& text);
[[noreturn]] void fail_assert(const char* condition, const char* file, int line);

}  // namespace lowbit

/// LOWBIT_CHECK(cond, shape, "linear", "weight.shape[1] must equal …", x.str()): throws Error when cond is
/// false.
#define LOWBIT_CHECK(cond, kind, op, ...)                                                         \
  do {                                                                                            \
    if (!(cond)) ::lowbit::fail(::lowbit::ErrorKind::kind, (op), ::lowbit::str_cat(__VA_ARGS__)); \
  } while (0)

/// For states that cannot happen; says "internal".
#define LOWBIT_ASSERT(cond)                                        \
  do {                                                             \
    if (!(cond)) ::lowbit::fail_assert(#cond, __FILE__, __LINE__); \
  } while (0)
