// Real processes. Nothing here is judged by how long it takes: what must not end by itself sleeps for hours.
#include "agent/hook_process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

using std::chrono::milliseconds;

class HookProcessTest : public testing::Test {
 protected:
  HookRun hook(const std::string& script) {
    HookRun run;
    run.path = dir_.write("hook", script);
    ::chmod(run.path.c_str(), 0755);
    run.environment = {"PATH=/usr/bin:/bin", "TIDEMARK_STAGE=pre-cut"};
    run.on_line = [this](const std::string& line) { lines_.push_back(line); };
    return run;
  }
  pid_t written_pid(const std::string& name) {
    pid_t pid = 0;
    std::ifstream(dir_ / name) >> pid;
    return pid;
  }
  static bool ends(pid_t pid) {
    for (int i = 0; i < 1000; ++i) {
      if (::kill(pid, 0) != 0) return true;
      // A zombie that nobody waits for is as good.
      std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
      std::string number, name, state;
      if (!(stat >> number >> name >> state) || state == "Z") return true;
      std::this_thread::sleep_for(milliseconds(10));
    }
    return false;
  }
  TempDir dir_;
  std::vector<std::string> lines_;
};

TEST_F(HookProcessTest, OutputComesLineByLine) {
  EXPECT_EQ(run_hook(hook("#!/bin/sh\necho one; echo two >&2; printf '\\033[1mthree\\n\\n'; printf four")), "");
  EXPECT_EQ(lines_, (std::vector<std::string>{"one", "two", " [1mthree", "", "four"}));
}

TEST_F(HookProcessTest, OutputIsBounded) {
  EXPECT_EQ(run_hook(hook("#!/bin/sh\nfor i in $(seq 300); do echo $i; done; head -c 9999 /dev/zero | tr '\\0' x")),
            "");
  ASSERT_EQ(lines_.size(), kHookLinesMax + 1);
  EXPECT_EQ(lines_.back(), "(more than 200 lines: the rest is not logged)");
  lines_.clear();
  EXPECT_EQ(run_hook(hook("#!/bin/sh\nhead -c 9999 /dev/zero | tr '\\0' x")), "");
  ASSERT_EQ(lines_.size(), 1U);
  EXPECT_EQ(lines_[0], std::string(kHookLineMax, 'x'));
}

TEST_F(HookProcessTest, ItsSurroundingsAreClean) {
  ::setenv("LEAKED", "yes", 1);
  EXPECT_EQ(run_hook(hook("#!/bin/sh\npwd; cat; echo $TIDEMARK_STAGE; echo leaked=$LEAKED; ls /proc/self/fd | wc -l")),
            "");
  EXPECT_EQ(lines_, (std::vector<std::string>{"/", "pre-cut", "leaked=", "4"})) << "ls has one descriptor of its own";
}

TEST_F(HookProcessTest, SignalsReachItThoughTheAgentBlocksThem) {
  sigset_t set, before;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, &before);
  EXPECT_EQ(run_hook(hook("#!/bin/sh\nkill -TERM $$; echo not here")), "ended by signal 15");
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_TRUE(lines_.empty());
}

TEST_F(HookProcessTest, ItsExitStatusIsTold) {
  EXPECT_EQ(run_hook(hook("#!/bin/sh\nexit 7")), "exit status 7");
  EXPECT_EQ(run_hook(hook("no shebang, no ELF")), "exit status 126 (it could not be executed)");
  ASSERT_FALSE(lines_.empty());
  EXPECT_EQ(lines_.back(), "Exec format error");
  HookRun gone = hook("");
  gone.path = dir_ / "gone";
  EXPECT_EQ(run_hook(gone), "exit status 126 (it could not be executed)");
}

TEST_F(HookProcessTest, PastItsLimitAllOfItIsEnded) {
  HookRun run = hook("#!/bin/sh\nsleep 20000 & echo $! > " + (dir_ / "child").string() + "\nwait");
  run.limit = milliseconds(300);
  EXPECT_EQ(run_hook(run), "time limit of 0.3 s");
  const pid_t child = written_pid("child");
  EXPECT_TRUE(child == 0 || ends(child)) << "a machine so slow that it came to nothing is none of this test's";
}

TEST_F(HookProcessTest, OneThatIgnoresTheAskingIsKilled) {
  HookRun run = hook("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done");
  run.limit = milliseconds(100);
  EXPECT_EQ(run_hook(run), "time limit of 0.1 s");
}

TEST_F(HookProcessTest, WhatItLeavesInTheBackgroundIsNotWaitedFor) {
  EXPECT_EQ(run_hook(hook("#!/bin/sh\necho begun\nsleep 20000 & echo $! > " + (dir_ / "child").string())), "");
  EXPECT_EQ(lines_, std::vector<std::string>{"begun"});
  const pid_t child = written_pid("child");
  ASSERT_NE(child, 0);
  EXPECT_EQ(::kill(child, SIGKILL), 0) << "it lives on";
}

TEST_F(HookProcessTest, AStopEndsItBeforeItsTime) {
  std::stop_source stop;
  HookRun run = hook("#!/bin/sh\necho begun; sleep 20000");
  run.stop = stop.get_token();
  run.on_line = [&](const std::string&) { stop.request_stop(); };
  EXPECT_EQ(run_hook(run), "ended because the agent was asked to stop");
}

}  // namespace
}  // namespace tidemark::agent
