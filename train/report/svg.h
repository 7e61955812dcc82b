#pragma once
// Charts as SVG text, for pages that need no script: axes with round numbers, few colours, dark on white.

#include <string>
#include <utility>
#include <vector>

namespace lowbit::svg {

std::string escaped(const std::string& text);  ///< for HTML and SVG

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  ///< increasing x; points that are not finite are left out
  bool marked = false;                            ///< a dot at each point, for few points
};

struct Axes {
  std::string title, x;  ///< the title says what y is and its unit
  bool from_zero = false;
};

/// Lines over x; long series are averaged in buckets. "" when there is no point to draw.
std::string lines(const Axes& a, const std::vector<Series>& series);

/// Bars over [lo, hi] in equal bins, each later set drawn as an outline over the first.
struct Histogram {
  std::string name;
  std::vector<double> bins;
};
std::string histogram(const Axes& a, double lo, double hi, const std::vector<Histogram>& sets);

/// One bar a row, with its value written beside it.
std::string bars(const Axes& a, const std::vector<std::pair<std::string, double>>& rows);

/// A row of coloured cells for each name; values[row][column], columns at increasing x; NaN stays white.
std::string heat_map(const Axes& a, const std::vector<std::string>& rows, const std::vector<double>& x,
                     const std::vector<std::vector<double>>& values);

}  // namespace lowbit::svg
