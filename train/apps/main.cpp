#include "nn/models/factory.h"
#include "train/apps/run_main.h"
#include "train/apps/verbs.h"

int main(int argc, char** argv) {
  using namespace lowbit;
  const VerbMain verbs[] = {{"train", run_train},     {"eval", run_eval},
                            {"inspect", run_inspect}, {"diff", run_diff},
                            {"convert", run_convert}, {"bench", run_bench},
                            {"report", run_report},   {"labels", run_labels},
                            {"repro", run_repro},     {"sensitivity", run_sensitivity}};
  return run_main(argc, argv, verbs, [] {
    std::string text;
    for (const std::string& name : model_names()) text += name + "\n";
    return text;
  });
}
