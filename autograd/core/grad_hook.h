#pragma once
#include <functional>

namespace lowbit {

struct GradMeta;

/// Called by backward after every contribution to a gradient that lives in an arena, so that finished
/// gradients can be sent while the others are computed. An empty function: nobody listens.
void set_gradient_hook(std::function<void(const GradMeta&)> hook);

}  // namespace lowbit
