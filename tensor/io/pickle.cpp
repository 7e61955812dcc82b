#include "tensor/io/pickle.h"

#include <cstring>
#include <unordered_map>

#include "tensor/io/npy.h"
#include "tensor/io/pickle_rebuild.h"

namespace lowbit {
namespace {

using Kind = PyValue::Kind;
constexpr size_t kMaxValues = 8'000'000;

enum Op : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kDict = 'd',
  kEmptyDict = '}',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kList = 'l',
  kEmptyList = ']',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96
};

class Unpickler {
 public:
  Unpickler(std::string_view bytes, PyTree& tree, const std::string& where)
      : in_(bytes), rebuild_{tree, where, 8 * uint64_t(bytes.size()) + (1 << 20)} {}

  Unpickled run() {
    for (;;) {
      const auto op = uint8_t(take(1)[0]);
      if (op == kStop) break;
      if (!literal(op) && !container(op) && !memory(op)) step(op);
      check(rebuild_.tree.size() <= kMaxValues, "too many values");
    }
    PyValue* root = pop();
    check(stack_.empty() && marks_.empty(), "values are left over");
    return {root, at_};
  }

 private:
  void check(bool ok, const char* what) {
    if (!ok) fail(ErrorKind::io, "pickle", str_cat(rebuild_.where, ": ", what, " (at byte ", at_, ")"));
  }
  std::string_view take(uint64_t n) {
    check(n <= in_.size() - at_, "truncated");
    at_ += n;
    return in_.substr(at_ - n, n);
  }
  template <class T>
  T le() {
    T v;
    std::memcpy(&v, take(sizeof v).data(), sizeof v);
    return v;
  }
  std::string_view line() {
    const size_t end = in_.find('\n', at_);
    check(end != std::string_view::npos, "truncated");
    const auto r = take(end - at_);
    take(1);
    return r;
  }

  PyValue* make(Kind k) { return rebuild_.tree.make(k); }
  void push(PyValue* v) { stack_.push_back(v); }
  PyValue* pop() {
    check(stack_.size() > floor(), "stack is empty");
    PyValue* v = stack_.back();
    stack_.pop_back();
    return v;
  }
  PyValue* top() {
    check(stack_.size() > floor(), "stack is empty");
    return stack_.back();
  }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<PyValue*> pop_to_mark() {
    check(!marks_.empty(), "no mark");
    const auto first = stack_.begin() + std::ptrdiff_t(marks_.back());
    std::vector<PyValue*> r(first, stack_.end());
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return r;
  }
  void push_int(int64_t i, Kind k = Kind::integer) {
    push(make(k));
    top()->integer = i;
  }
  void push_text(Kind k, uint64_t n) {
    const auto bytes = take(n);
    push(make(k));
    top()->text = bytes;
  }
  void push_sequence(Kind k, std::vector<PyValue*> items) {
    push(make(k));
    top()->items = std::move(items);
  }
  void push_long(uint64_t n) {
    const auto bytes = take(n);
    if (n > 8) {
      push(make(Kind::bigint));
      top()->text = bytes;
      return;
    }
    uint64_t v = n > 0 && (bytes[n - 1] & 0x80) ? ~uint64_t(0) : 0;
    std::memcpy(&v, bytes.data(), n);
    push_int(int64_t(v));
  }
  void push_float() {
    uint64_t v = le<uint64_t>();
    v = __builtin_bswap64(v);
    push(make(Kind::real));
    std::memcpy(&top()->real, &v, sizeof v);
  }

  /// Opcodes that push one value which stands in the stream.
  bool literal(uint8_t op) {
    switch (op) {
      case kNone:
        push(make(Kind::none));
        return true;
      case kNewTrue:
        push_int(1, Kind::boolean);
        return true;
      case kNewFalse:
        push_int(0, Kind::boolean);
        return true;
      case kBinInt:
        push_int(le<int32_t>());
        return true;
      case kBinInt1:
        push_int(le<uint8_t>());
        return true;
      case kBinInt2:
        push_int(le<uint16_t>());
        return true;
      case kLong1:
        push_long(le<uint8_t>());
        return true;
      case kLong4:
        push_long(le<uint32_t>());
        return true;
      case kBinFloat:
        push_float();
        return true;
      case kBinUnicode:
      case kBinString:
        push_text(Kind::string, le<uint32_t>());
        return true;
      case kShortBinUnicode:
      case kShortBinString:
        push_text(Kind::string, le<uint8_t>());
        return true;
      case kBinUnicode8:
        push_text(Kind::string, le<uint64_t>());
        return true;
      case kBinBytes:
        push_text(Kind::bytes, le<uint32_t>());
        return true;
      case kShortBinBytes:
        push_text(Kind::bytes, le<uint8_t>());
        return true;
      case kBinBytes8:
      case kByteArray8:
        push_text(Kind::bytes, le<uint64_t>());
        return true;
      case kGlobal: {
        const std::string module(line());
        push(make(Kind::global));
        top()->text = module + " " + std::string(line());
        return true;
      }
      default:
        return false;
    }
  }

