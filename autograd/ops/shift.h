#pragma once

namespace lowbit {

class Variable;

/// y = x + b: the learned vectors beside a quantizer. Codes without an offset stay codes and b becomes their
/// offset, with the same values.
/// Shapes  x any; b broadcast to x; y like x. Codes: b [C], or [G, 1, C] for x [..., G, n, C]
/// Grad    dx = gy;  db = gy summed over the dimensions in which b was repeated
/// Saves   b where x's producer makes x again (then y can be made again too), else nothing
/// Order   sums: reduce_to (docs/numerics.md, rules 3 and 4)
/// Errors  shape: b does not broadcast to x
Variable shift(const Variable& x, const Variable& b);

}  // namespace lowbit
