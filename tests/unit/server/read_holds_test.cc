#include "server/read_holds.h"

#include <gtest/gtest.h>

#include <vector>

#include "storage/reader.h"

namespace tidemark::server {
namespace {

using std::chrono::milliseconds;

// Says when it goes: then the point is not held any more.
class Witness final : public storage::Reader {
 public:
  explicit Witness(std::atomic<int>& alive) : alive_(alive) { ++alive_; }
  ~Witness() override { --alive_; }
  Witness(const Witness&) = delete;
  Witness& operator=(const Witness&) = delete;
  std::uint64_t disk_size() const override { return 0; }
  EpochNumber epoch() const override { return {}; }
  Status read(std::uint64_t, std::span<std::byte>) override { return {}; }
  Result<std::vector<storage::ByteRange>> map(std::uint64_t, std::uint64_t) override { return {}; }

 private:
  std::atomic<int>& alive_;
};

class ReadHoldsTest : public testing::Test {
 protected:
  ReadHolds::Held held() { return {.partition = nullptr, .readers = {std::make_shared<Witness>(alive_)}}; }
  bool wait_for_none() {
    for (int i = 0; i < 6000 && alive_ != 0; ++i) std::this_thread::sleep_for(milliseconds(5));
    return alive_ == 0;
  }
  std::atomic<int> alive_{0};
};

TEST_F(ReadHoldsTest, IsHeldUntilItIsReleased) {
  ReadHolds holds;
  const auto id = holds.take(held());
  ASSERT_TRUE(id);
  const auto other = holds.take(held());
  ASSERT_TRUE(other);
  EXPECT_NE(*id, *other);
  EXPECT_TRUE(holds.renew(*id));
  EXPECT_EQ(alive_, 2);
  holds.release(*id);
  EXPECT_EQ(alive_, 1);
  EXPECT_EQ(holds.count(), 1u);
  EXPECT_EQ(holds.renew(*id).error().code, Code::not_found);
  holds.release(*id);  // nothing to complain of
  EXPECT_EQ(alive_, 1);
}

TEST_F(ReadHoldsTest, OneThatIsNotRenewedEndsByItself) {
  ReadHolds holds(milliseconds(1));
  const auto id = holds.take(held());
  ASSERT_TRUE(id);
  EXPECT_TRUE(wait_for_none());
  EXPECT_EQ(holds.renew(*id).error().code, Code::not_found);
}

TEST_F(ReadHoldsTest, OneThatIsRenewedStaysBeyondItsLease) {
  ReadHolds holds(milliseconds(400));
  const auto id = holds.take(held());
  ASSERT_TRUE(id);
  const auto begin = std::chrono::steady_clock::now();
  // As long as each renewal is in time; on a machine that stands still for longer it proves nothing, and says so.
  for (auto last = begin; last - begin < milliseconds(1200);) {
    std::this_thread::sleep_for(milliseconds(20));
    const auto renewed = holds.renew(*id);
    const auto now = std::chrono::steady_clock::now();
    if (now - last >= milliseconds(400)) GTEST_SKIP() << "the machine stood still for longer than the lease";
    ASSERT_TRUE(renewed);
    ASSERT_EQ(alive_, 1);
    last = now;
  }
}

TEST_F(ReadHoldsTest, NoMoreThanThereMayBe) {
  ReadHolds holds;
  for (std::size_t i = 0; i < ReadHolds::kHoldsMax; ++i) ASSERT_TRUE(holds.take(held()));
  const auto refused = holds.take(held());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::busy);
  EXPECT_EQ(alive_, static_cast<int>(ReadHolds::kHoldsMax));
}

TEST_F(ReadHoldsTest, TheEndLetsGoOfAllAndNothingIsTakenAfterwards) {
  ReadHolds holds;
  ASSERT_TRUE(holds.take(held()));
  holds.stop();
  EXPECT_EQ(alive_, 0);
  EXPECT_FALSE(holds.take(held()));
  EXPECT_EQ(alive_, 0);
}

}  // namespace
}  // namespace tidemark::server
