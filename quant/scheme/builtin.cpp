// Schemes by name. Slots as in the vision transformers of nn/models; patterns that a model lacks decide
// nothing.

#include "quant/scheme/builtin.h"

namespace lowbit {
namespace {

/// vvtq.md 2.4 (places, widths, signs), 2.1 (state names) and 2.7 (one bit).
constexpr char kVvtq[] = R"(
[.*\.weight]
quantizer = lsq
bits = ${wbits}
one_bit = tensor
gradient_scale = l1
init = mse
state = .

[.*\.attn\.(in|q|k|v|context)|.*\.mlp\.in]
quantizer = lsq
bits = ${abits}
one_bit = column
gradient_scale = numel_over_qp
init = vvtq
offset = ${offset}

[.*\.attn\.in]
inherit = yes
one_bit = sample
state = quant_input
[.*\.attn\.q]
inherit = yes
state = quant_q
[.*\.attn\.k]
inherit = yes
state = quant_k
[.*\.attn\.v]
inherit = yes
state = quant_v
[.*\.attn\.context]
inherit = yes
state = quant_output
[.*\.mlp\.in]
inherit = yes
one_bit = sample
state = quant1

[.*\.attn\.probs]
quantizer = lsq
bits = ${abits}
one_bit = column
signed = no
gradient_scale = numel_over_qp
init = vvtq
state = quant_attn

[.*\.mlp\.hidden]
quantizer = lsq
bits = ${abits}
one_bit = sample
signed = no
offset = yes
gradient_scale = numel_over_qp
init = vvtq
state = quant2

[patch_embed\.in\d?|pools\.\d+\.in]
quantizer = lsq
bits = ${edge_bits}
gradient_scale = numel_over_qp
init = vvtq
state = quant
[patch_embed\.in1]
inherit = yes
state = quant1
[patch_embed\.in2]
inherit = yes
state = quant2
[patch_embed\.in3]
inherit = yes
state = quant3

[head_in]
quantizer = lsq
bits = ${edge_bits}
gradient_scale = numel_over_qp
init = vvtq
offset = ${offset}
state = quant

[head_dist_in]
quantizer = lsq
bits = ${edge_bits}
gradient_scale = numel_over_qp
init = vvtq
offset = ${offset}
state = quant_dist

[(patch_embed\.(proj|conv\d)|pools\.\d+\.conv|features\.0\.0|head|head_dist)\.weight]
inherit = yes
bits = ${edge_bits}

# published: the bit-width of the merging layers is trained
[.*\.reduction\.weight]
inherit = yes
bits = ${edge_bits}
learn_bits = yes
)";

constexpr char kLsq[] = R"(
[.*\.weight]
quantizer = lsq
bits = ${wbits}
state = .

[.*\.attn\.(in|q|k|v|context)|.*\.mlp\.in|.*\.merged]
quantizer = lsq
bits = ${abits}

[.*\.attn\.probs|.*\.mlp\.hidden]
quantizer = lsq
bits = ${abits}
signed = no

[patch_embed\.(in\d?|image)|pools\.\d+\.in|features\.0\.image|head_in|head_dist_in]
quantizer = lsq
bits = ${edge_bits}

[(patch_embed\.(proj|conv\d)|pools\.\d+\.conv|features\.0\.0|head|head_dist)\.weight]
inherit = yes
bits = ${edge_bits}
)";

constexpr char kLsqPlus[] = R"(
[.*\.weight]
quantizer = lsq
bits = ${wbits}
init = lsq+
state = .

[.*\.attn\.(in|q|k|v|context)|.*\.mlp\.in|.*\.merged]
quantizer = lsq
bits = ${abits}
offset = yes
init = mse

[.*\.attn\.probs|.*\.mlp\.hidden]
quantizer = lsq
bits = ${abits}
signed = no
offset = yes
init = mse

