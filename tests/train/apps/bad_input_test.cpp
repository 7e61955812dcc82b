// Every mistake ends with one line that says what to do, the documented exit code, and no half-written file.

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>

#include "tensor/core/backend.h"
#include "tensor/io/safetensors.h"
#include "tests/data/fixtures.h"
#include "tests/train/apps/process.h"
#include "train/checkpoint/state.h"

namespace lowbit::test {
namespace {

namespace fs = std::filesystem;

void write_image(const std::string& path, unsigned char shade) {
  fs::create_directories(fs::path(path).parent_path());
  write_file(path, flat_bmp(16, 16, shade));
}

struct BadInputTest : testing::Test {
  TempDir dir;
  std::string data = dir / "data", runs = dir / "runs";

  void SetUp() override {
    for (const char* split : {"train", "val"})
      for (int c = 0; c < 2; ++c)
        for (int i = 0; i < 4; ++i)
          write_image(data + "/" + split + "/class" + std::to_string(c) + "/" + std::to_string(i) + ".bmp",
                      (unsigned char)(40 * i + 90 * c));
  }

  Words train(const Words& more) const {
    return Words{"train", "--output", runs, "--run", "r", "--epochs", "1", "--warmup-epochs", "0"} +
           tiny_model() + more;
  }
  Words train_folder(const Words& more = {}) const { return train(Words{"--data", data} + more); }

