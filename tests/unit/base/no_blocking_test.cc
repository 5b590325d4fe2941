#include "base/no_blocking.h"

#include <gtest/gtest.h>

#include <thread>

namespace tidemark {
namespace {

TEST(NoBlocking, WhatWaitsIsNotedOnThatThreadAndWhileItLivesOnly) {
  take_blocked();
  about_to_block("read a file");
  {
    const NoBlocking here;
    about_to_block("sync a file");
    about_to_block("sync a file");
    std::jthread([] { about_to_block("read the index"); }).join();
  }
  about_to_block("read a file");
  EXPECT_EQ(take_blocked(), (std::map<std::string, std::uint64_t>{{"sync a file", 2}}));
  EXPECT_TRUE(take_blocked().empty());
}

}  // namespace
}  // namespace tidemark
