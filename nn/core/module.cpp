#include "nn/core/module.h"

#include "tensor/core/error.h"

namespace lowbit {
namespace {

std::string list_names(const std::vector<std::string>& names, size_t most = 8) {
  std::string s;
  for (size_t i = 0; i < names.size() && i < most; ++i) s += (i ? ", " : "") + names[i];
  if (names.size() > most) s += str_cat(", … ", names.size() - most, " more");
  return s;
}

}  // namespace

std::string join_name(std::string_view a, std::string_view b) {
  std::string s(a);
  if (!a.empty() && !b.empty()) s += '.';
  return s += b;
}

std::string LoadReport::str() const {
  std::string s;
  const auto part = [&](const std::vector<std::string>& v, const char* what) {
    if (!v.empty()) s += str_cat(s.empty() ? "" : ", ", v.size(), " ", what, " (", list_names(v), ")");
  };
  part(missing, "missing");
  part(unexpected, "unexpected");
  part(mismatched, mismatched.size() == 1 ? "shape mismatch" : "shape mismatches");
  return s.empty() ? "all names match" : s;
}

Variable& Module::param(std::string_view name, Tensor init, bool decay) {
  members_.push_back({Member::parameter, std::string(name), parameters_.size()});
  parameters_.push_back({std::string(name), Variable(std::move(init), true), decay, 1.f});
  return parameters_.back().var;
}

Tensor& Module::buffer(std::string_view name, Tensor init) {
  members_.push_back({Member::buffer, std::string(name), buffers_.size()});
  return buffers_.emplace_back(std::move(init));
}

Tensor& Module::optional_buffer(std::string_view name, Tensor init) {
  Tensor& t = buffer(name, std::move(init));
  members_.back().optional = true;
  return t;
}

Slot& Module::slot(std::string_view name) {
  members_.push_back({Member::slot, std::string(name), slots_.size()});
  return slots_.emplace_back();
}

void Module::add_child(std::string_view name, std::shared_ptr<Module> m) {
  members_.push_back({Member::child, std::string(name), children_.size()});
  children_.push_back(std::move(m));
}

namespace {
/// A state name may begin with "../": beside the module that owns the slot, not inside.
std::string state_prefix(std::string prefix, std::string_view name) {
  for (; name.starts_with("../"); name.remove_prefix(3)) {
    const size_t dot = prefix.rfind('.');
    prefix.resize(dot == std::string::npos ? 0 : dot);
  }
  return join_name(prefix, std::string(name));
}
}  // namespace

void Module::alias(std::string_view name, const Module& child) {
  for (const std::shared_ptr<Module>& m : std::vector(children_))
    if (m.get() == &child) return add_child(name, m);
  fail(ErrorKind::value, "module", str_cat("no child has the second name '", name, "'"));
}

void Module::visit(const std::string& prefix, const std::function<void(const std::string&, Module&)>& enter,
                   const std::function<void(const std::string&, Module&, const Member&)>& member) {
  if (enter) enter(prefix, *this);
  for (const Member& m : members_) {
    if (member) member(prefix, *this, m);
    if (m.kind == Member::child) {
      children_[m.index]->visit(join_name(prefix, m.name), enter, member);
    } else if (m.kind == Member::slot) {
      const Slot& s = slots_[m.index];
      if (auto* inside = dynamic_cast<Module*>(s.get()))
        inside->visit(state_prefix(prefix, s.state_name()), enter, member);
    }
  }
}

void Module::train(bool on) {
  visit(
      "", [on](const std::string&, Module& m) { m.training_ = on; }, nullptr);
}

std::vector<NamedParameter> Module::parameters() {
  std::vector<NamedParameter> all;
  std::set<const Parameter*> seen;
  visit("", nullptr, [&](const std::string& prefix, Module& owner, const Member& m) {
    if (m.kind != Member::parameter) return;
    Parameter& p = owner.parameters_[m.index];
    if (seen.insert(&p).second) all.push_back({join_name(prefix, m.name), &p});
  });
  return all;
}

std::map<std::string, Tensor> Module::state() {
  std::map<std::string, Tensor> all;
  visit("", nullptr, [&](const std::string& prefix, Module& owner, const Member& m) {
    if (m.kind == Member::parameter)
      all.emplace(join_name(prefix, m.name), owner.parameters_[m.index].var.data());
    if (m.kind == Member::buffer) all.emplace(join_name(prefix, m.name), owner.buffers_[m.index]);
  });
  return all;
}

std::set<std::string> Module::optional_state() {
  std::set<std::string> all;
  visit("", nullptr, [&](const std::string& prefix, Module&, const Member& m) {
    if (m.optional) all.insert(join_name(prefix, m.name));
  });
  return all;
}

LoadReport Module::load(const std::map<std::string, Tensor>& s, bool strict) {
  LoadReport report;
  std::map<std::string, Tensor> own = state();
  const std::set<std::string> optional = optional_state();
  for (const auto& [name, t] : own) {
    const auto it = s.find(name);
    if (it == s.end()) {
      if (!optional.contains(name)) report.missing.push_back(name);
    } else if (it->second.shape() != t.shape())
      report.mismatched.push_back(
          str_cat(name, ": file ", it->second.shape().str(), ", model ", t.shape().str()));
  }
  for (const auto& [name, t] : s)
    if (!own.contains(name)) report.unexpected.push_back(name);
  LOWBIT_CHECK(!strict || report.clean(), io, "load", report.str());
  for (auto& [name, t] : own) {
    const auto it = s.find(name);
    if (it != s.end() && it->second.shape() == t.shape()) t.copy_from(it->second);
  }
  visit(
      "", [](const std::string&, Module& m) { m.on_load(); }, nullptr);
  return report;
}

void Module::to(Device d) {
  visit("", nullptr, [d](const std::string&, Module& owner, const Member& m) {
    if (m.kind == Member::parameter) {
      const Variable& v = owner.parameters_[m.index].var;
      Variable(v).mutable_data() = v.data().to(d);
      v.meta()->device = d, v.meta()->grad = {}, v.meta()->has_grad = false;
    }
    if (m.kind == Member::buffer) owner.buffers_[m.index] = owner.buffers_[m.index].to(d);
  });
}

Device Module::device() {
  const std::vector<NamedParameter> all = parameters();
  return all.empty() ? Device{} : all.front().parameter->var.device();
}

std::vector<NamedSlot> Module::slots() {
  std::vector<NamedSlot> all;
  std::set<const Slot*> seen;
  visit("", nullptr, [&](const std::string& prefix, Module& owner, const Member& m) {
    if (m.kind == Member::slot && seen.insert(&owner.slots_[m.index]).second)
      all.push_back({join_name(prefix, m.name), &owner.slots_[m.index]});
  });
  return all;
}

std::vector<std::pair<std::string, Module*>> Module::modules() {
  std::vector<std::pair<std::string, Module*>> all;
  visit(
      "", [&](const std::string& name, Module& m) { all.emplace_back(name, &m); }, nullptr);
  return all;
}

Module& Module::at(std::string_view path) {
  for (auto& [name, m] : modules())
    if (name == path) return *m;
  fail(ErrorKind::value, "module", str_cat("no module is called '", path, "'"));
}

}  // namespace lowbit
