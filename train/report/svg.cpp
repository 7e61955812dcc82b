#include "train/report/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "train/metrics/format.h"

namespace lowbit::svg {
namespace {

constexpr double kWidth = 620, kHeight = 270, kLeft = 58, kRight = 18, kTop = 40, kBottom = 44;
constexpr const char* kColours[] = {"#2f6db3", "#d9730d", "#2e8b57", "#a33ea1", "#8a6d3b", "#5a5a5a"};
constexpr size_t kMostPoints = 300, kMostColumns = 80;

const char* colour(size_t i) { return kColours[i % std::size(kColours)]; }

/// Round numbers inside an interval; the interval is widened to round ends unless `exact`.
struct Ticks {
  double lo, hi, step, first;
  Ticks(double from, double to, int about, bool exact = false, double least = 0) {
    if (!(to > from)) {
      const double around = from == 0 ? 1 : 0.1 * std::fabs(from);
      from = from >= 0 ? std::max(0.0, from - around) : from - around, to += around;
    }
    const double raw = (to - from) / about, power = std::pow(10, std::floor(std::log10(raw)));
    const double m = raw / power;
    step = power * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
    if (exact) step = std::max(step, least);
    lo = exact ? from : std::floor(from / step + 1e-9) * step;
    hi = exact ? to : std::ceil(to / step - 1e-9) * step;
    first = std::ceil(lo / step - 1e-9) * step;
  }
  int count() const { return int(std::floor((hi - first) / step + 1e-9)); }
  double at(int i) const { return first + step * i; }
  std::string text(double v) const {
    const double size = std::max(std::fabs(lo), std::fabs(hi));
    if (std::fabs(v) < step * 1e-6) return "0";
    if (size >= 1e6) return format("%.4gM", v / 1e6);
    if (size >= 1e4) return format("%.4gk", v / 1e3);
    if (size < 1e-2) {  // 2.0e-04 → 2e-4
      std::string t = format("%.1e", v);
      if (const size_t e = t.find("e-0"); e != t.npos) t.erase(e + 2, 1);
      if (const size_t zero = t.find(".0e"); zero != t.npos) t.erase(zero, 2);
      return t;
    }
    return format("%.*f", std::max(0, int(std::ceil(-std::log10(step) - 1e-9))), v);
  }
};

double text_width(const std::string& s, double size) { return double(s.size()) * size * 0.56; }

std::string text(double x, double y, const std::string& s, const char* anchor = "start", double size = 12) {
  return format("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%g\">", x, y, anchor, size) +
         escaped(s) + "</text>\n";
}

std::string line(double x0, double y0, double x1, double y1, const char* stroke) {
  return format("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x0, y0, x1, y1,
                stroke);
}

std::string rect(double x, double y, double w, double h, const std::string& style) {
  return format("<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" ", x, y, std::max(0.0, w),
                std::max(0.0, h)) +
         style + "/>\n";
}

std::string begin(double width, double height, const std::string& title) {
  return format(
             "<svg viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" role=\"img\" "
             "font-family=\"system-ui,sans-serif\" fill=\"#222\">\n",
             width, height, width, height) +
         "<title>" + escaped(title) + "</title>\n" + "<g font-weight=\"600\">" +
         text(kLeft - 42, 20, title, "start", 14) + "</g>\n";
}

/// The plane of a chart: grid, tick labels, and where a point lies.
struct Plane {
  Ticks x, y;
  double px(double v) const { return kLeft + (v - x.lo) / (x.hi - x.lo) * (kWidth - kLeft - kRight); }
  double py(double v) const {
    return kHeight - kBottom - (v - y.lo) / (y.hi - y.lo) * (kHeight - kTop - kBottom);
  }
  std::string draw(const std::string& x_title) const {
    std::string s;
    for (int i = 0; i <= y.count(); ++i) {
      const double v = y.at(i);
      s += line(kLeft, py(v), kWidth - kRight, py(v), i ? "#e6e6e6" : "#888");
      s += text(kLeft - 7, py(v) + 4, y.text(v), "end");
    }
    for (int i = 0; i <= x.count(); ++i) {
      const double v = x.at(i);
      s += line(px(v), kHeight - kBottom, px(v), kHeight - kBottom + 4, "#888");
      s += text(px(v), kHeight - kBottom + 18, x.text(v), "middle");
    }
    return s + text(0.5 * (kLeft + kWidth - kRight), kHeight - 7, x_title, "middle");
  }
};

/// Names with their colours, at the right end of the title's line.
std::string legend(const std::vector<std::string>& names) {
  double x = kWidth - kRight;
  std::string s;
  for (size_t i = names.size(); i-- > 0;) {
    x -= text_width(names[i], 12);
    s += text(x, 20, names[i]);
    s += rect(x - 18, 14, 13, 4, format("fill=\"%s\"", colour(i)));
    x -= 32;
  }
  return s;
}

std::vector<std::pair<double, double>> thinned(const std::vector<std::pair<double, double>>& points) {
  std::vector<std::pair<double, double>> finite, out;
  for (const auto& p : points)
    if (std::isfinite(p.first) && std::isfinite(p.second)) finite.push_back(p);
  const size_t bucket = (finite.size() + kMostPoints - 1) / kMostPoints;
  if (bucket <= 1) return finite;
  for (size_t i = 0; i < finite.size(); i += bucket) {
    const size_t end = std::min(finite.size(), i + bucket);
    double x = 0, y = 0;
    for (size_t k = i; k < end; ++k) x += finite[k].first, y += finite[k].second;
    out.emplace_back(x / double(end - i), y / double(end - i));
  }
  return out;
}

/// White to dark blue for 0 … 1.
std::string shade(double t) {
  t = std::clamp(t, 0.0, 1.0);
  const auto mix = [t](int a, int b) { return int(std::lround(a + (b - a) * t)); };
  return format("fill=\"#%02x%02x%02x\"", mix(244, 20), mix(247, 66), mix(251, 130));
}

}  // namespace

std::string escaped(const std::string& text) {
  std::string s;
  for (const char c : text) {
    if (c == '&')
      s += "&amp;";
    else if (c == '<')
      s += "&lt;";
    else if (c == '>')
      s += "&gt;";
    else if (c == '"')
      s += "&quot;";
    else
      s += c;
  }
  return s;
}

std::string lines(const Axes& a, const std::vector<Series>& all) {
  std::vector<Series> series;
  double x0 = INFINITY, x1 = -INFINITY, y0 = a.from_zero ? 0 : INFINITY, y1 = -INFINITY;
  for (Series s : all) {
    s.points = thinned(s.points);
    if (s.points.empty()) continue;
    for (const auto& [x, y] : s.points)
      x0 = std::min(x0, x), x1 = std::max(x1, x), y0 = std::min(y0, y), y1 = std::max(y1, y);
    series.push_back(std::move(s));
  }
  if (series.empty()) return "";
  const Plane plane{Ticks(x0, x1, 7, true, 1), Ticks(y0, y1, 5)};
  std::string s = begin(kWidth, kHeight, a.title) + plane.draw(a.x);
  std::vector<std::string> names;
  for (size_t i = 0; i < series.size(); ++i) {
    names.push_back(series[i].name);
    std::string path;
    for (const auto& [x, y] : series[i].points) path += format("%.1f,%.1f ", plane.px(x), plane.py(y));
    s += format("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" points=\"", colour(i)) + path +
         "\"/>\n";
    if (!series[i].marked && series[i].points.size() > 1) continue;
    for (const auto& [x, y] : series[i].points)
      s += format("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", plane.px(x), plane.py(y),
                  colour(i));
  }
  if (names.size() > 1) s += legend(names);
  return s + "</svg>\n";
}

std::string histogram(const Axes& a, double lo, double hi, const std::vector<Histogram>& sets) {
  double most = 0;
  for (const Histogram& h : sets)
    for (const double b : h.bins) most = std::max(most, b);
  if (!(most > 0)) return "";
  const Plane plane{Ticks(lo, hi, 5), Ticks(0, most, 5)};
  std::string s = begin(kWidth, kHeight, a.title) + plane.draw(a.x);
  std::vector<std::string> names;
  for (size_t k = 0; k < sets.size(); ++k) {
    names.push_back(sets[k].name);
    const double width = (hi - lo) / double(sets[k].bins.size());
    std::string path;
    for (size_t i = 0; i < sets[k].bins.size(); ++i) {
      const double left = plane.px(lo + width * double(i)), right = plane.px(lo + width * double(i + 1)),
                   top = plane.py(sets[k].bins[i]);
      if (k == 0)
        s += rect(left + 0.5, top, right - left - 1, plane.py(0) - top,
                  format("fill=\"%s\" fill-opacity=\"0.75\"", colour(k)));
      else
        path += format("%.1f,%.1f %.1f,%.1f ", left, top, right, top);
    }
    if (k)
      s += format("<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" points=\"", colour(k)) + path +
           "\"/>\n";
  }
  if (names.size() > 1) s += legend(names);
  return s + "</svg>\n";
}

std::string bars(const Axes& a, const std::vector<std::pair<std::string, double>>& rows) {
  double most = 0, label = 0;
  for (const auto& [name, v] : rows) most = std::max(most, v), label = std::max(label, text_width(name, 12));
  if (!(most > 0)) return "";
  const double left = 26 + label, row = 24, height = kTop + row * double(rows.size()) + 8;
  std::string s = begin(kWidth, height, a.title);
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = kTop + row * double(i), w = (kWidth - left - 70) * rows[i].second / most;
    s += text(left - 8, y + 13, rows[i].first, "end");
    s += rect(left, y, w, 17, format("fill=\"%s\"", colour(0)));
    s += text(left + w + 6, y + 13, format("%.4g", rows[i].second));
  }
  return s + "</svg>\n";
}

