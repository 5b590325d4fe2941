#include "agent/config.h"

#include <gtest/gtest.h>

#include <regex>

#include "agent/text_file.h"
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
  EXPECT_EQ(config->interval.count(), 0);
  EXPECT_TRUE(config->freeze);
  EXPECT_EQ(config->freeze_limit.count(), 10'000);
  EXPECT_TRUE(config->skip_free_space);
  EXPECT_TRUE(config->disks.empty());
  EXPECT_EQ(config->tracking, Tracking::automatic);
  EXPECT_EQ(config->bpffs, "/sys/fs/bpf");
}

TEST(Config, ReadsEveryKey) {
  const auto config = parse_config(
      "server = \"[::1]:7443\"\nname = \"web1\"\ndisks = [\"/dev/vda\", \"/x.img\"]\ninterval_s = 0.5\nfreeze = false\n"
      "freeze_limit_s = 2\nskip_free_space = false\nzstd_level = 3\nrate_limit_mib_s = 10\ntracking = "
      "\"digests\"\nfingerprint_override = "
      "\"f\"\nlog_level = "
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
  EXPECT_FALSE(config->skip_free_space);
  EXPECT_EQ(config->rate_limit_mib_s, 10);
  EXPECT_EQ(config->tracking, Tracking::digests);
  EXPECT_EQ(config->fingerprint_override, "f");
}

TEST(Config, ReadsHooksAndTheRateSchedule) {
  const auto config = parse_config(
      "hooks = \"/srv/hooks\"\nhook_limit_s = 0.5\nhold_limit_s = 7\napplication_points_every_s = 600\n"
      "rate_limit_mib_s = 10\n"
      "[[rate_schedule]]\nfrom = \"08:00\"\nto = \"18:00\"\ndays = \"mon-fri\"\nlimit_mib_s = 5\n"
      "[[rate_schedule]]\nfrom = \"22:00\"\nto = \"06:00\"\nlimit_mib_s = 0.5\n",
      "agent.toml");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->hooks, "/srv/hooks");
  EXPECT_EQ(config->hook_limit.count(), 500);
  EXPECT_EQ(config->hold_limit.count(), 7000);
  EXPECT_EQ(config->application_points_every.count(), 600'000);
  EXPECT_EQ(config->rate_schedule, (std::vector<RateWindow>{{8 * 60, 18 * 60, 0x1f, 5}, {22 * 60, 6 * 60, 0x7f, 0.5}}));
  EXPECT_EQ(parse_config("", "agent.toml")->hooks, "/etc/tidemark-agent");
  EXPECT_EQ(parse_config("", "agent.toml")->application_points_every.count(), 0);
}

TEST(Config, TheDeliveredExampleIsRightAlsoWhereItIsCommentedOut) {
  const std::string delivered = *read_text_file(TIDEMARK_SOURCE_DIR "/deploy/tidemark-agent.toml");
  EXPECT_EQ(why(delivered), "");
  const std::string all = std::regex_replace(delivered, std::regex("\n# (\\[\\[|\\w+ = )"), "\n$1");
  const auto config = parse_config(all, "agent.toml");
  ASSERT_TRUE(config) << config.error().message();
  const Config defaults;
  EXPECT_EQ(config->hooks, defaults.hooks);
  EXPECT_EQ(config->hook_limit, defaults.hook_limit);
  EXPECT_EQ(config->hold_limit, defaults.hold_limit);
  EXPECT_EQ(config->application_points_every, defaults.application_points_every);
  EXPECT_EQ(config->freeze_limit, defaults.freeze_limit);
  EXPECT_EQ(config->rate_schedule.size(), 1U);
}

TEST(Config, NamesWhatIsWrongWithTheRateSchedule) {
  const auto window = [](const std::string& more, const std::string& key = "") {
    std::string text = "\n[[rate_schedule]]\n";
    for (const std::string one : {"from = \"08:00\"", "to = \"18:00\"", "limit_mib_s = 5"}) {
      if (key.empty() || !one.starts_with(key)) text += one + "\n";
    }
    return why(text + more + "\n");
  };
  EXPECT_EQ(window(""), "");
  EXPECT_EQ(window("", "from"), "agent.toml:2: from: is missing: it must be a text, HH:MM (correct the file)");
  EXPECT_NE(window("", "limit_mib_s").find("agent.toml:2: limit_mib_s: is missing"), std::string::npos);
  EXPECT_NE(window("from = \"8:00\"", "from").find("agent.toml:5: from: \"8:00\" is no time of day: write HH:MM"),
            std::string::npos)
      << window("from = \"8:00\"", "from");
  EXPECT_NE(window("from = \"24:00\"", "from").find("from: \"24:00\" is no time of day"), std::string::npos);
  EXPECT_NE(window("to = \"08:00\"", "to").find("to: is the same as from"), std::string::npos);
  EXPECT_NE(window("to = 8", "to").find("agent.toml:5: to: must be a text"), std::string::npos);
  EXPECT_NE(window("days = \"mon-fryday\"").find("agent.toml:6: days: \"fryday\" is no day of the week"),
            std::string::npos);
  EXPECT_NE(window("limit_mib_s = -1", "limit_mib_s").find("agent.toml:5: limit_mib_s: must be from 0"),
            std::string::npos);
  EXPECT_NE(window("limit = 1").find("agent.toml:6: limit: unknown key"), std::string::npos);
  EXPECT_NE(why("rate_schedule = 5\n").find("agent.toml:1: rate_schedule: must be"), std::string::npos);
  EXPECT_NE(why("rate_schedule = [5]\n").find("agent.toml:1: rate_schedule: must be tables"), std::string::npos);
  std::string many;
  for (int i = 0; i < 33; ++i) many += "[[rate_schedule]]\n";
  EXPECT_NE(why(many).find("rate_schedule: must be at most 32 tables"), std::string::npos) << why(many);
}

TEST(Config, NamesKeyAndLineOfWhatIsWrong) {
  EXPECT_NE(why("\nintervall_s = 3\n").find("agent.toml:2: intervall_s: unknown key"), std::string::npos)
      << why("\nintervall_s = 3\n");
  EXPECT_NE(why("freeze = 1\n").find("freeze: must be true or false"), std::string::npos);
  EXPECT_NE(why("interval_s = 0\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("interval_s = nan\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("zstd_level = 99\n").find("must be from"), std::string::npos);
  EXPECT_NE(why("zstd_level = \"fast\"\n").find("must be a number"), std::string::npos);
  EXPECT_EQ(parse_config("zstd_level = \"auto\"\n", "agent.toml")->zstd_level, std::nullopt);
  EXPECT_NE(why("disks = \"/dev/vda\"\n").find("list"), std::string::npos);
  EXPECT_NE(why("disks = [\"vda\"]\n").find("absolute"), std::string::npos);
  EXPECT_NE(why("disks = [\"/a\", \"/a\"]\n").find("twice"), std::string::npos);
  EXPECT_NE(why("disks = [1]\n").find("list"), std::string::npos);
  EXPECT_NE(why("server = \"host\"\n").find("host and port"), std::string::npos);
  EXPECT_NE(why("name = \"a b\"\n").find("name: must be letters"), std::string::npos);
  EXPECT_NE(why("hooks = \"etc\"\n").find("hooks: must be an absolute path"), std::string::npos);
  EXPECT_NE(why("hook_limit_s = 0\n").find("hook_limit_s: must be from"), std::string::npos);
  EXPECT_NE(why("application_points_every_s = -1\n").find("must be from"), std::string::npos);
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

TEST(Config, SavedDisksChangeNothingElse) {
  const TempDir dir;
  const auto path = dir.write("agent.toml", "# mine\ninterval_s = 3\ndisks = [\"/a\"]\nname = \"x\"\n");
  ASSERT_TRUE(save_disks(path, {{"/a", "/b"}, true, {"/c"}}));
  const auto config = load_config(path);
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->disks, (std::vector<std::string>{"/a", "/b"}));
  EXPECT_TRUE(config->all_disks);
  EXPECT_EQ(config->except_disks, (std::vector<std::string>{"/c"}));
  EXPECT_EQ(config->interval, std::chrono::seconds(3));
  ASSERT_TRUE(save_disks(path, {{"/b"}, false, {}}));
  EXPECT_FALSE(load_config(path)->all_disks);
  EXPECT_NE(read_text_file(path)->find("# mine"), std::string::npos);
}

}  // namespace
}  // namespace tidemark::agent
