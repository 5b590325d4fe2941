#include "server/frame_pool.h"

#include <gtest/gtest.h>

#include <string>

namespace tidemark::server {
namespace {

struct Waiter final : FramePool::Waiter {
  Waiter(FramePool& p, std::size_t s, std::string& o, char n) : pool(p), size(s), order(o), name(n) {}
  void on_frame_room() override {
    buffer = pool.acquire(size);
    if (buffer.empty()) {
      pool.wait(*this);
    } else {
      order += name;
    }
  }
  FramePool& pool;
  std::size_t size;
  std::string& order;
  char name;
  std::span<std::byte> buffer;
};

TEST(FramePool, GivesBuffersOfAFewSizesAndKeepsThem) {
  FramePool pool(8_MiB);
  const auto a = pool.acquire(5000);
  EXPECT_EQ(a.size(), 16_KiB);
  EXPECT_EQ(pool.in_use(), 16_KiB);
  pool.release(a);
  EXPECT_EQ(pool.in_use(), 0u);
  EXPECT_EQ(pool.kept(), 16_KiB);
  const auto b = pool.acquire(10'000);
  EXPECT_EQ(b.data(), a.data()) << "the same memory is used again";
  pool.release(b);
}

TEST(FramePool, IsBoundedWhateverSizesWereKept) {
  FramePool pool(2_MiB);
  std::vector<std::span<std::byte>> small;
  while (true) {
    const auto buffer = pool.acquire(4_KiB);
    if (buffer.empty()) break;
    small.push_back(buffer);
  }
  EXPECT_EQ(small.size(), 512u);
  for (const auto buffer : small) pool.release(buffer);
  EXPECT_EQ(pool.kept(), 2_MiB);
  const auto large = pool.acquire(1_MiB);
  ASSERT_FALSE(large.empty()) << "kept buffers of other sizes make room";
  EXPECT_LE(pool.in_use() + pool.kept(), 2_MiB);
  pool.release(large);
}

TEST(FramePool, WhoWaitsIsServedInOrder) {
  FramePool pool(2_MiB);
  const auto a = pool.acquire(1_MiB), b = pool.acquire(1_MiB);
  EXPECT_TRUE(pool.acquire(4_KiB).empty());
  std::string order;
  Waiter first(pool, 1_MiB, order, '1'), second(pool, 4_KiB, order, '2'), third(pool, 1_MiB, order, '3');
  for (auto* waiter : {&first, &second, &third}) pool.wait(*waiter);
  pool.wait(first);  // once is enough
  EXPECT_EQ(pool.waiting(), 3u);
  pool.serve();
  EXPECT_EQ(order, "") << "nothing came free";
  pool.release(a);
  EXPECT_TRUE(pool.acquire(4_KiB).empty()) << "a newcomer does not pass those who wait";
  pool.serve();
  EXPECT_EQ(order, "1");
  pool.release(b);
  pool.serve();
  EXPECT_EQ(order, "12") << "the third does not fit beside the small one";
  pool.release(first.buffer);
  pool.release(second.buffer);
  pool.serve();
  EXPECT_EQ(order, "123");
  pool.release(third.buffer);
  EXPECT_EQ(pool.in_use(), 0u);
}

TEST(FramePool, WhoLeavesIsForgotten) {
  FramePool pool(2_MiB);
  const auto a = pool.acquire(1_MiB), b = pool.acquire(1_MiB);
  std::string order;
  Waiter gone(pool, 1_MiB, order, 'g'), stays(pool, 1_MiB, order, 's');
  pool.wait(gone);
  pool.wait(stays);
  pool.forget(gone);
  pool.release(a);
  pool.serve();
  EXPECT_EQ(order, "s");
  pool.release(b);
  pool.release(stays.buffer);
}

}  // namespace
}  // namespace tidemark::server
