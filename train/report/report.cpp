#include "train/report/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tensor/core/error.h"
#include "tensor/io/atomic_file.h"
#include "train/metrics/log.h"
#include "train/report/svg.h"

namespace lowbit {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Points = std::vector<std::pair<double, double>>;
using Rows = std::vector<std::vector<std::string>>;
constexpr int kFloatBits = 32, kReloadSeconds = 20;
constexpr size_t kMostOutliers = 25;

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string format(const char* pattern, double v) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, v);
  return text;
}

/// Numbers that are not finite are strings in the files.
double value(const Json& j, const std::string& key) {
  const auto at = j.find(key);
  return at != j.end() && at->is_number() ? at->get<double>() : NAN;
}

std::string shown(double v, const char* pattern) { return std::isfinite(v) ? format(pattern, v) : "–"; }

/// Everything that a run folder says.
struct Run {
  std::string name;
  std::vector<Json> events;
  std::vector<std::vector<std::string>> epochs;  // rows of summary.csv, the first names the columns
  Json args, manifest;
  std::vector<std::string> warnings;

  explicit Run(const std::string& folder)
      : name(fs::absolute(folder).lexically_normal().filename().string()) {
    if (name.empty()) name = fs::absolute(folder).lexically_normal().parent_path().filename().string();
    std::ifstream in(folder + "/metrics.jsonl");
    LOWBIT_CHECK(in.good(), io, "report", "'", folder, "' is no run folder: it has no metrics.jsonl");
    for (std::string line; std::getline(in, line);)
      if (Json j = Json::parse(line, nullptr, false); j.is_object()) events.push_back(std::move(j));
    std::istringstream summary(read_text(folder + "/summary.csv"));
    for (std::string line; std::getline(summary, line);) {
      epochs.emplace_back();
      std::istringstream cells(line);
      for (std::string cell; std::getline(cells, cell, ',');) epochs.back().push_back(cell);
    }
    args = Json::parse(read_text(folder + "/args.json"), nullptr, false);
    manifest = Json::parse(read_text(folder + "/manifest.json"), nullptr, false);
    std::istringstream log(read_text(folder + "/log.txt"));
    for (std::string line; std::getline(log, line);)
      if (const size_t at = line.find(" WARNING rank0 "); at != line.npos)
        warnings.push_back(line.substr(at + 15));
  }
  Points points(const std::string& split, const std::string& key, double factor = 1) const {
    Points p;
    for (const Json& e : events)
      if (e.value("split", "") == split && e.contains(key))
        p.emplace_back(value(e, "step"), factor * value(e, key));
    return p;
  }
  const Json* last(const std::string& split) const {
    for (size_t i = events.size(); i-- > 0;)
      if (events[i].value("split", "") == split) return &events[i];
    return nullptr;
  }
  double last(const std::string& split, const std::string& key) const {
    const Json* e = last(split);
    return e ? value(*e, key) : NAN;
  }
  double best_top1() const {
    double best = NAN;
    for (const auto& [step, v] : points("eval", "top1")) best = std::isnan(best) ? v : std::max(best, v);
    return best;
  }
  std::string setting(const std::string& option) const {
    if (!args.is_object() || !args.contains("options")) return "";
    const auto& o = args["options"];
    return o.contains(option) ? o[option].value("value", "") : "";
  }
  double weight_bits() const { return manifest.is_object() ? value(manifest, "weight bits") : NAN; }
};

std::string table(const Rows& rows, const char* style = "") {
  std::string s = std::string("<table class=\"") + style + "\">\n";
  for (size_t r = 0; r < rows.size(); ++r) {
    const char* cell = r ? "td" : "th";
    s += "<tr>";
    for (const std::string& c : rows[r])
      s += std::string("<") + cell + ">" + svg::escaped(c) + "</" + cell + ">";
    s += "</tr>\n";
  }
  return s + "</table>\n";
}

