#include "server/end_apart.h"

#include <gtest/gtest.h>

#include <future>

namespace tidemark::server {
namespace {

struct Slow {
  explicit Slow(std::shared_future<void> may) : may_end(std::move(may)) {}
  ~Slow() { may_end.wait(); }
  std::shared_future<void> may_end;
};

struct EndApartTest : testing::Test {
  std::promise<void> let;
  std::shared_future<void> may = let.get_future().share();
  std::atomic<bool> in_place = false;
  std::shared_ptr<EndApart<Slow>> end = std::make_shared<EndApart<Slow>>(std::make_unique<Slow>(may));
};

TEST_F(EndApartTest, WhoeverLetsGoLastDoesNotWaitAndItIsOverWhenItIsGone) {
  auto mine = end->share(in_place);
  auto other = mine;
  mine.reset();
  EXPECT_FALSE(end->over());
  other.reset();  // would wait for ever
  EXPECT_FALSE(end->over()) << "nobody holds it, and it is not gone: what it has open is not free";
  let.set_value();
  end->wait();
  EXPECT_TRUE(end->over());
}

TEST_F(EndApartTest, WhatIsGivenUpWaitsForTheEndThatBegan) {
  end->share(in_place).reset();
  let.set_value();
  end.reset();
}

TEST_F(EndApartTest, InPlaceOnceAskedFor) {
  auto mine = end->share(in_place);
  let.set_value();
  in_place = true;
  mine.reset();
  EXPECT_TRUE(end->over());
}

TEST_F(EndApartTest, AfterItsHostIsGoneItEndsInPlace) {
  auto mine = end->share(in_place);
  let.set_value();
  end.reset();
  const std::weak_ptr<Slow> watched = mine;
  mine.reset();
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace tidemark::server
