#pragma once
// A restricted unpickler: builds a tree of values and never runs, imports or looks up anything. Classes
// outside a short list become opaque records. Format text: Python's pickletools.

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/io/raw_type.h"

namespace lowbit {

struct PyValue;

/// A tensor of a torch file: geometry in elements of `type` on a storage that is read later.
struct TorchTensorRef {
  const PyValue* storage = nullptr;
  RawType type = RawType::f32;
  int64_t offset = 0;
  std::vector<int64_t> shape, stride;
};

struct PyValue {
  enum class Kind : uint8_t {
    none,
    boolean,
    integer,
    bigint,  ///< text: two's complement, little endian
    real,
    string,
    bytes,
    list,  ///< also sets
    tuple,
    dict,     ///< items: key, value, key, value …; also OrderedDict
    global,   ///< text: "module name"
    object,   ///< opaque record; items: class, arguments, then state and children in the order they came
    dtype,    ///< NumPy element type; text: "<f4"
    array,    ///< NumPy array
    storage,  ///< torch storage; text: key, integer: number of elements, items[0]: its type (global)
    tensor    ///< torch tensor
  };
  Kind kind = Kind::none;
  int64_t integer = 0;
  double real = 0;
  std::string text;
  std::vector<PyValue*> items;
  std::shared_ptr<Tensor> array;
  std::shared_ptr<TorchTensorRef> tensor;

  bool is(Kind k) const { return kind == k; }
  bool is_global(std::string_view name) const { return kind == Kind::global && text == name; }
  /// Value of a string key of a dict, null when absent or not a dict.
  const PyValue* find(std::string_view key) const;
};

/// Owns every value, so that cycles and deep nesting cost neither leaks nor stack.
class PyTree {
 public:
  PyValue* make(PyValue::Kind kind) {
    values_.emplace_back().kind = kind;
    return &values_.back();
  }
  size_t size() const { return values_.size(); }
  const PyValue& at(size_t i) const { return values_[i]; }  ///< in the order of creation

 private:
  std::deque<PyValue> values_;
};

struct Unpickled {
  PyValue* root = nullptr;
  size_t consumed = 0;  ///< bytes up to and including STOP
};

/// Reads one pickle (protocol 2 to 5) from the front of `bytes` into `tree`. Throws Error(io), naming
/// `where`, for opcodes outside the list, damage, and pickles that would need more memory than a few times
/// their size.
Unpickled unpickle(std::string_view bytes, PyTree& tree, const std::string& where);

/// Element type of a torch storage or dtype global ("torch FloatStorage", "torch float8_e5m2"); false when
/// unknown.
bool torch_type(std::string_view global, RawType& type);

/// One line for people: "12", "dict of 152", "object argparse Namespace".
std::string describe(const PyValue& v, size_t limit = 80);

}  // namespace lowbit
