#include "agent/config.h"

#include <gtest/gtest.h>

#include "base/limits.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

std::string why(const std::string& text) {
  const auto config = parse_config(text, "agent.toml");
  return config ? "" : config.error().message();
}

TEST(Config, DefaultsHoldForAnEmptyFile) {
  const auto config = parse_config("", "agent.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->interval.count(), 10'000);
  EXPECT_TRUE(config->freeze);
  EXPECT_EQ(config->freeze_limit.count(), 10'000);
  EXPECT_TRUE(config->disks.empty());
}

TEST(Config, ReadsEveryKey) {
  const auto config = parse_config(
      "server = \"[::1]:7443\"\nname = \"web1\"\ndisks = [\"/dev/vda\", \"/x.img\"]\ninterval_s = 0.5\nfreeze = false\n"
      "freeze_limit_s = 2\nzstd_level = 3\nrate_limit_mib_s = 10\nfingerprint_override = \"f\"\nlog_level = "
      "\"debug\"\n",
      "agent.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->server, "[::1]:7443");
  EXPECT_EQ(config->name, "web1");
  EXPECT_EQ(config->disks, (std::vector<std::string>{"/dev/vda", "/x.img"}));
  EXPECT_EQ(config->interval.count(), 500);
  EXPECT_FALSE(config->freeze);
  EXPECT_EQ(config->freeze_limit.count(), 2000);
  EXPECT_EQ(config->zstd_level, 3);
  EXPECT_EQ(config->rate_limit_mib_s, 10);
  EXPECT_EQ(config->fingerprint_override, "f");
}

TEST(Config, NamesKeyAndLineOfWhatIsWrong) {
  EXPECT_NE(why("\nintervall_s = 3\n").find("agent.toml:2: intervall_s: unknown key"), std::string::npos)
      << why("\nintervall_s = 3\n");
  EXPECT_NE(why("freeze = 1\n").find("freeze: must be true or false"), std::string::npos);
  EXPECT_NE(why("interval_s = 0\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("interval_s = nan\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("zstd_level = 99\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("disks = \"/dev/vda\"\n").find("list"), std::string::npos);
  EXPECT_NE(why("disks = [\"vda\"]\n").find("absolute"), std::string::npos);
  EXPECT_NE(why("disks = [\"/a\", \"/a\"]\n").find("twice"), std::string::npos);
  EXPECT_NE(why("disks = [1]\n").find("list"), std::string::npos);
  EXPECT_NE(why("server = \"host\"\n").find("host and port"), std::string::npos);
  EXPECT_NE(why("name = \"a b\"\n").find("name: must be letters"), std::string::npos);
  EXPECT_NE(why("log_level = \"loud\"\n").find("must be debug"), std::string::npos);
  EXPECT_NE(why("server = \n").find("not TOML"), std::string::npos);
  std::string many = "disks = [";
  for (unsigned i = 0; i <= limits::kDisksPerMachineMax; ++i) many += "\"/d" + std::to_string(i) + "\",";
  EXPECT_NE(why(many + "]").find("at most 64"), std::string::npos);
}

TEST(Config, MissingFileSaysToEnrol) {
  const TempDir dir;
  const auto config = load_config(dir / "agent.toml");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, Code::not_found);
  EXPECT_NE(config.error().remedy.find("enroll"), std::string::npos);
}

TEST(Config, SettingAKeyKeepsCommentsAndTheRest) {
  const std::string text =
      "# mine\nserver = \"a:1\"  # primary\ndisks = [\n  \"/dev/vda\", # root\n  \"/ünïcode.img\",\n]\nfreeze = "
      "false\n";
  const auto changed =
      with_key(text, "agent.toml", "disks", std::vector<std::string>{"/dev/vdb", "/a \"quoted\\ name"});
  ASSERT_TRUE(changed) << changed.error().message();
  EXPECT_EQ(
      *changed,
      "# mine\nserver = \"a:1\"  # primary\ndisks = [\"/dev/vdb\", \"/a \\\"quoted\\\\ name\"]\nfreeze = false\n");
  const auto again = with_key(*changed, "agent.toml", "server", std::string("b:2"));
  ASSERT_TRUE(again);
  const auto config = parse_config(*again, "agent.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->server, "b:2");
  EXPECT_EQ(config->disks[1], "/a \"quoted\\ name");
  EXPECT_NE(again->find("# primary"), std::string::npos);
}

TEST(Config, AddsAKeyThatIsNotThere) {
  const auto changed = with_key("freeze = false\n", "agent.toml", "name", std::string("web1"));
  ASSERT_TRUE(changed);
  EXPECT_EQ(parse_config(*changed, "agent.toml")->name, "web1");
}

TEST(Config, RefusesToEditWhatIsNoToml) {
  EXPECT_FALSE(with_key("freeze = = false\n", "agent.toml", "name", std::string("web1")));
}

TEST(Config, Addresses) {
  for (const char* good : {"a:1", "192.0.2.1:7443", "[2001:db8::1]:65535"}) EXPECT_TRUE(check_address(good)) << good;
  for (const char* bad : {"", "a", ":1", "a:", "a:0", "a:65536", "a:b", "2001:db8::1:7443", "a b:1", "a:1x"}) {
    EXPECT_FALSE(check_address(bad)) << bad;
  }
}

}  // namespace
}  // namespace tidemark::agent
