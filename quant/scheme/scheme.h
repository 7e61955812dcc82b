#pragma once
// Schemes: which slot of a model gets which quantizer. A scheme is text, built in or from a file:
//
//   # comment
//   [blocks\.\d+\.attn\.probs]        a regular expression over whole slot names; the last match wins
//   quantizer = lsq                   lsq, minmax, ofq, statsq (weights), or none (stays float)
//   bits = 4                          2 … 8; 32 or -1: stays float; 1 with one_bit, ofq, statsq
//   signed = no
//   state = quant_attn                where the state appears below the slot's owner; "." is beside its
//   weights;
//                                     default: <last part of the slot>_quant
//
// `inherit = yes` starts from the settings of the rule that matched before. Further keys: offset, symmetric,
// learn_bits, learn_scale, clamp, published_scale (yes/no); granularity = tensor|channel (channel: minmax
// weights); gradient_scale = l1|numel|numel_over_qp; init = vvtq|lsq|lsq+|mse|minmax; mask =
// clip_then_round|round_then_clip; ties = half|inclusive|exclusive; heads, axis: head-wise bit-widths;
// one_bit = tensor|sample|column: what shares a scale at bits = 1 (BinaryQuantizer). For ofq (OfqQuantizer):
// granularity = tensor|token|channel|plane; name, before, after: names of the scale and of the shifts. Values
// may be given as ${wbits}, ${abits}, ${edge_bits}, ${offset}, …

#include <map>
#include <set>
#include <string>
#include <vector>

#include "quant/quantizer/quantizer.h"

namespace lowbit {

struct Rule {
  std::string slot;  ///< regular expression, matched against the whole slot name
  std::map<std::string, std::string> settings;
};

struct Scheme {
  std::string name;
  std::vector<Rule> rules;
  std::string text() const;  ///< parse_scheme(text()) gives the same rules
};

struct SchemeOptions {
  int wbits = 4, abits = 4;  ///< of the blocks; 32 or -1: float
  int edge_bits = 8;         ///< first and last layer
  bool offset = false;       ///< VVTQ --use-offset
  bool learn_bits = false, learn_scale = true;
  bool published_scale = false;  ///< scales to the last bit as published (LsqSettings::published_scale)
  bool qk_reparam = false;       ///< the model has OFQ's query-key reparameterization
};

/// Errors  usage, with the line: unknown keys or values, text outside a section
Scheme parse_scheme(const std::string& text, const std::string& name, const SchemeOptions& o = {});
/// lsq, lsq+, minmax, ofq, vvtq, or the path of a file.   Errors  usage: neither, bits outside [1, 8]
Scheme load_scheme(const std::string& name_or_path, const SchemeOptions& o = {});
std::vector<std::string> scheme_names();

struct Report {
  std::vector<std::string> installed, left_float;  ///< slot names, in model order
  std::vector<std::string> unused_rules;           ///< patterns that decide about no slot
  std::string str() const;
};
/// Fills the model's slots. LSQ and OFQ quantizers start `learned` (`fixed` with learn_scale = no), min-max
/// `observe`.
Report install(Module& model, const Scheme& s);

/// All quantizers of a model with their slot names, in model order.
std::vector<std::pair<std::string, Quantizer*>> quantizers(Module& model);
/// The same transition for all of them.
void set_quant_state(Module& model, QuantState s, std::string_view reason);

/// Names in state() that belong to quantizers and not to the float model.
std::set<std::string> quantizer_state(Module& model);

/// Bits of every slot that quantizes, by slot name; a slot that is absent is float.
std::map<std::string, int> slot_bits(Module& model);

/// One line of the bit map; 32 means float.
struct LayerBits {
  std::string layer;  ///< "blocks.0.attn.qkv"
  int wbits = 32, abits = 32;
  int64_t weights = 0;  ///< elements of the weight
};
std::vector<LayerBits> bit_map(Module& model);
/// Slots whose values stay float: empty ones, and those whose quantizer is off.
std::vector<std::string> float_slots(Module& model);
/// Bits to store all parameters: quantized weights at their width, everything else at 32; a trained scale
/// table counts with the one entry per group in use.
int64_t model_bits(Module& model);

/// Share of each quantized weight's values outside its levels.
std::vector<std::pair<std::string, double>> clipped_weights(Module& model);

}  // namespace lowbit
