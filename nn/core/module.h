#pragma once
// Module: a named tree of parameters, buffers, slots and child modules. Names are those of published
// checkpoints.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "autograd/core/variable.h"
#include "nn/core/slot.h"

namespace lowbit {

struct Parameter {
  std::string name;  ///< last component, e.g. "weight"
  Variable var;
  bool decay = true;  ///< takes part in weight decay (matrices; not biases, norms, tokens)
  float lr_scale = 1.f;
};

struct NamedParameter {
  std::string name;  ///< dotted path, e.g. "blocks.0.attn.qkv.weight"
  Parameter* parameter;
};

struct NamedSlot {
  std::string name;  ///< dotted path, e.g. "blocks.0.attn.qkv.in"
  Slot* slot;
};

/// Outcome of comparing a model's names with those of a state; every problem at once.
struct LoadReport {
  std::vector<std::string> missing, unexpected, mismatched;  ///< mismatched: "name: file [..], model [..]"
  bool clean() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }
  std::string str() const;  ///< "2 missing (head.bias, …), 1 unexpected (…)"
};

class Module {
 public:
  virtual ~Module() = default;
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  void train(bool on = true);
  void eval() { train(false); }
  bool training() const { return training_; }

  std::vector<NamedParameter>
  parameters();  ///< recursive, declaration order; a shared module once, under its first name
  std::map<std::string, Tensor> state();  ///< parameters and buffers; the tensors share memory with the model
  /// Copies values by name. strict: throws Error(io) listing every missing, unexpected and mismatched name.
  /// Optional buffers may be missing.
  LoadReport load(const std::map<std::string, Tensor>& s, bool strict = true);
  /// Moves parameters and buffers of this and all modules below, slot contents included; gradients are
  /// forgotten. Before an arena or an average refers to them.
  void to(Device d);
  Device device();  ///< of the first parameter
  /// Names in state() that a checkpoint may lack.
  std::set<std::string> optional_state();
  std::vector<NamedSlot> slots();
  std::vector<std::pair<std::string, Module*>>
  modules();  ///< this ("") and all below, slot contents included
  /// A child by its dotted path; throws when there is none.
  Module& at(std::string_view path);

 protected:
  /// References stay valid for the life of the module.
  Variable& param(std::string_view name, Tensor init, bool decay = true);
  Tensor& buffer(std::string_view name, Tensor init);
  /// A buffer that a checkpoint may lack: tables that follow from the configuration, counters.
  Tensor& optional_buffer(std::string_view name, Tensor init);
  Slot& slot(std::string_view name);
  template <class M>
  M& child(std::string_view name, std::unique_ptr<M> m) {
    M& r = *m;
    add_child(name, std::move(m));
    return r;
  }
  /// A second name of a child: its state appears under both, its parameters and slots under the first.
  void alias(std::string_view name, const Module& child);
  virtual void on_load() {}  ///< load() has replaced values

 private:
  struct Member {
    enum Kind { parameter, buffer, slot, child } kind;
    std::string name;
    size_t index;
    bool optional = false;  // buffers only
  };
  void add_child(std::string_view name, std::shared_ptr<Module> m);
  void visit(const std::string& prefix, const std::function<void(const std::string&, Module&)>& enter,
             const std::function<void(const std::string&, Module&, const Member&)>& member);
  std::vector<Member> members_;
  std::deque<Parameter> parameters_;
  std::deque<Tensor> buffers_;
  std::deque<Slot> slots_;
  std::vector<std::shared_ptr<Module>> children_;
  bool training_ = true;
};

/// "a" + "b" → "a.b"; empty parts leave no dot.
std::string join_name(std::string_view a, std::string_view b);

}  // namespace lowbit