  /// Opcodes that make or fill lists, tuples and dicts.
  bool container(uint8_t op) {
    switch (op) {
      case kEmptyList:
      case kEmptySet:
        push(make(Kind::list));
        return true;
      case kEmptyTuple:
        push(make(Kind::tuple));
        return true;
      case kEmptyDict:
        push(make(Kind::dict));
        return true;
      case kTuple:
        push_sequence(Kind::tuple, pop_to_mark());
        return true;
      case kList:
      case kFrozenSet:
        push_sequence(Kind::list, pop_to_mark());
        return true;
      case kDict: {
        auto items = pop_to_mark();
        check(items.size() % 2 == 0, "dict with an odd number of items");
        push_sequence(Kind::dict, std::move(items));
        return true;
      }
      case kTuple1:
      case kTuple2:
      case kTuple3: {
        std::vector<PyValue*> items(size_t(op - kTuple1 + 1));
        for (size_t i = items.size(); i-- > 0;) items[i] = pop();
        push_sequence(Kind::tuple, std::move(items));
        return true;
      }
      case kAppend: {
        PyValue* v = pop();
        extend({v}, Kind::list);
        return true;
      }
      case kAppends:
      case kAddItems:
        extend(pop_to_mark(), Kind::list);
        return true;
      case kSetItem: {
        PyValue* v = pop();
        PyValue* k = pop();
        extend({k, v}, Kind::dict);
        return true;
      }
      case kSetItems: {
        const auto items = pop_to_mark();
        check(items.size() % 2 == 0, "dict with an odd number of items");
        extend(items, Kind::dict);
        return true;
      }
      default:
        return false;
    }
  }
  void extend(const std::vector<PyValue*>& items, Kind expected) {
    PyValue* target = top();
    check(target->is(expected) || target->is(Kind::object), "items for something that is not a container");
    target->items.insert(target->items.end(), items.begin(), items.end());
  }

  bool memory(uint8_t op) {
    switch (op) {
      case kBinPut:
        memo_[le<uint8_t>()] = top();
        return true;
      case kLongBinPut:
        memo_[le<uint32_t>()] = top();
        return true;
      case kMemoize: {
        const auto next = uint32_t(memo_.size());
        memo_[next] = top();
        return true;
      }
      case kBinGet:
        recall(le<uint8_t>());
        return true;
      case kLongBinGet:
        recall(le<uint32_t>());
        return true;
      default:
        return false;
    }
  }
  void recall(uint32_t index) {
    const auto it = memo_.find(index);
    check(it != memo_.end(), "unknown memo entry");
    push(it->second);
  }

  void step(uint8_t op) {
    switch (op) {
      case kMark:
        marks_.push_back(stack_.size());
        return;
      case kPop:
        pop();
        return;
      case kPopMark:
        pop_to_mark();
        return;
      case kDup:
        push(top());
        return;
      case kProto: {
        const int v = le<uint8_t>();
        check(v >= 2 && v <= 5, "unsupported protocol");
        return;
      }
      case kFrame:
        le<uint64_t>();
        return;
      case kBinPersId:
        push(rebuild_.persistent(*pop()));
        return;
      case kReduce: {
        PyValue* args = pop();
        PyValue* f = pop();
        push(rebuild_.reduce(f, args));
        return;
      }
      case kNewObj: {
        PyValue* args = pop();
        PyValue* f = pop();
        push(rebuild_.opaque(f, args));
        return;
      }
      case kNewObjEx: {
        PyValue* named = pop();
        PyValue* args = pop();
        PyValue* f = pop();
        push(rebuild_.opaque(f, args));
        top()->items.push_back(named);
        return;
      }
      case kBuild: {
        PyValue* state = pop();
        rebuild_.build(*top(), state);
        return;
      }
      case kStackGlobal: {
        PyValue *name = pop(), *module = pop();
        check(name->is(Kind::string) && module->is(Kind::string), "class name is not text");
        rebuild_.charge(name->text.size() + module->text.size());
        push(make(Kind::global));
        top()->text = module->text + " " + name->text;
        return;
      }
      default:
        fail(ErrorKind::io, "pickle",
             str_cat(rebuild_.where, ": opcode ", int(op), " at byte ", at_ - 1, " is not allowed"));
    }
  }

  std::string_view in_;
  size_t at_ = 0;
  Rebuild rebuild_;
  std::vector<PyValue*> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, PyValue*> memo_;
};

}  // namespace

const PyValue* PyValue::find(std::string_view key) const {
  if (kind != Kind::dict) return nullptr;
  for (size_t i = items.size(); i >= 2; i -= 2)  // the last assignment of a key counts
    if (items[i - 2]->kind == Kind::string && items[i - 2]->text == key) return items[i - 1];
  return nullptr;
}

Unpickled unpickle(std::string_view bytes, PyTree& tree, const std::string& where) {
  return Unpickler(bytes, tree, where).run();
}

}  // namespace lowbit