std::string page(const std::string& title, const std::string& subtitle, const std::string& body,
                 bool running) {
  return std::string("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n") +
         (running ? format("<meta http-equiv=\"refresh\" content=\"%.0f\">\n", kReloadSeconds) : "") +
         "<title>" + svg::escaped(title) + " – lowbit</title>\n" + R"(<style>
body{font:15px/1.45 system-ui,sans-serif;color:#222;background:#fff;max-width:1300px;margin:24px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:30px 0 10px;border-bottom:1px solid #ddd;padding-bottom:4px}
.sub{color:#555;margin:0 0 18px}.charts{display:flex;flex-wrap:wrap;gap:18px 28px;align-items:flex-start}
svg{max-width:100%;height:auto}.tiles{display:flex;flex-wrap:wrap;gap:12px}
.tile{border:1px solid #ddd;border-radius:6px;padding:8px 16px;min-width:110px}
.tile b{display:block;font-size:22px;font-weight:600}.tile span{color:#555;font-size:13px}
table{border-collapse:collapse;font-size:14px}th{text-align:left;color:#555;font-weight:600}
th,td{padding:3px 16px 3px 0;border-bottom:1px solid #eee;vertical-align:top}
table.numbers td,table.numbers th{text-align:right}table.numbers td:first-child,table.numbers th:first-child{text-align:left}
ul{margin:0;padding-left:20px}summary{cursor:pointer;color:#555;margin:8px 0}td:last-child{word-break:break-word}
@media print{details{display:none}}
</style></head><body>
)" + "<h1>" +
         svg::escaped(title) + "</h1>\n<p class=\"sub\">" + svg::escaped(subtitle) + "</p>\n" + body +
         "</body></html>\n";
}

std::string tiles(const std::vector<std::pair<std::string, std::string>>& all) {
  std::string s = "<div class=\"tiles\">\n";
  for (const auto& [what, number] : all)
    if (number != "–")
      s += "<div class=\"tile\"><b>" + svg::escaped(number) + "</b><span>" + svg::escaped(what) +
           "</span></div>\n";
  return s + "</div>\n";
}

std::string section(const std::string& title, const std::string& body) {
  return body.empty() ? "" : "<h2>" + title + "</h2>\n" + body;
}

std::string charts(std::initializer_list<std::string> all) {
  std::string s;
  for (const std::string& c : all) s += c;
  return s.empty() ? "" : "<div class=\"charts\">\n" + s + "</div>\n";
}

std::string result_tiles(const Run& r) {
  return tiles({{"best top-1", shown(r.best_top1(), "%.2f %%")},
                {"last top-1", shown(r.last("eval", "top1"), "%.2f %%")},
                {"last top-5", shown(r.last("eval", "top5"), "%.2f %%")},
                {"evaluation loss", shown(r.last("eval", "loss"), "%.3f")},
                {"steps", shown(r.last("train", "step"), "%.0f")},
                {"training", shown(r.last("train", "img_per_s"), "%.1f img/s")},
                {"weights", shown(r.weight_bits() / 8 / 1048576, "%.2f MiB")},
                {"oscillating weights", shown(100 * r.last("train", "osc/share"), "%.2f %%")}});
}

std::string training_charts(const Run& r) {
  return charts({svg::lines({"Loss", "step"}, {{"training", r.points("train", "loss")},
                                               {"evaluation", r.points("eval", "loss"), true}}),
                 svg::lines({"Accuracy, %", "step"}, {{"training top-1", r.points("train", "top1")},
                                                      {"top-1", r.points("eval", "top1"), true},
                                                      {"top-5", r.points("eval", "top5"), true}}),
                 svg::lines({"Learning rate", "step", true}, {{"rate", r.points("train", "lr")}}),
                 svg::lines({"Training speed, images per second", "step", true},
                            {{"speed", r.points("train", "img_per_s")}})});
}

/// Keys "<prefix><layer>" of the events of a split: the layers, the steps, and factor·value of each.
struct LayerSeries {
  std::vector<std::string> layers;
  std::vector<double> steps;
  std::vector<std::vector<double>> values;

  LayerSeries(const Run& r, const std::string& split, const std::string& prefix, double factor = 1) {
    const Json* newest = r.last(split);
    if (!newest) return;
    for (const auto& [key, v] : newest->items())
      if (key.starts_with(prefix)) layers.push_back(key.substr(prefix.size()));
    values.resize(layers.size());
    for (const Json& e : r.events) {
      if (e.value("split", "") != split) continue;
      steps.push_back(value(e, "step"));
      for (size_t i = 0; i < layers.size(); ++i) values[i].push_back(factor * value(e, prefix + layers[i]));
    }
  }
  std::string map(const std::string& title) const {
    return svg::heat_map({title, "step"}, layers, steps, values);
  }
  /// Only layers that `keep` takes, each as |value / first value − 1| in percent.
  template <class F>
  LayerSeries moved(F keep) const {
    LayerSeries m = *this;
    m.layers.clear(), m.values.clear();
    for (size_t i = 0; i < layers.size(); ++i) {
      if (!keep(layers[i])) continue;
      m.layers.push_back(layers[i]), m.values.push_back(values[i]);
      for (double& v : m.values.back()) v = 100 * std::fabs(v / values[i][0] - 1);
    }
    return m;
  }
};

/// How the scales move: the weights' that moved most as curves, all of them as maps.
std::string scale_charts(const Run& r) {
  const LayerSeries scales(r, "train", "scale/");
  const LayerSeries watched(r, "train", "osc/share/");
  if (scales.steps.size() < 2) return "";
  const auto is_weight = [&](const std::string& layer) {
    return std::find(watched.layers.begin(), watched.layers.end(), layer) != watched.layers.end();
  };
  const LayerSeries weights = scales.moved(is_weight),
                    others = scales.moved([&](const std::string&layer) { return !is_weight(layer); });
  std::vector<size_t> order(weights.layers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return weights.values[a].back() > weights.values[b].back(); });
  std::vector<svg::Series> most;
  for (size_t i = 0; i < std::min<size_t>(order.size(), 3); ++i) {
    most.push_back({weights.layers[order[i]], {}});
    const auto at = std::find(scales.layers.begin(), scales.layers.end(), weights.layers[order[i]]);
    const std::vector<double>& values = scales.values[size_t(at - scales.layers.begin())];
    for (size_t k = 0; k < values.size(); ++k)
      most.back().points.emplace_back(scales.steps[k], values[k] / values[0]);
  }
  return charts({svg::lines({"Scales", "step; the scales that moved most, over their first values"}, most),
                 weights.map("Change of the weights' scales since the first line, %")}) +
         (others.layers.empty() ? ""
                                : "<details><summary>scales of the activations</summary>\n" +
                                      others.map("Change of the activations' scales, %") + "</details>\n");
}

std::string weight_charts(const Run& r) {
  std::vector<svg::Histogram> sets;
  const auto add = [&](const Json& e, const std::string& name) {
    sets.push_back({name, {}});
    for (const Json& b : e["threshold_distance"]) sets.back().bins.push_back(100 * b.get<double>());
  };
  const Json* newest = r.last("weights");
  if (newest && newest->contains("threshold_distance"))
    add(*newest, format("after step %.0f", value(*newest, "step")));
  for (const Json& e : r.events)
    if (newest && &e != newest && e.contains("threshold_distance")) {
      add(e, "at the start");
      break;
    }
  return charts(
      {svg::lines({"Weights on the move, %", "step", true},
                  {{"oscillating", r.points("train", "osc/share", 100)},
                   {"new level in a step", r.points("train", "osc/flip_rate", 100)}}),
       svg::lines({"Where the weights are, %", "step", true},
                  {{"outside the levels", r.points("weights", "clipped", 100), true},
                   {"at level zero", r.points("weights", "dead_zone", 100), true}}),
       svg::histogram({"Weights by distance, %", "distance to the nearest threshold, in levels"}, 0, 0.5,
                      sets),
       LayerSeries(r, "train", "osc/share/", 100).map("Oscillating share of each layer, %"),
       LayerSeries(r, "weights", "clipped/", 100).map("Share of each layer outside its levels, %"),
       LayerSeries(r, "weights", "outlier/").map("Largest weight of each layer, in standard deviations")});
}

/// Result of `lowbit sensitivity`, if the run has one.
std::string sensitivity_section(const std::string& folder) {
  const Json j = Json::parse(read_text(folder + "/sensitivity.json"), nullptr, false);
  if (!j.is_object() || !j.contains("rows")) return "";
  const bool spare = j.value("mode", "") == "spare";
  Rows rows = {
      {spare ? "not quantized" : "quantized", "top-1 %", spare ? "points won" : "points lost", "loss"}};
  std::vector<std::pair<std::string, double>> top1;
  const auto take = [&](const Json& row, bool with_effect) {
    const std::string group = row.value("group", "");
    rows.push_back({group, shown(value(row, "top1"), "%.2f"),
                    with_effect ? shown(value(row, "effect"), "%.2f") : "",
                    shown(value(row, "loss"), "%.3f")});
    top1.emplace_back(group, value(row, "top1"));
  };
  for (const char* key : {"none", "all"})
    if (j.contains(key)) take(j[key], false);
  for (const Json& row : j["rows"]) take(row, true);
  std::vector<std::pair<std::string, double>> reach;
  for (const Json& p : j.value("spreads", Json::array()))
    reach.emplace_back(p.value("slot", ""), value(p, "reach"));
  std::stable_sort(reach.begin(), reach.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  reach.resize(std::min<size_t>(reach.size(), kMostOutliers));
  return charts({svg::bars({spare ? "Top-1 with one part not quantized, %"
                                  : "Top-1 with only one part quantized, %",
                            ""},
                           top1),
                 svg::bars({"Largest outliers: |x| over the standard deviation", ""}, reach)}) +
         "<details><summary>table</summary>\n" + table(rows, "numbers") + "</details>\n";
}

std::string bit_map_section(const Run& r) {
  if (!r.manifest.is_object() || !r.manifest.contains("bit map")) return "";
  const auto bits = [](const Json& j, const char* key) {
    const int n = j.value(key, kFloatBits);
    return n == kFloatBits ? std::string("float") : std::to_string(n) + " bit";
  };
  Rows rows = {{"products", "left operand", "right operand", "million multiply-adds"}};
  for (const Json& row : r.manifest["bit map"])
    rows.push_back({row.value("products", ""), "activations " + bits(row, "left bits"),
                    (row.value("weights", false) ? "weights " : "activations ") + bits(row, "right bits"),
                    format("%.4g", value(row, "multiply-adds") / 1e6)});
  return table(rows) +
         "<p class=\"sub\">Norms, softmax, GELU, residual sums, biases and embeddings: float.</p>\n";
}

std::string epochs_section(const Run& r) {
  if (r.epochs.size() < 2) return "";
  Rows rows;
  const std::vector<std::string>& keys = r.epochs[0];
  const std::vector<std::pair<std::string, const char*>> columns = {
      {"epoch", "%.0f"},     {"train_loss", "%.4f"}, {"eval_loss", "%.4f"}, {"eval_top1", "%.2f"},
      {"eval_top5", "%.2f"}, {"lr", "%.3g"},         {"img_per_s", "%.1f"}, {"osc_share", "%.4f"}};
  rows.push_back({"epoch", "training loss", "evaluation loss", "top-1 %", "top-5 %", "learning rate", "img/s",
                  "oscillating share"});
  for (size_t i = 1; i < r.epochs.size(); ++i) {
    rows.emplace_back();
    for (const auto& [key, pattern] : columns) {
      const size_t at = size_t(std::find(keys.begin(), keys.end(), key) - keys.begin());
      const std::string cell = at < r.epochs[i].size() ? r.epochs[i][at] : "";
      rows.back().push_back(cell.empty() ? "–" : shown(std::strtod(cell.c_str(), nullptr), pattern));
    }
  }
  return table(rows, "numbers");
}

std::string settings_section(const Run& r) {
  if (!r.args.is_object() || !r.args.contains("options")) return "";
  Rows chosen = {{"option", "value", "from"}}, others = {{"option", "value"}};
  for (const auto& [name, o] : r.args["options"].items()) {
    if (o.value("origin", "") == "default")
      others.push_back({"--" + name, o.value("value", "")});
    else
      chosen.push_back({"--" + name, o.value("value", ""), o.value("origin", "")});
  }
  std::string s = table(chosen) + "<details><summary>options at their defaults</summary>\n" + table(others) +
                  "</details>\n";
  Rows facts = {{"", ""}};
  if (r.manifest.is_object())
    for (const auto& [what, v] : r.manifest.items())
      if (v.is_string() && !v.get<std::string>().empty()) facts.push_back({what, v.get<std::string>()});
  return s + "<details><summary>program, machine and data</summary>\n" + table(facts) + "</details>\n";
}

std::string warnings_section(const Run& r) {
  if (r.warnings.empty()) return "";
  std::string s = "<ul>\n";
  for (const std::string& w : r.warnings) s += "<li>" + svg::escaped(w) + "</li>\n";
  return s + "</ul>\n";
}

// ---- several runs

/// A line of the comparison: a run folder, or a result of eval.
struct Entry {
  std::string name;
  double top1 = NAN, top5 = NAN, train_speed = NAN, eval_speed = NAN, peak_mib = NAN, weight_bits = NAN;
};

Entry entry_of(const Run& r) {
  return {r.name,
          r.last("eval", "top1"),
          r.last("eval", "top5"),
          r.epochs.size() > 1 && r.epochs.back().size() > 6 ? std::strtod(r.epochs.back()[6].c_str(), nullptr)
                                                            : NAN,
          r.last("eval", "img_per_s"),
          r.last("eval", "peak_mib"),
          r.weight_bits()};
}

Entry entry_of(const std::string& file) {
  const Json j = Json::parse(read_text(file), nullptr, false);
  LOWBIT_CHECK(j.is_object() && j.contains("top1"), io, "report", "'", file,
               "' is neither a run folder nor a result of 'lowbit eval --json'");
  return {fs::path(file).stem().string(), value(j, "top1"),     value(j, "top5"),       NAN,
          value(j, "img_per_s"),          value(j, "peak_mib"), value(j, "weight_bits")};
}

Rows comparison_rows(const std::vector<Entry>& all) {
  Rows rows = {{"model", "top-1 %", "top-5 %", "train img/s", "eval img/s", "peak MiB", "weights Mbit"}};
  for (const Entry& e : all)
    rows.push_back({e.name, shown(e.top1, "%.2f"), shown(e.top5, "%.2f"), shown(e.train_speed, "%.1f"),
                    shown(e.eval_speed, "%.1f"), shown(e.peak_mib, "%.1f"),
                    shown(e.weight_bits / 1e6, "%.1f")});
  return rows;
}

std::string aligned(const Rows& rows) {
  std::string s;
  for (const auto& row : rows) {
    char text[64];
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string& cell = row[c] == "–" ? "-" : row[c];
      std::snprintf(text, sizeof text, c ? " %12s" : "%-24s", cell.c_str());
      s += text;
    }
    s += "\n";
  }
  return s;
}

}  // namespace

void write_report(const std::string& folder, bool running) {
  const Run r(folder);
  std::string subtitle = r.manifest.is_object() ? r.manifest.value("model", "") : "";
  if (running) subtitle += str_cat(subtitle.empty() ? "" : "; ", "running, ", iso_time(unix_time()));
  const std::string body = result_tiles(r) + section("Training", training_charts(r)) +
                           section("Weights", weight_charts(r)) + section("Scales", scale_charts(r)) +
                           section("Sensitivity", sensitivity_section(folder)) +
                           section("Warnings", warnings_section(r)) + section("Bit map", bit_map_section(r)) +
                           section("Epochs", epochs_section(r)) + section("Settings", settings_section(r));
  write_file_atomic(folder + "/report.html", page(r.name, subtitle, body, running));
}

std::string write_comparison(const std::vector<std::string>& entries, const std::string& file) {
  std::vector<Entry> all;
  std::vector<svg::Series> top1, loss;
  std::vector<std::pair<std::string, double>> bars;
  std::string links;
  for (const std::string& e : entries) {
    if (!fs::is_directory(e)) {
      all.push_back(entry_of(e));
    } else {
      const Run r(e);
      all.push_back(entry_of(r));
      top1.push_back({r.name, r.points("eval", "top1"), true}),
          loss.push_back({r.name, r.points("train", "loss")});
      write_report(e);
      const fs::path to = fs::relative(fs::absolute(e) / "report.html", fs::absolute(file).parent_path());
      links += "<li><a href=\"" + svg::escaped(to.string()) + "\">" + svg::escaped(r.name) + "</a></li>\n";
    }
    bars.emplace_back(all.back().name, all.back().top1);
  }
  const Rows rows = comparison_rows(all);
  const std::string body = table(rows, "numbers") +
                           section("Curves", charts({svg::bars({"Top-1 at the end, %", ""}, bars),
                                                     svg::lines({"Top-1 over the training, %", "step"}, top1),
                                                     svg::lines({"Training loss", "step"}, loss)})) +
                           section("Runs", links.empty() ? "" : "<ul>\n" + links + "</ul>\n");
  write_file_atomic(file, page("Comparison", str_cat(all.size(), " results"), body, false));
  return aligned(rows);
}

}  // namespace lowbit
