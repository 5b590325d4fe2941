#include "server/config.h"

#include <gtest/gtest.h>

namespace tidemark::server {
namespace {

Error error_of(const std::string& text) {
  const auto config = parse_config(text, "x.toml");
  if (config) return {Code::ok, "", "", ""};
  EXPECT_EQ(config.error().code, Code::invalid_argument);
  return config.error();
}

TEST(Config, AnEmptyFileIsTheDefaults) {
  const auto config = parse_config("", "x.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->server.listen, "0.0.0.0:7443");
  EXPECT_EQ(config->limits.sessions, limits::kSessionsMaxDefault);
  EXPECT_EQ(config->storage.segment_size, limits::kSegmentSizeDefault);
  EXPECT_EQ(config->alarms.no_point_minutes, 10u);
}

TEST(Config, WhatInitWritesIsValidAndChangesNothingButTheAddress) {
  const auto config = parse_config(default_config_text("127.0.0.1:7000"), "x.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->server.listen, "127.0.0.1:7000");
  EXPECT_EQ(config->limits.memory, Config().limits.memory);
}

TEST(Config, TheDefaultsThatAreShownAreTheDefaults) {
  std::string text = default_config_text("0.0.0.0:7443");
  // Every commented key, switched on.
  for (std::size_t at = text.find("\n# "); at != std::string::npos; at = text.find("\n# ", at + 1))
    text.erase(at + 1, 2);
  text = text.substr(text.find("[server]"));
  const auto config = parse_config(text, "x.toml");
  ASSERT_TRUE(config) << config.error().message() << "\n" << text;
  const Config defaults;
  EXPECT_EQ(config->server.log_format, defaults.server.log_format);
  EXPECT_EQ(config->server.shards, defaults.server.shards);
  EXPECT_EQ(config->limits.session_credit, defaults.limits.session_credit);
  EXPECT_EQ(config->limits.per_source_handshakes, defaults.limits.per_source_handshakes);
  EXPECT_EQ(config->storage.free_space_min, defaults.storage.free_space_min);
  EXPECT_EQ(config->storage.index_cache, defaults.storage.index_cache);
  EXPECT_EQ(config->storage.high_water, defaults.storage.high_water);
  EXPECT_EQ(config->storage.full_water, defaults.storage.full_water);
  EXPECT_EQ(config->retention.removal_holdoff, defaults.retention.removal_holdoff);
}

TEST(Config, SizesAreNumbersOrTexts) {
  const auto config = parse_config("[storage]\nsegment_size = \"16MiB\"\nfree_space_min = 1048576\n", "x.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->storage.segment_size, 16_MiB);
  EXPECT_EQ(config->storage.free_space_min, 1_MiB);
  EXPECT_EQ(parse_size("1GiB").value(), 1_GiB);
  EXPECT_EQ(parse_size("512 KiB").value(), 512_KiB);
  for (const char* text : {"", "MiB", "1XB", "-1", "1.5GiB", "99999999999999TiB", "1 GiB x"})
    EXPECT_FALSE(parse_size(text)) << text;
}

TEST(Config, AnUnknownKeyIsNamedWithItsLineAndItsNeighbours) {
  const Error error = error_of("[server]\nlisten = \"0.0.0.0:1\"\nsessionz = 7\n");
  EXPECT_EQ(error.object, "x.toml:3");
  EXPECT_EQ(error.what, "server.sessionz is not a known key");
  EXPECT_NE(error.remedy.find("log_level"), std::string::npos);
  EXPECT_EQ(error_of("[sever]\n").what, "sever is not a known section");
  EXPECT_EQ(error_of("server = 3\n").what, "server must be a table");
}

TEST(Config, AWrongTypeSaysWhatIsWanted) {
  const Error error = error_of("\n[limits]\nsessions = \"many\"\n");
  EXPECT_EQ(error.object, "x.toml:3");
  EXPECT_EQ(error.what, "limits.sessions is not a whole number");
  EXPECT_NE(error.remedy.find("1 to 1000000"), std::string::npos);
  EXPECT_EQ(error_of("[server]\npin = 1\n").what, "server.pin is not true or false");
  EXPECT_EQ(error_of("[server]\nlisten = 7443\n").what, "server.listen is not a text");
}

TEST(Config, AnImpossibleValueSaysTheAllowedRange) {
  EXPECT_NE(error_of("[limits]\nsessions = 0\n").remedy.find("from 1"), std::string::npos);
  EXPECT_NE(error_of("[storage]\nsegment_size = \"1MiB\"\n").remedy.find("8MiB"), std::string::npos);
  EXPECT_NE(error_of("[storage]\nsegment_size = -5\n").what.find("is -5"), std::string::npos);
  EXPECT_NE(error_of("[storage]\nsegment_size = 8388609\n").remedy.find("a multiple of 1MiB"), std::string::npos);
  EXPECT_NE(error_of("[limits]\nsession_credit = \"1GiB\"\n").remedy.find("4MiB"), std::string::npos);
  EXPECT_NE(error_of("[server]\nlog_level = \"loud\"\n").remedy.find("warning"), std::string::npos);
  EXPECT_NE(error_of("[server]\nlisten = \"nowhere:99999\"\n").what.find("not an address"), std::string::npos);
}

TEST(Config, MarksAreSharesInOrder) {
  const auto config = parse_config("[storage]\nhigh_water = 0.5\nfull_water = 1\n", "x.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->storage.high_water, 0.5);
  EXPECT_EQ(config->storage.full_water, 1.0);
  for (const char* text :
       {"high_water = 0.05", "high_water = 85", "high_water = \"85%\"", "high_water = -0.5", "high_water = nan",
        "high_water = 0.9\nfull_water = 0.8", "high_water = 0.99", "full_water = 1.01"}) {
    const Error error = error_of(std::string("[storage]\n") + text + "\n");
    EXPECT_NE(error.remedy.find("allowed is a number from"), std::string::npos) << text << ": " << error.message();
  }
}

TEST(Config, AHoldoffIsATimeInQuotes) {
  const auto holdoff = [](const char* value) {
    return parse_config(std::string("[retention]\nremoval_holdoff = ") + value + "\n", "x.toml")
        .value()
        .retention.removal_holdoff;
  };
  EXPECT_EQ(Config().retention.removal_holdoff, 86'400u);
  EXPECT_EQ(holdoff("\"0s\""), 0u);
  EXPECT_EQ(holdoff("\"90s\""), 90u);
  EXPECT_EQ(holdoff("\"2d\""), 172'800u);
  for (const char* value : {"24", "\"24\"", "\"1w\"", "\"\"", "\"-1h\"", "\"367d\"", "\"99999999999999999999d\""}) {
    const Error error = error_of(std::string("[retention]\nremoval_holdoff = ") + value + "\n");
    EXPECT_NE(error.remedy.find("24h"), std::string::npos) << value;
  }
}

TEST(Config, BrokenTomlNamesTheLine) {
  EXPECT_EQ(error_of("[server]\nlisten = \n").object.substr(0, 7), "x.toml:");
  EXPECT_EQ(load_config("/nonexistent/tidemarkd.toml").error().code, Code::not_found);
}

}  // namespace
}  // namespace tidemark::server