  /// Runs the program and checks code, message and that no run folder and no other file appeared.
  void expect_refused(const Words& words, int code, const Words& fragments) {
    std::string all;
    for (const auto& w : words) all += w + " ";
    SCOPED_TRACE(all);
    const size_t before = dir.entries();
    const Outcome r = lowbit_run(words);
    EXPECT_EQ(r.code, code) << r.err;
    EXPECT_EQ(r.out, "");
    for (const auto& f : fragments) EXPECT_NE(r.complaint().find(f), std::string::npos) << f << "\n" << r.err;
    EXPECT_LT(r.complaint().size(), 400u);
    EXPECT_EQ(dir.entries(), before) << "a file was left behind";
  }
  void expect_no_temporaries() const {
    for (const auto& e : fs::recursive_directory_iterator(dir.path()))
      EXPECT_NE(e.path().extension(), ".tmp") << e.path();
  }
};

TEST_F(BadInputTest, TheDataAreFineOtherwise) {
  const Outcome r = lowbit_run(train_folder());
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.complaint().substr(0, 3), "not");
  EXPECT_TRUE(fs::exists(runs + "/r/best.safetensors"));
  expect_no_temporaries();
}

TEST_F(BadInputTest, Folders) {
  expect_refused(train({"--data", dir / "nowhere"}), 3, {dir / "nowhere"});
  expect_refused({"eval", "--data", dir / "nowhere"}, 3, {dir / "nowhere"});
  fs::create_directories(data + "/train/class2"), fs::create_directories(data + "/val/class2");
  expect_refused(train_folder(), 3, {"class2", "no image"});
  fs::create_directories(dir / "empty/train"), fs::create_directories(dir / "empty/val");
  expect_refused(train({"--data", dir / "empty"}), 3, {dir / "empty", "class"});
  fs::create_directories(dir / "half/train/a");
  write_image(dir / "half/train/a/1.bmp", 9);
  expect_refused(train({"--data", dir / "half"}), 3, {dir / "half", "no folder val"});
}

TEST_F(BadInputTest, ValidationImagesThatAreNotSorted) {
  for (int i = 0; i < 3; ++i) write_image((dir / "flat/val/") + std::to_string(i) + ".bmp", (unsigned char)i);
  write_image(dir / "flat/train/a/1.bmp", 9);
  expect_refused(train({"--data", dir / "flat"}), 3,
                 {"flat/val", "side by side", "one folder for each class"});
}

TEST_F(BadInputTest, AnImageThatIsText) {
  write_file(data + "/train/class1/4.jpg", "this is not a photograph");
  const Outcome r = lowbit_run(train_folder());
  EXPECT_EQ(r.code, 3);
  EXPECT_NE(r.complaint().find(data + "/train/class1/4.jpg"), std::string::npos) << r.err;
  EXPECT_NE(r.complaint().find("not an image"), std::string::npos) << r.err;
  expect_no_temporaries();
  fs::remove(data + "/train/class1/4.jpg");
  const Outcome again = lowbit_run(train_folder());  // the run continues once the file is gone
  EXPECT_EQ(again.code, 0) << again.err;
  write_file(data + "/val/class0/9.jpg", "text");
  expect_refused(Words{"eval", "--data", data} + tiny_model(), 3, {data + "/val/class0/9.jpg"});
}

TEST_F(BadInputTest, WeightFiles) {
  ASSERT_EQ(lowbit_run(train_folder()).code, 0);
  const std::string good = runs + "/r/last.safetensors", bytes = read_file(good);
  const Words eval = Words{"eval", "--data", data} + tiny_model();
  write_file(dir / "cut.safetensors", bytes.substr(0, bytes.size() / 2));
  write_file(dir / "tiny.safetensors", bytes.substr(0, 5));
  write_file(dir / "text.pth", "no weights at all");
  for (const char* bad : {"cut.safetensors", "tiny.safetensors", "text.pth", "missing.safetensors"}) {
    expect_refused(eval + Words{"--weights", dir / bad}, 3, {dir / bad});
    expect_refused({"inspect", dir / bad}, 3, {dir / bad});
    expect_refused({"diff", good, dir / bad}, 3, {dir / bad});
    expect_refused({"convert", dir / bad, dir / "out.safetensors"}, 3, {dir / bad});
    expect_refused(Words{"train", "--output", dir / "other", "--data", data} + tiny_model() +
                       Words{"--weights", dir / bad},
                   3, {dir / bad});
  }
  // The weights of a model with other names and shapes.
  TensorFile f = load_safetensors(good);
  f.metadata.clear();
  save_safetensors(dir / "foreign.safetensors", f.tensors, {});
  expect_refused({"eval", "--data", data, "--image-size", "16", "--weights", dir / "foreign.safetensors",
                  "--model", "deit_tiny_patch16_224"},
                 3, {dir / "foreign.safetensors", "blocks.0.attn.proj.bias [24] where the model has [192]"});
}

TEST_F(BadInputTest, CheckpointsOfOtherRuns) {
  ASSERT_EQ(lowbit_run(train_folder()).code, 0);
  const std::string before = read_file(runs + "/r/last.state");
  const auto refused = [&](const Words& more, const Words& fragments) {
    const Outcome r = lowbit_run(train_folder(more));
    EXPECT_EQ(r.code, 3) << r.err;
    for (const auto& f : fragments) EXPECT_NE(r.complaint().find(f), std::string::npos) << f << "\n" << r.err;
    EXPECT_EQ(read_file(runs + "/r/last.state"), before);
  };
  refused({"--epochs", "3", "--embed-dim", "48"},
          {runs + "/r", "another model", "[24] where the model has [48]"});
  refused({"--epochs", "3", "--opt", "sgd"}, {runs + "/r", "--opt adamw"});
  refused({"--epochs", "3", "--batch-size", "2"}, {runs + "/r", "2 steps in an epoch, now there are 4"});
  refused({"--epochs", "3", "--model-ema"}, {runs + "/r", "without --model-ema"});
  refused({"--resume", dir / "nowhere"}, {dir / "nowhere"});
  // Both copies cut: said, and nothing overwritten.
  for (const char* name : {"last", "previous"}) {
    const std::string file = runs + "/r/" + name + ".safetensors", bytes = read_file(file);
    fs::remove(file);  // the epoch's files may share the inode
    write_file(file, bytes.substr(0, bytes.size() - 9));
  }
  refused({"--epochs", "3"}, {"no intact checkpoint in " + runs + "/r"});
}

TEST_F(BadInputTest, OutputThatCannotBeWritten) {
  write_file(dir / "file", "");
  expect_refused(Words{"train", "--output", dir / "file"} + tiny_model() + tiny_data(), 1, {dir / "file"});
  expect_refused(Words{"train", "--output", "/proc/nothing"} + tiny_model() + tiny_data(), 1,
                 {"/proc/nothing"});
}

TEST_F(BadInputTest, FullDisk) {
  const std::string disk = dir / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "no permission to mount a tmpfs";
  const Words words =
      Words{"train", "--output",        disk, "--run", "r", "--epochs", "40", "--no-tensorboard", "--keep",
            "0",     "--warmup-epochs", "0"} +
      tiny_model() + tiny_data();
  const Outcome r = lowbit_run(words);
  EXPECT_EQ(r.code, 1) << r.err;
  EXPECT_NE(r.complaint().find("No space left on device"), std::string::npos) << r.err;
  EXPECT_NE(r.complaint().find(disk + "/r/"), std::string::npos) << r.err;
  expect_no_temporaries();
  EXPECT_TRUE(RunCheckpoints(disk + "/r").load_last().has_value()) << "the checkpoint before is intact";
  for (const auto& e : fs::directory_iterator(disk + "/r"))
    if (e.path().extension() == ".safetensors") {
      EXPECT_NO_THROW(load_checkpoint(e.path().string()));
    }
  const Outcome full = lowbit_run({"convert", disk + "/r/last.safetensors", disk + "/copy.safetensors"});
  EXPECT_EQ(full.code, 1) << full.err;
  EXPECT_FALSE(fs::exists(disk + "/copy.safetensors"));
  ::umount(disk.c_str());
}

TEST_F(BadInputTest, ALossThatIsNotFinite) {
  const Words words = train_folder({"--opt", "momentum", "--lr", "1000", "--epochs", "20"});
  for (const Words& bits : {Words{}, four_bits() + Words{"--weight-decay", "1000"}}) {
    const Outcome r = lowbit_run(words + bits);
    EXPECT_EQ(r.code, 4) << r.err;
    const std::string text = r.complaint();
    for (const char* part : {"finite", " at step ", "the parameter ", "checkpoint"})
      EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    const size_t name = text.find("nonfinite-step"), end = text.find(".safetensors", name);
    ASSERT_NE(name, std::string::npos) << text;
    const TensorFile f = load_safetensors(runs + "/r/" + text.substr(name, end + 12 - name));
    EXPECT_EQ(f.tensors.at("images").shape(), Shape({4, 3, 16, 16}));
    EXPECT_EQ(f.tensors.at("labels").numel(), 4);
    EXPECT_NE(text.find(f.metadata.at("cause")), std::string::npos) << f.metadata.at("cause");
    EXPECT_TRUE(RunCheckpoints(runs + "/r").load_last().has_value());
    fs::remove_all(runs);
  }
}

TEST_F(BadInputTest, OptionsAndVerbs) {
  expect_refused(train_folder({"--epocs", "3"}), 2, {"unknown option '--epocs'", "did you mean --epochs?"});
  expect_refused(train_folder({"--json"}), 2, {"--json", "another verb"});
  expect_refused({"tarin"}, 2, {"unknown verb 'tarin'", "did you mean 'train'?"});
  expect_refused({}, 2, {"lowbit help"});
  expect_refused(train_folder({"--wbits", "9"}), 2,
                 {"--wbits must be between 1 and 8 (got 9)", "32 means float"});
  expect_refused(train_folder({"--wbits", "4x"}), 2, {"--wbits", "'4x'"});
  expect_refused(train_folder({"--wbits"}), 2, {"wbits"});
  expect_refused(train_folder({"stray"}), 2, {"unexpected argument 'stray'"});
  expect_refused(train({}), 2, {"--data", "--synthetic"});
  expect_refused(Words{"eval"} + tiny_model(), 2, {"--data", "--synthetic"});
  expect_refused(train_folder({"--model", "deit_tiny_patch16"}), 2, {"deit_tiny_patch16_224"});
  expect_refused(train_folder({"--model", "qwertz"}), 2, {"qwertz"});
  expect_refused(train_folder({"--teacher", "deit_tiny_patch16_224"}), 2, {"--teacher-weights"});
  expect_refused(train_folder({"--teacher-weights", "x"}), 3, {"x"});
  expect_refused(train_folder({"--opt-betas", "0.9"}), 2, {"--opt-betas must be 2 numbers", "'0.9'"});
  expect_refused(train_folder({"--mean", "0.5,0.5"}), 2, {"--mean must be 3 numbers"});
  expect_refused(train_folder({"--lr-noise", "0.1,0.2,0.3"}), 2, {"--lr-noise"});
  expect_refused(train_folder({"--heads", "5"}), 2, {"heads"});
  expect_refused(train_folder({"--image-size", "17"}), 2, {"image-size"});
  expect_refused(train_folder({"--batch-size", "64"}), 2, {"--batch-size", "8 training images"});
  expect_refused(train_folder({"--config", dir / "none.ini"}), 3, {dir / "none.ini"});
  expect_refused({"convert", "a.safetensors"}, 2, {"IN OUT"});
  expect_refused({"bench", "everything"}, 2, {"products, step or all"});
}

TEST_F(BadInputTest, Devices) {
  const std::string why = cuda_unusable();  // linked here, a library beside the program: one answer
  const Outcome help = lowbit_run({"help"});
  const std::string line = "\nDevices: cpu; " + (why.empty() ? "cuda (" : "not cuda: " + why + "\n");
  EXPECT_NE(help.out.find(line), std::string::npos) << help.out;
  for (const char* word : {"tpu", "cuda:", "cuda:x", "cuda:-1"})
    expect_refused(train_folder({"--device", word}), 2, {"--device takes cpu, cuda, cuda:N or auto"});
  if (why.empty()) return;
  expect_refused(train_folder({"--device", "cuda"}), 2, {"--device cuda: " + why});
  const Outcome r = lowbit_run(train_folder({"--device", "auto"}));
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.err.find("lowbit: running on the CPU: " + why + "\n"), std::string::npos) << r.err;
}

