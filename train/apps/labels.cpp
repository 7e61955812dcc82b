// The verb on soft-label files.

#include <cstdio>

#include "data/soft_label/label_store.h"
#include "tensor/core/error.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"
#include "train/metrics/log.h"
#include "train/step/summary.h"

namespace lowbit {
namespace {

void print_summary(const std::string& path, const LabelSummary& s) {
  std::printf("%s: %s, %lld images, %lld crops (%lld to %lld an image), highest class %d, %s\n", path.c_str(),
              soft_label_name(s.type, s.ids_each).c_str(), static_cast<long long>(s.images),
              static_cast<long long>(s.crops), static_cast<long long>(s.least_crops),
              static_cast<long long>(s.most_crops), int(s.highest_class),
              bytes_text(double(s.bytes)).c_str());
}

}  // namespace

int run_labels(const Options& o, const std::vector<std::string>&) {
  const std::vector<std::string>& words = o.positional();
  const std::string& task = words[0];
  const size_t paths = task == "pack" ? 2 : 1;
  LOWBIT_CHECK(task == "info" || task == "verify" || task == "pack", usage, "labels",
               "the task must be info, verify or pack (got ", task, ")");
  LOWBIT_CHECK(words.size() == paths + 1, usage, "labels", task,
               paths == 1 ? " takes one path" : " takes FOLDER OUT");
  Log log;
  if (task == "pack") {
    const LabelSummary s = pack_labels(words[1], words[2], [&](int64_t done, int64_t all) {
      if (done % 100 == 0 || done == all) log.status(str_cat("packed ", done, " of ", all, " files"));
    });
    log.clear_status();
    print_summary(words[2], s);
    return kExitSuccess;
  }
  print_summary(words[1], verify_labels(words[1]));
  if (task == "verify") std::printf("every record is sound\n");
  return kExitSuccess;
}

}  // namespace lowbit
