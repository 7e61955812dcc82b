#include "tests/support/model.h"

#include <regex>

namespace lowbit::test {

Tensor fill_expression(const std::string& text) {
  static const std::regex form(R"(fill\('([^']*)',\s*\[([0-9, ]*)\],\s*([-0-9.e]+),\s*([-0-9.e]+)\))");
  std::smatch m;
  LOWBIT_CHECK(std::regex_search(text, m, form), value, "golden", "not a fill expression: ", text);
  Shape shape;
  std::istringstream extents(m[2].str());
  for (std::string e; std::getline(extents, e, ',');) shape.append(std::stoll(e));
  return fill(m[1].str(), shape, std::stod(m[3].str()), std::stod(m[4].str()));
}

}  // namespace lowbit::test
