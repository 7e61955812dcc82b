#pragma once
// What a pickle's REDUCE, BUILD and persistent ids mean: the short list of constructors that are understood.

#include "tensor/io/pickle.h"

namespace lowbit {

struct Rebuild {
  PyTree& tree;
  const std::string& where;
  uint64_t budget;  ///< bytes that may still be allocated for copies of what the stream holds once

  PyValue* reduce(PyValue* function, PyValue* args);
  PyValue* opaque(PyValue* cls, PyValue* args);
  PyValue* persistent(const PyValue& id);
  void build(PyValue& target, PyValue* state);
  void charge(uint64_t bytes);

 private:
  [[noreturn]] void bad(const char* what) const;
  void check(bool ok, const char* what) const {
    if (!ok) bad(what);
  }
  PyValue* sequence(PyValue::Kind kind, const PyValue& from);
  PyValue* latin1(const PyValue& args);
  PyValue* torch_tensor(const PyValue& args, bool typed);
  PyValue* numpy_dtype(const PyValue& args);
  PyValue* numpy_scalar(const PyValue& args);
  void build_array(PyValue& target, const PyValue& state);
  bool array_bytes(const PyValue& raw, std::string& bytes);
};

}  // namespace lowbit