TEST_F(BadInputTest, AugmentationAndSoftLabels) {
  expect_refused(train_folder({"--aa", "augmix"}), 2, {"policy must begin with rand", "rand-m9"});
  expect_refused(train_folder({"--cutmix-minmax", "0.5"}), 2, {"--cutmix-minmax takes two numbers"});
  expect_refused(train_folder({"--soft-labels", dir / "none"}), 3, {"none"});
  expect_refused(train_folder({"--soft-labels", data, "--mixup", "1"}), 2, {"--soft-labels", "--mixup"});
  expect_refused(train_folder({"--soft-labels", data}), 3, {"no label files"});
  expect_refused(train({"--synthetic", "--mixup", "1"}), 2, {"--synthetic images are not augmented"});
  expect_refused(train_folder({"--cga-range", "0.005"}), 2, {"--cga-range needs"});
  expect_refused(train_folder({"--bin-regularizer"}), 2, {"--bin-regularizer needs"});
  expect_refused({"labels", "pack", data}, 2, {"pack takes FOLDER OUT"});
  expect_refused({"labels", "count", data}, 2, {"info, verify or pack"});
  expect_refused({"labels", "verify", data + "/train/class0/0.bmp"}, 3, {"not a packed label file"});
}

/// Not a mistake: every augmentation at once, the same bits however many threads load.
TEST_F(BadInputTest, AugmentedTrainingDoesNotDependOnWorkers) {
  const Words all = {"--aa",          "rand-m9-mstd0.5-inc1",
                     "--mixup",       "0.8",
                     "--cutmix",      "1",
                     "--mixup-mode",  "elem",
                     "--reprob",      "0.5",
                     "--vflip",       "0.5",
                     "--aug-repeats", "2"};
  for (const char* workers : {"0", "3"}) {
    const Outcome r =
        lowbit_run(Words{"train", "--output", runs, "--run", workers, "--epochs", "2", "--warmup-epochs", "0",
                         "--batch-size", "4", "--data", data, "--workers", workers} +
                   tiny_model() + all);
    ASSERT_EQ(r.code, 0) << r.err;
  }
  EXPECT_EQ(lowbit_run({"diff", runs + "/0", runs + "/3"}).code, 0);
}

}  // namespace
}  // namespace lowbit::test
