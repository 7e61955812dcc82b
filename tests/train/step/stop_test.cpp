#include "train/step/stop.h"

#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <ctime>

namespace lowbit {
namespace {

struct StopTest : testing::Test {
  void SetUp() override { unsetenv("SLURM_JOB_END_TIME"), install_stop_signals(), clear_stop_signal(); }
  void TearDown() override {
    clear_stop_signal(), unsetenv("SLURM_JOB_END_TIME");
    for (int s : {SIGTERM, SIGUSR1, SIGUSR2, SIGINT}) std::signal(s, SIG_DFL);
  }
};

TEST_F(StopTest, EverySignalIsNoticedBetweenSteps) {
  for (int s : {SIGTERM, SIGUSR1, SIGUSR2, SIGINT}) {
    clear_stop_signal();
    StopControl control(0);
    EXPECT_FALSE(control.should_stop(1e9));
    std::raise(s);
    EXPECT_TRUE(control.should_stop(0));
    EXPECT_TRUE(control.should_stop(0)) << "stays";
    EXPECT_EQ(control.reason().substr(0, 10), "signal SIG");
  }
}

TEST_F(StopTest, ASecondInterruptEndsTheProgram) {
  EXPECT_EXIT(
      {
        std::raise(SIGINT);
        std::raise(SIGINT);
        std::_Exit(0);
      },
      testing::KilledBySignal(SIGINT), "");
}

TEST_F(StopTest, TimeLimitKeepsAReserve) {
  StopControl control(100);
  EXPECT_NEAR(control.seconds_left(), 100, 1);
  EXPECT_FALSE(control.should_stop(40));
  EXPECT_TRUE(control.should_stop(51));
  EXPECT_EQ(control.reason(), "time limit");
  EXPECT_TRUE(std::isinf(StopControl(0).seconds_left()));
}

TEST_F(StopTest, TheEndOfASlurmJobIsALimit) {
  setenv("SLURM_JOB_END_TIME", std::to_string(std::time(nullptr) + 500).c_str(), 1);
  EXPECT_NEAR(StopControl(0).seconds_left(), 500, 2);
  EXPECT_NEAR(StopControl(50).seconds_left(), 50, 2);
}

}  // namespace
}  // namespace lowbit
