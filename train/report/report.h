#pragma once
// report.html: a run, or several side by side, on one page that needs nothing else. Made from the files of
// the run folders alone, so it can be made again at any time.

#include <string>
#include <vector>

namespace lowbit {

/// Writes `<folder>/report.html` (atomically): result, charts of the training, oscillation of the weights by
/// layer, distances to the thresholds, bit map, epochs, settings. `running`: the page reloads itself.
/// Errors  io: no metrics.jsonl in the folder
void write_report(const std::string& folder, bool running = false);

/// The same for several: `entries` are run folders and results of `lowbit eval --json` (files ending in
/// .json); one table, one bar each, the curves of the runs together. Returns the table as text.
/// Errors  io: a file that is neither
std::string write_comparison(const std::vector<std::string>& entries, const std::string& file);

}  // namespace lowbit
