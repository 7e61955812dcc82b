#pragma once
// Texts made from the option table: help, manual page, shell completion.

#include <string>

#include "train/config/option_table.h"

namespace lowbit {

std::string help_overview();  ///< verbs and exit codes
/// Options of a verb by group, each with unit, default, range and source; rare ones only with `all`.
std::string help_verb(const VerbSpec& verb, bool all);
std::string man_page();         ///< troff, man(7)
std::string bash_completion();  ///< a script to be sourced by bash

}  // namespace lowbit
