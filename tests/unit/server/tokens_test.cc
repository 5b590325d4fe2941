#include "server/tokens.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "server/private_file.h"
#include "temporary_directory.h"

namespace tidemark::server {
namespace {

constexpr WallMicros kNow = 1'795'169'703'000'000;

class TokensTest : public testing::Test {
 protected:
  std::unique_ptr<Tokens> load() {
    auto tokens = Tokens::load(path, clock);
    EXPECT_TRUE(tokens) << tokens.error().message();
    return std::move(*tokens);
  }
  TemporaryDirectory directory;
  std::string path = directory / "tokens.json";
  ManualClock clock{kNow};
};

TEST_F(TokensTest, ATokenWorksOnceAndSaysSoAcrossARestart) {
  auto tokens = load();
  const auto made = tokens->create(std::chrono::hours(1), std::nullopt).value();
  ASSERT_TRUE(tokens->check(made.secret));
  ASSERT_TRUE(tokens->spend(made.secret));
  EXPECT_EQ(tokens->check(made.secret).error().code, Code::already_exists);
  EXPECT_EQ(tokens->check(made.secret).error().what, "token was already used");
  EXPECT_FALSE(tokens->spend(made.secret));
  tokens = load();
  EXPECT_EQ(tokens->check(made.secret).error().what, "token was already used");
  ASSERT_TRUE(tokens->give_back(made.secret));
  EXPECT_TRUE(tokens->check(made.secret));
}

TEST_F(TokensTest, AnExpiredTokenAndAnUnknownOneAreToldApart) {
  auto tokens = load();
  const auto made = tokens->create(std::chrono::seconds(60), std::nullopt).value();
  clock.advance(std::chrono::seconds(60));
  EXPECT_EQ(tokens->check(made.secret).error().code, Code::unauthenticated);
  EXPECT_NE(tokens->check(made.secret).error().what.find("expired at 2026-11-20T10:16:03Z"), std::string::npos);
  const std::array<std::byte, 32> wrong{};
  EXPECT_NE(tokens->check(wrong).error().what.find("does not know it"), std::string::npos);
}

TEST_F(TokensTest, AMachinesTokenKeepsItsMachineAndTheSecretIsNotStored) {
  const MachineId machine = *MachineId::parse("00112233445566778899aabbccddeeff");
  const auto made = load()->create(std::chrono::hours(1), machine).value();
  EXPECT_EQ(load()->check(made.secret)->machine, machine);
  const std::string text = read_private_file(path).value();
  EXPECT_EQ(text.find(std::string(reinterpret_cast<const char*>(made.secret.data()), 8)), std::string::npos);
  struct stat info{};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(TokensTest, ExpiredOnesAreDroppedWhenANewOneIsMade) {
  auto tokens = load();
  const auto old = tokens->create(std::chrono::seconds(1), std::nullopt).value();
  clock.advance(std::chrono::seconds(2));
  ASSERT_TRUE(tokens->create(std::chrono::hours(1), std::nullopt));
  EXPECT_NE(load()->check(old.secret).error().what.find("does not know it"), std::string::npos);
}

// The whole list is written each time: what it costs to enrol one machine must not grow with those enrolled before.
TEST_F(TokensTest, OfUsedOnesOnlyTheLastAreRememberedAndNoneWorksAgain) {
  auto tokens = load();
  const auto waiting = tokens->create(std::chrono::seconds(60), std::nullopt).value();
  std::vector<Tokens::Created> used;
  for (std::size_t i = 0; i < Tokens::kUsedMax + 5; ++i) {
    used.push_back(tokens->create(std::chrono::hours(1), std::nullopt).value());
    ASSERT_TRUE(tokens->spend(used.back().secret));
    clock.advance(std::chrono::milliseconds(1));
  }
  ASSERT_TRUE(tokens->create(std::chrono::hours(1), std::nullopt));
  tokens = load();
  EXPECT_NE(tokens->check(used[4].secret).error().what.find("does not know it"), std::string::npos);
  EXPECT_EQ(tokens->check(used[5].secret).error().code, Code::already_exists);
  EXPECT_EQ(tokens->check(used.back().secret).error().code, Code::already_exists);
  EXPECT_TRUE(tokens->check(waiting.secret)) << "an unused one is not forgotten for those";
}

TEST_F(TokensTest, ADamagedFileIsRefusedNotTakenForEmpty) {
  for (const char* text : {"", "[]", "{\"format\": 1}", "{\"format\": 1, \"tokens\": [{\"sha256\": \"zz\"}]}",
                           "{\"format\": 1, \"tokens\": [{\"sha256\": 7, \"expires_us\": 1, \"used\": false}]}"}) {
    ASSERT_TRUE(write_private_file(path, text));
    EXPECT_EQ(Tokens::load(path, clock).error().code, Code::corrupt) << text;
  }
  ASSERT_TRUE(write_private_file(path, "{\"format\": 2, \"tokens\": []}"));
  EXPECT_EQ(Tokens::load(path, clock).error().code, Code::unsupported);
}

}  // namespace
}  // namespace tidemark::server
