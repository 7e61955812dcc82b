#pragma once
// The program as users start it: a child process with its two outputs.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_dir.h"

namespace lowbit::test {

using Words = std::vector<std::string>;

inline Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Outcome {
  int code = 0;  ///< exit code, or minus the signal that ended the process
  std::string out, err;

  std::vector<std::string> err_lines() const {
    std::vector<std::string> lines;
    std::istringstream in(err);
    for (std::string l; std::getline(in, l);) lines.push_back(l);
    return lines;
  }
  /// The line "lowbit: …", which must be the last one and the only one of its kind; else what was found.
  std::string complaint() const {
    const auto lines = err_lines();
    int count = 0;
    for (const auto& l : lines) count += l.starts_with("lowbit: ");
    if (count != 1 || !lines.back().starts_with("lowbit: ") || !err.ends_with("\n"))
      return "not one line at the end: " + err;
    return lines.back().substr(8);
  }
};

class Process {
 public:
  /// Starts `program words…`; the outputs go to files.
  explicit Process(const Words& words, std::string program = LOWBIT_PROGRAM) {
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, (dir_ / "out").c_str(), flags, 0600);
    posix_spawn_file_actions_addopen(&files, 2, (dir_ / "err").c_str(), flags, 0600);
    std::vector<std::string> copies = words;
    std::vector<char*> argv{program.data()};
    for (auto& w : copies) argv.push_back(w.data());
    argv.push_back(nullptr);
    if (posix_spawnp(&pid_, program.c_str(), &files, nullptr, argv.data(), environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&files);
  }
  ~Process() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool started() const { return pid_ > 0; }
  void kill(int signal) const { ::kill(pid_, signal); }
  std::string err_so_far() const { return read_file(dir_ / "err"); }
  /// Waits until stderr contains the text or the process has ended; true for the text.
  bool wait_for(const std::string& text) {
    for (;;) {
      const bool alive = running();
      if (err_so_far().find(text) != std::string::npos) return true;
      if (!alive) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  bool running() {
    siginfo_t info{};
    return ::waitid(P_PID, id_t(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
  }
  Outcome wait() {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), read_file(dir_ / "out"),
            read_file(dir_ / "err")};
  }

 private:
  TempDir dir_;
  pid_t pid_ = -1;
};

inline Outcome lowbit_run(const Words& words) { return Process(words).wait(); }

/// A model and data small enough for many runs: 4 tokens of width 24, one block, fake images.
inline Words tiny_model() {
  return {"--model",      "tinyvit_patch8_64",
          "--depth",      "1",
          "--embed-dim",  "24",
          "--image-size", "16",
          "--heads",      "3",
          "--threads",    "1",
          "--batch-size", "4",
          "--workers",    "1"};
}
inline Words tiny_data(int train = 24, int val = 8) {
  return {"--synthetic", "--limit-train", std::to_string(train), "--limit-val", std::to_string(val)};
}
inline Words four_bits() { return {"--wbits", "4", "--abits", "4", "--calibration-images", "8"}; }

}  // namespace lowbit::test
