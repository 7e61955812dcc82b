#pragma once
// --compat reference: which published program a run follows where it departs from what is meant. The places
// are listed in docs/methods ("--compat reference").

#include "train/config/options.h"

namespace lowbit {

enum class Compat : uint8_t { none, vvtq, ofq };

/// OFQ's for --quantizer ofq, also with 32 bits; VVTQ's else. Verbs without the option: none.
inline Compat compat(const Options& o) {
  const bool asked = find_option("compat", o.verb().mask) && o.text("compat") == "reference";
  if (!asked) return Compat::none;
  return o.text("quantizer") == "ofq" ? Compat::ofq : Compat::vvtq;
}

}  // namespace lowbit
