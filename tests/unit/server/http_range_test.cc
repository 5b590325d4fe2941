#include "server/http_range.h"

#include <gtest/gtest.h>

#include "server/moment.h"

namespace tidemark::server {
namespace {

using Wanted = std::optional<HttpRange>;

TEST(HttpRange, OneRangeInItsThreeForms) {
  EXPECT_EQ(parse_http_range("bytes=0-9", 100).value(), Wanted(HttpRange{0, 10}));
  EXPECT_EQ(parse_http_range("bytes=90-", 100).value(), Wanted(HttpRange{90, 10}));
  EXPECT_EQ(parse_http_range("bytes=-10", 100).value(), Wanted(HttpRange{90, 10}));
}

TEST(HttpRange, WhatGoesBeyondTheEndIsCut) {
  EXPECT_EQ(parse_http_range("bytes=90-1000", 100).value(), Wanted(HttpRange{90, 10}));
  EXPECT_EQ(parse_http_range("bytes=-1000", 100).value(), Wanted(HttpRange{0, 100}));
  EXPECT_EQ(parse_http_range("bytes=0-99999999999999999999999", 100).value(), Wanted(HttpRange{0, 100}));
}

TEST(HttpRange, NothingOfItExists) {
  for (const char* header : {"bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"})
    EXPECT_FALSE(parse_http_range(header, 100)) << header;
  EXPECT_FALSE(parse_http_range("bytes=0-0", 0));
  EXPECT_FALSE(parse_http_range("bytes=-1", 0));
}

TEST(HttpRange, WhatIsNotUnderstoodIsIgnored) {
  for (const char* header : {"", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5", "bytes=9-5", "bytes=0-1,5-6",
                             "rows=0-9", "bytes=1-x", "bytes=--5", "bytes=1--5", "bytes= 1-5"})
    EXPECT_EQ(parse_http_range(header, 100).value(), Wanted()) << header;
}

TEST(Moment, APointIsNamedInFourWays) {
  constexpr WallMicros kNow = 1'000'000'000;
  EXPECT_FALSE(parse_at("latest", kNow)->time_us);
  EXPECT_EQ(parse_at("-1m", kNow)->time_us, kNow - 60'000'000);
  EXPECT_EQ(parse_at("epoch:17", kNow)->epoch, EpochNumber(17));
  EXPECT_TRUE(parse_at("2026-11-20T10:15:03Z", kNow)->time_us);
  for (const char* text :
       {"", "epoch:", "epoch:-1", "epoch:x", "epoch:1x", "epoch:99999999999999999999999", "newest"}) {
    const auto at = parse_at(text, kNow);
    ASSERT_FALSE(at) << text;
    EXPECT_EQ(at.error().code, Code::invalid_argument);
  }
}

TEST(Moment, MachineNamesAreWhatFitsAPathAndAShell) {
  for (const char* name : {"a", "web-1", "DB.example_2", "0"}) EXPECT_TRUE(check_machine_name(name)) << name;
  for (const char* name : {"", " ", "a b", "a/b", "..", ".", "\xc3\xa4", "a\n", "00112233445566778899aabbccddeeff"})
    EXPECT_FALSE(check_machine_name(name)) << name;
  EXPECT_TRUE(check_machine_name(std::string(64, 'a')));
  EXPECT_FALSE(check_machine_name(std::string(65, 'a')));
}

}  // namespace
}  // namespace tidemark::server
