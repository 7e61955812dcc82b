#pragma once
// Recipes: one configuration for each published result, built into the program from the folder recipes.
//
// A recipe is an INI file for --config. Its first lines are facts for this program, comments for every other
// reader:
//   #: row = OFQ DeiT-T 2/2            what it reproduces
//   #: published = 64.33               top-1 in percent; absent: no number for this row
//   #: unverified = 54.45              in its place: a number that was not confirmed
//   #: images = 38 million (30 passes) the cost
//   #: start = NAME                    the recipe whose weights it starts from
//   #: moments = start                it goes on with the optimizer's moments of that run
//   #: weights = FILE                  the public float weights that it, or its start, and its teacher need
//   #: needs = soft-labels             an option without which it cannot run

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "train/config/options.h"

namespace lowbit {

struct Recipe {
  std::string name, text;
  std::map<std::string, std::string> facts;

  std::string fact(const std::string& key) const;  ///< "" when absent
  double published() const;                        ///< percent; NaN: none
};

const std::vector<Recipe>& recipes();  ///< by name
/// A built-in recipe, or an INI file with such lines.   Errors  usage: neither
Recipe find_recipe(const std::string& name_or_path);

/// The table of `lowbit repro --list`.
std::string recipe_list();

struct Verdict {
  bool reproduced;
  std::string text;  ///< one line
};
/// Compares a result over `images` validation images. Allowed below the published number: `within` points and
/// two standard errors of a share of so many images.
Verdict judge(const Recipe& r, double top1, int64_t images, double within);

}  // namespace lowbit
