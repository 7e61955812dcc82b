#include "train/config/recipe.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "lowbit_recipes.h"
#include "tensor/core/error.h"
#include "train/metrics/format.h"

namespace lowbit {
namespace {

Recipe parse_recipe(std::string name, std::string text) {
  Recipe r{std::move(name), std::move(text), {}};
  std::istringstream in(r.text);
  for (std::string line; std::getline(in, line) && line.starts_with("#: ");) {
    const size_t eq = line.find(" = ");
    LOWBIT_CHECK(eq != line.npos, io, "recipe", r.name, ": '", line, "' must be '#: KEY = VALUE'");
    r.facts[line.substr(3, eq - 3)] = line.substr(eq + 3);
  }
  return r;
}

}  // namespace

std::string Recipe::fact(const std::string& key) const {
  const auto at = facts.find(key);
  return at == facts.end() ? "" : at->second;
}

double Recipe::published() const {
  const std::string text = fact("published");
  return text.empty() ? NAN : std::strtod(text.c_str(), nullptr);
}

const std::vector<Recipe>& recipes() {
  static const std::vector<Recipe> all = [] {
    std::vector<Recipe> r;
    for (const auto& [name, text] : kRecipeFiles) r.push_back(parse_recipe(name, text));
    return r;
  }();
  return all;
}

Recipe find_recipe(const std::string& name) {
  for (const Recipe& r : recipes())
    if (r.name == name) return r;
  LOWBIT_CHECK(name.ends_with(".ini"), usage, "repro", "there is no recipe '", name,
               "'; 'lowbit repro --list' lists them");
  std::ifstream in(name);
  LOWBIT_CHECK(in.good(), io, "repro", "cannot read '", name, "'");
  return parse_recipe(std::filesystem::path(name).stem().string(), {std::istreambuf_iterator<char>(in), {}});
}

std::string recipe_list() {
  std::string s = format("%-24s %-10s %-44s %s\n", "recipe", "top-1 %", "row", "images seen");
  for (const Recipe& r : recipes()) {
    const std::string unverified = r.fact("unverified"), published = r.fact("published");
    const std::string number = !published.empty()   ? published
                               : unverified.empty() ? "-"
                                                    : "(" + unverified + ")";
    s += format("%-24s %-10s %-44s %s\n", r.name.c_str(), number.c_str(), r.fact("row").c_str(),
                r.fact("images").c_str());
  }
  return s + "Numbers in brackets were not confirmed; - : the row has no number of its own.\n";
}

Verdict judge(const Recipe& r, double top1, int64_t images, double within) {
  const double share = top1 / 100,
               error = 100 * std::sqrt(share * (1 - share) / double(std::max<int64_t>(images, 1)));
  std::string text = format("%s: top-1 %.2f %% of %lld images, standard error %.2f", r.name.c_str(), top1,
                            static_cast<long long>(images), error);
  const double published = r.published();
  if (std::isnan(published)) {
    const std::string unverified = r.fact("unverified");
    return {true,
            text + (unverified.empty() ? "; no number is published for this row"
                                       : "; the number " + unverified + " was not confirmed: no verdict")};
  }
  const double allowed = within + 2 * error;
  const bool good = top1 >= published - allowed;
  return {good, text + format("; published %.2f, %+.2f points: ", published, top1 - published) +
                    (good ? "reproduced" : "NOT reproduced") +
                    format(" (allowed: %.2f below, %.2f and two standard errors)", allowed, within)};
}

}  // namespace lowbit
