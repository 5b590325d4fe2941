#include "server/admission.h"

#include <gtest/gtest.h>

namespace tidemark::server {
namespace {

TEST(Admission, ACountIsGivenBackWithItsTicket) {
  AdmissionCount count(2);
  auto first = count.take();
  auto second = count.take();
  ASSERT_TRUE(first && second);
  EXPECT_FALSE(count.take());
  AdmissionCount::Ticket moved = std::move(*first);
  EXPECT_EQ(count.taken(), 2u);
  moved.release();
  EXPECT_EQ(count.taken(), 1u);
  EXPECT_TRUE(count.take());
  second.reset();
  EXPECT_EQ(count.taken(), 0u);
}

TEST(Admission, AnAddressMayBurstAndThenComesAtItsRate) {
  SourceRates rates(10);
  SourceRates::Time now{};
  int allowed = 0;
  while (rates.allow("192.0.2.1", now)) ++allowed;
  EXPECT_EQ(allowed, 40);
  now += std::chrono::milliseconds(500);
  allowed = 0;
  while (rates.allow("192.0.2.1", now)) ++allowed;
  EXPECT_EQ(allowed, 5);
  EXPECT_TRUE(rates.allow("192.0.2.2", now)) << "one address does not pay for another";
}

TEST(Admission, TheNumberOfRememberedAddressesIsBounded) {
  SourceRates rates(1);
  SourceRates::Time now{};
  for (std::size_t i = 0; i < SourceRates::kSourcesMax; ++i) ASSERT_TRUE(rates.allow("a" + std::to_string(i), now));
  int allowed = 0;
  for (int i = 0; i < 100; ++i) allowed += rates.allow("b" + std::to_string(i), now) ? 1 : 0;
  EXPECT_EQ(allowed, 4) << "the newcomers share one bucket";
  EXPECT_EQ(rates.remembered(), SourceRates::kSourcesMax);
  now += std::chrono::seconds(10);
  EXPECT_TRUE(rates.allow("c", now));
  EXPECT_EQ(rates.remembered(), 1u) << "those that are back at a full bucket were forgotten";
}

}  // namespace
}  // namespace tidemark::server