[patch_embed\.(in\d?|image)|pools\.\d+\.in|features\.0\.image|head_in|head_dist_in]
quantizer = lsq
bits = ${edge_bits}
offset = yes
init = mse

[(patch_embed\.(proj|conv\d)|pools\.\d+\.conv|features\.0\.0|head|head_dist)\.weight]
inherit = yes
bits = ${edge_bits}
)";

constexpr char kMinMax[] = R"(
[.*\.weight]
quantizer = minmax
bits = ${wbits}
granularity = channel

[.*\.attn\.(in|q|k|v|probs|context)|.*\.mlp\.(in|hidden)|.*\.merged]
quantizer = minmax
bits = ${abits}
symmetric = no

[patch_embed\.(in\d?|image)|pools\.\d+\.in|features\.0\.image|head_in|head_dist_in]
quantizer = minmax
bits = ${edge_bits}
symmetric = no

[(patch_embed\.(proj|conv\d)|pools\.\d+\.conv|features\.0\.0|head|head_dist)\.weight]
inherit = yes
bits = ${edge_bits}
)";

/// ofq.md 5 to 9 (layers, attention in images and windows, places); names of its checkpoints but for
/// move_qkv_b4, which is one shift each for q, k and v here.
constexpr char kOfq[] = R"(
[.*\.weight]
quantizer = statsq
bits = ${wbits}
state = statsq_fn

[.*\.attn\.(q|k)\.weight]
quantizer = none
[.*\.attn\.qk\.weight]
inherit = yes
quantizer = statsq
state = qk_quant
[.*\.attn\.v\.weight]
inherit = yes
state = ../v_quant

[.*\.attn\.(in|q|k|qkx|v|context)|.*\.mlp\.(in|hidden)|.*\.merged]
quantizer = ofq
bits = ${abits}
granularity = token
name = input_quant_fn
before = move_b4
after = move_aft

[.*\.attn\.in]
inherit = yes
state = ${attn_in}
[.*\.attn\.q]
inherit = yes
state = .
name = quan_a_q_fn
before = move_q_b4
after = move_q_aft
[.*\.attn\.k]
inherit = yes
state = .
name = quan_a_k_fn
before = move_k_b4
after = move_k_aft
[.*\.attn\.v]
inherit = yes
granularity = channel
state = .
name = quan_a_v_fn
before = move_v_b4
after = move_v_aft
[.*\.attn\.qkx]
inherit = yes
granularity = token
shift_per_head = yes
state = .
name = quan_a_qkx_fn
before = move_qkx_b4
after = move_qkx_aft
[.*\.attn\.context]
inherit = yes
state = proj
[.*\.mlp\.in]
inherit = yes
state = fc1
[.*\.mlp\.hidden]
inherit = yes
signed = no
state = fc2
[.*\.merged]
inherit = yes
state = reduction

[.*\.attn\.probs]
quantizer = ofq
bits = ${abits}
signed = no
granularity = token
state = .
name = quan_a_softmax_fn

[patch_embed\.(in|image)|features\.0\.image]
quantizer = ofq
bits = ${edge_bits}
granularity = plane
state = proj
name = input_quant_fn
before = move_b4
after = move_aft
[features\.0\.image]
inherit = yes
state = 0

[head_in|head_dist_in]
quantizer = ofq
bits = ${edge_bits}
state = head
name = input_quant_fn
before = move_b4
after = move_aft
[head_dist_in]
inherit = yes
state = head_dist

[(patch_embed\.proj|features\.0\.0|head|head_dist)\.weight]
quantizer = ofq
bits = ${edge_bits}
granularity = channel
state = .
name = lsqw_fn
)";

}  // namespace

const char* builtin_scheme(std::string_view name) {
  if (name == "vvtq") return kVvtq;
  if (name == "lsq") return kLsq;
  if (name == "lsq+") return kLsqPlus;
  if (name == "minmax") return kMinMax;
  if (name == "ofq") return kOfq;
  return nullptr;
}

}  // namespace lowbit
