#include "agent/quiesce.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

using Lines = std::vector<std::string>;

class QuiesceTest : public testing::Test {
 protected:
  QuiesceTest() {
    settings_.folder = dir_ / "etc";
    settings_.state_dir = dir_ / "state";
    std::filesystem::create_directory(settings_.state_dir);
    settings_.machine = "m";
    settings_.name = "web1";
    settings_.hook_limit = std::chrono::hours(1);
    settings_.hold_limit = std::chrono::hours(1);
  }
  void hook(const std::string& stage, const std::string& name, const std::string& then = "") {
    const auto path =
        dir_.write("etc/" + stage + ".d/" + name, "#!/bin/sh\necho " + name + " $TIDEMARK_STAGE $TIDEMARK_RESULT >> " +
                                                      (dir_ / "said").string() + "\n" + then + "\n");
    ::chmod(path.c_str(), 0755);
  }
  void pair(const std::string& name) {
    hook("pre-cut", name);
    hook("post-cut", name);
  }
  Lines said() const {
    Lines lines;
    std::ifstream file(dir_ / "said");
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
  }
  bool recorded() const { return anything_held(settings_.state_dir); }

  TempDir dir_;
  HookSettings settings_;
};

TEST_F(QuiesceTest, HoldsInOrderAndLetsGoInReverse) {
  pair("10-db");
  pair("20-web");
  hook("post-cut", "15-more");
  Quiesce hold(settings_, EpochNumber(7), {});
  EXPECT_EQ(hold.failure(), "");
  EXPECT_TRUE(recorded());
  EXPECT_EQ(said(), (Lines{"10-db pre-cut", "20-web pre-cut"}));
  EXPECT_TRUE(hold.release());
  EXPECT_FALSE(recorded());
  EXPECT_EQ(said(), (Lines{"10-db pre-cut", "20-web pre-cut", "20-web post-cut held", "15-more post-cut held",
                           "10-db post-cut held"}));
  EXPECT_TRUE(hold.post_failures().empty());
}

TEST_F(QuiesceTest, ItsEndLetsGoOnce) {
  pair("10-db");
  {
    Quiesce hold(settings_, EpochNumber(7), {});
    EXPECT_TRUE(hold.release());
    EXPECT_FALSE(hold.release()) << "not any more";
  }
  EXPECT_EQ(said().size(), 2U);
  {
    const Quiesce hold(settings_, EpochNumber(8), {});
  }
  EXPECT_EQ(said().size(), 4U);
}

TEST_F(QuiesceTest, TheFirstFailureEndsItAndWhatWasBegunGoesOn) {
  pair("10-db");
  hook("pre-cut", "20-web", "exit 4");
  hook("post-cut", "20-web");
  pair("30-late");
  hook("post-cut", "00-always");
  Quiesce hold(settings_, EpochNumber(7), {});
  EXPECT_EQ(hold.failure(), "pre-cut.d/20-web: exit status 4");
  EXPECT_FALSE(hold.release());
  EXPECT_EQ(said(), (Lines{"10-db pre-cut", "20-web pre-cut", "20-web post-cut failed", "10-db post-cut failed",
                           "00-always post-cut failed"}));
}

TEST_F(QuiesceTest, APostHookThatFailsIsNamedAndTheOthersRun) {
  hook("pre-cut", "10-db");
  hook("post-cut", "20-web", "exit 1");
  hook("post-cut", "10-db");
  Quiesce hold(settings_, EpochNumber(7), {});
  EXPECT_TRUE(hold.release());
  EXPECT_EQ(hold.post_failures(), Lines{"post-cut.d/20-web: exit status 1"});
  EXPECT_EQ(said().back(), "10-db post-cut held");
  EXPECT_FALSE(recorded());
}

TEST_F(QuiesceTest, NobodyIsToldWithoutPreHooksOrWithOnesThatOthersMayWriteTo) {
  hook("post-cut", "10-db");
  {
    Quiesce hold(settings_, EpochNumber(7), {});
    EXPECT_NE(hold.failure().find("pre-cut.d: has no hooks"), std::string::npos) << hold.failure();
    EXPECT_FALSE(hold.release());
  }
  hook("pre-cut", "10-db");
  ::chmod((settings_.folder / "post-cut.d").c_str(), 0777);
  {
    Quiesce hold(settings_, EpochNumber(7), {});
    EXPECT_NE(hold.failure().find("post-cut.d: is writable by others"), std::string::npos) << hold.failure();
  }
  EXPECT_TRUE(said().empty());
}

TEST_F(QuiesceTest, AHoldThatNobodyReleasesEndsByItself) {
  pair("10-db");
  settings_.hold_limit = std::chrono::milliseconds(1);
  Quiesce hold(settings_, EpochNumber(7), {});
  while (said().size() < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_FALSE(hold.release()) << "they did not stand still until now";
  EXPECT_EQ(said(), (Lines{"10-db pre-cut", "10-db post-cut failed"}));
}

TEST_F(QuiesceTest, AStopBeginsNoMoreAndLetsGo) {
  pair("10-db");
  pair("20-web");
  std::stop_source stop;
  stop.request_stop();
  {
    Quiesce hold(settings_, EpochNumber(7), stop.get_token());
    EXPECT_EQ(hold.failure(), "the agent was asked to stop");
  }
  EXPECT_TRUE(said().empty()) << "nothing was begun";
}

TEST_F(QuiesceTest, WhatCannotBeWrittenDownIsNotBegun) {
  pair("10-db");
  settings_.state_dir = dir_ / "not-there";
  Quiesce hold(settings_, EpochNumber(7), {});
  EXPECT_NE(hold.failure().find("not-there"), std::string::npos) << hold.failure();
  EXPECT_FALSE(hold.release());
  EXPECT_TRUE(said().empty());
}

// A killed agent: a child that holds, and ends without a word.
TEST_F(QuiesceTest, LeftoversAreLetGoAtTheNextStart) {
  pair("10-db");
  hook("pre-cut", "20-web", "kill -9 $PPID; exec sleep 10000");
  hook("post-cut", "20-web");
  pair("30-late");
  const pid_t agent = ::fork();
  ASSERT_GE(agent, 0);
  if (agent == 0) {
    const Quiesce hold(settings_, EpochNumber(7), {});
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(agent, &status, 0), agent);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(recorded());
  const auto released = release_leftovers(settings_);
  ASSERT_TRUE(released) << released.error().message();
  ASSERT_TRUE(*released);
  EXPECT_TRUE((*released)->empty());
  EXPECT_EQ(said(), (Lines{"10-db pre-cut", "20-web pre-cut", "20-web post-cut killed", "10-db post-cut killed"}));
  EXPECT_FALSE(recorded());
  const auto again = release_leftovers(settings_);
  ASSERT_TRUE(again);
  EXPECT_FALSE(*again) << "nothing is left";
}

TEST_F(QuiesceTest, LeftoversStayWhereTheirHooksAreRefused) {
  pair("10-db");
  dir_.write("state/held", "7\n10-db\n");
  ::chmod((settings_.folder / "post-cut.d").c_str(), 0777);
  const auto released = release_leftovers(settings_);
  ASSERT_FALSE(released);
  EXPECT_EQ(released.error().code, Code::permission_denied);
  EXPECT_TRUE(recorded());
  ::chmod((settings_.folder / "post-cut.d").c_str(), 0755);
  EXPECT_TRUE(release_leftovers(settings_));
  EXPECT_EQ(said(), Lines{"10-db post-cut killed"});
}

}  // namespace
}  // namespace tidemark::agent