std::string heat_map(const Axes& a, const std::vector<std::string>& rows, const std::vector<double>& x,
                     const std::vector<std::vector<double>>& values) {
  // A few rows may be far above the rest: the colours span nine tenths of the values.
  std::vector<double> sorted;
  for (const auto& r : values)
    for (const double v : r)
      if (std::isfinite(v)) sorted.push_back(v);
  std::sort(sorted.begin(), sorted.end());
  const double largest = sorted.empty() ? 0 : sorted.back(),
               usual = sorted.empty() ? 0 : sorted[size_t(0.9 * double(sorted.size() - 1))],
               most = usual > 0 ? usual : largest;
  double label = 0;
  for (const std::string& r : rows) label = std::max(label, text_width(r, 11));
  if (rows.empty() || x.empty()) return "";
  const size_t bucket = (x.size() + kMostColumns - 1) / kMostColumns,
               columns = (x.size() + bucket - 1) / bucket;
  const double left = 26 + label, row = 14, top = 34, bottom = top + row * double(rows.size());
  const double width = (kWidth - left - kRight) / double(columns);
  std::string s = begin(kWidth, bottom + 46, a.title);
  for (size_t r = 0; r < rows.size(); ++r) {
    const double y = top + row * double(r);
    s += text(left - 7, y + 11, rows[r], "end", 11);
    for (size_t c = 0; c < columns; ++c) {
      double sum = 0, n = 0;
      for (size_t k = c * bucket; k < std::min(x.size(), (c + 1) * bucket); ++k)
        if (std::isfinite(values[r][k])) sum += values[r][k], ++n;
      if (n > 0)
        s += rect(left + width * double(c), y, width + 0.3, row - 1, shade(most > 0 ? sum / n / most : 0));
    }
  }
  for (const auto& [at, anchor] :
       {std::pair(size_t(0), "start"), {columns / 2, "middle"}, {columns - 1, "end"}}) {
    if ((columns < 3 && anchor[0] == 'm') || (columns < 2 && anchor[0] == 'e')) continue;
    const double where = at == 0             ? left
                         : at == columns - 1 ? kWidth - kRight
                                             : left + width * (double(at) + 0.5);
    s += text(where, bottom + 14, format("%.0f", x[std::min(x.size() - 1, at * bucket)]), anchor, 11);
  }
  s += text(0.5 * (left + kWidth - kRight), bottom + 34, a.x, "middle");
  for (int i = 0; i < 40; ++i) s += rect(26 + 2.0 * i, bottom + 24, 2.2, 10, shade(i / 39.0));
  s += text(22, bottom + 33, "0", "end", 11) +
       text(110, bottom + 33, format(most < largest ? "%.3g and more" : "%.3g", most), "start", 11);
  return s + "</svg>\n";
}

}  // namespace lowbit::svg
