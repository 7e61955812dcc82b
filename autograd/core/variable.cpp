#include "autograd/core/variable.h"

#include "autograd/core/node.h"

namespace lowbit {
namespace {

thread_local bool recording = true;

std::shared_ptr<GradMeta> make_meta(const Shape& shape, DType dtype, Device device, bool requires_grad) {
  auto m = std::make_shared<GradMeta>();
  m->shape = shape, m->dtype = dtype, m->device = device, m->requires_grad = requires_grad;
  return m;
}

}  // namespace

GradMeta::~GradMeta() {
  // A long tape would be destroyed recursively, producer by producer; a queue keeps the stack flat.
  if (!producer) return;
  thread_local std::vector<std::shared_ptr<Node>>* queue = nullptr;
  if (queue) {
    queue->push_back(std::move(producer));
    return;
  }
  std::vector<std::shared_ptr<Node>> local;
  queue = &local;
  local.push_back(std::move(producer));
  while (!local.empty()) {
    const std::shared_ptr<Node> node = std::move(local.back());
    local.pop_back();
  }
  queue = nullptr;
}

Variable::Variable(Tensor data, bool requires_grad) : impl_(std::make_shared<Impl>()) {
  LOWBIT_ASSERT(data.defined());
  impl_->meta = make_meta(data.shape(), data.dtype(), data.device(), requires_grad);
  impl_->data = std::move(data);
}

Variable::Variable(Coded codes) : impl_(std::make_shared<Impl>()) {
  impl_->meta = make_meta(codes.shape(), DType::f32, codes.codes.device(), false);
  impl_->coded = std::move(codes);
}

Variable::Variable(Narrow data, bool requires_grad) : impl_(std::make_shared<Impl>()) {
  LOWBIT_ASSERT(data.values.dtype() == DType::bf16);
  impl_->meta = make_meta(data.values.shape(), DType::f32, data.values.device(), requires_grad);
  impl_->narrow = std::move(data.values);
}

Variable::Variable(std::shared_ptr<const Deferred> value, const Shape& shape, Device device)
    : impl_(std::make_shared<Impl>()) {
  impl_->meta = make_meta(shape, DType::f32, device, false);
  impl_->deferred = std::move(value);
}

void Variable::Impl::make() {
  if (!deferred) return;
  if (deferred->coded())
    coded = deferred->codes();
  else
    data = deferred->values();
  deferred.reset();
}

const Tensor& Variable::data() const {
  LOWBIT_ASSERT(impl_);
  impl_->make();
  if (!impl_->data.defined())
    impl_->data = impl_->narrow.defined() ? impl_->narrow.cast(DType::f32) : impl_->coded.dequantize();
  return impl_->data;
}

const Coded* Variable::coded() const {
  if (!impl_) return nullptr;
  if (impl_->deferred && impl_->deferred->coded()) impl_->make();
  return impl_->coded.defined() ? &impl_->coded : nullptr;
}

const Tensor* Variable::narrow() const { return impl_ && impl_->narrow.defined() ? &impl_->narrow : nullptr; }

const Deferred* Variable::deferred() const { return impl_ ? impl_->deferred.get() : nullptr; }

void Variable::set_data(Tensor t) {
  LOWBIT_CHECK(t.shape() == shape() && t.dtype() == dtype(), shape, "set_data",
               "shape and dtype must stay (got ", t.str(), " for ", str(), ")");
  LOWBIT_ASSERT(!impl_->meta->producer);
  impl_->data.copy_from(t);
}

Tensor& Variable::mutable_data() {
  LOWBIT_ASSERT(impl_ && !impl_->meta->producer && impl_->data.defined());
  return impl_->data;
}

const Shape& Variable::shape() const {
  LOWBIT_ASSERT(impl_);
  return impl_->meta->shape;
}
DType Variable::dtype() const {
  LOWBIT_ASSERT(impl_);
  return impl_->meta->dtype;
}
Device Variable::device() const {
  LOWBIT_ASSERT(impl_);
  return impl_->meta->device;
}
std::string Variable::str() const {
  return impl_ ? shape().str() + " " + dtype_name(dtype()) + " " + device().str() : "undefined";
}
bool Variable::requires_grad() const { return impl_ && impl_->meta->requires_grad; }
void Variable::set_requires_grad(bool on) {
  LOWBIT_ASSERT(impl_ && !impl_->meta->producer);
  impl_->meta->requires_grad = on;
}
Tensor Variable::grad() const {
  LOWBIT_ASSERT(impl_);
  return impl_->meta->has_grad ? impl_->meta->grad : Tensor{};
}
void Variable::zero_grad() const {
  GradMeta& m = *impl_->meta;
  m.has_grad = false;
  if (!m.fixed_buffer) m.grad = Tensor{};
}
void Variable::set_grad_buffer(Tensor window) {
  LOWBIT_ASSERT(impl_ && window.shape() == shape() && window.contiguous());
  GradMeta& m = *impl_->meta;
  m.grad = std::move(window), m.fixed_buffer = true, m.has_grad = false;
}
Variable Variable::detach() const {
  impl_->make();
  Variable v;
  v.impl_ = std::make_shared<Impl>();
  v.impl_->data = impl_->data;
  v.impl_->coded = impl_->coded;
  v.impl_->narrow = impl_->narrow;
  v.impl_->meta = make_meta(shape(), dtype(), device(), false);
  return v;
}
const std::shared_ptr<GradMeta>& Variable::meta() const {
  LOWBIT_ASSERT(impl_);
  return impl_->meta;
}

NoGrad::NoGrad() : previous_(recording) { recording = false; }
NoGrad::~NoGrad() { recording = previous_; }
bool grad_enabled() { return recording; }

}  // namespace lowbit
