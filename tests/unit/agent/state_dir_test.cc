#include "agent/state_dir.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "agent/backoff.h"
#include "agent/enroll.h"
#include "agent/machine_facts.h"
#include "agent/text_file.h"
#include "net/token.h"
#include "tests/unit/agent/model_server.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

TEST(StateDir, IsMadeForItsOwnerOnly) {
  const TempDir temp;
  const StateDir dir(temp / "deep/state");
  ASSERT_TRUE(dir.create());
  struct stat status{};
  ASSERT_EQ(::stat(dir.path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700U);
  EXPECT_TRUE(dir.create()) << "once more changes nothing";
  temp.write("file", "");
  EXPECT_FALSE(StateDir(temp / "file").create());
}

TEST(StateDir, MissingAndDamagedCredentialsHaveRemedies) {
  const TempDir temp;
  const StateDir dir(temp / "state");
  ASSERT_TRUE(dir.create());
  EXPECT_EQ(dir.credentials().error().code, Code::not_found);
  EXPECT_NE(dir.credentials().error().remedy.find("enroll"), std::string::npos);

  ModelServer server;
  server.enroll(dir, "");
  ASSERT_TRUE(dir.machine()) << dir.machine().error().message();
  std::filesystem::remove(dir.ca());
  EXPECT_NE(dir.machine().error().object.find("ca.pem"), std::string::npos);
  server.enroll(dir, "");
  for (const char* damage : {"", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}) {
    ASSERT_TRUE(write_file_atomically(dir.certificate(), damage, 0600));
    const auto machine = dir.machine();
    ASSERT_FALSE(machine) << damage;
    EXPECT_EQ(machine.error().code, Code::corrupt);
    EXPECT_NE(machine.error().remedy.find("--replace"), std::string::npos);
  }
}

TEST(StateLock, OneHolderAtATimeAndTheOtherIsToldWho) {
  const TempDir temp;
  const StateDir dir(temp.path());
  EXPECT_FALSE(StateLock::held(dir));
  {
    const auto lock = StateLock::take(dir);
    ASSERT_TRUE(lock);
    EXPECT_TRUE(StateLock::held(dir));
    const auto second = StateLock::take(dir);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Code::busy);
    EXPECT_NE(second.error().what.find(std::to_string(::getpid())), std::string::npos);
  }
  EXPECT_FALSE(StateLock::held(dir));
  EXPECT_TRUE(StateLock::take(dir));
}

TEST(Enroll, BadInputIsRefusedBeforeAnythingIsWritten) {
  const TempDir temp;
  const StateDir dir(temp / "state");
  ASSERT_TRUE(dir.create());
  const std::string token = net::encode_token({"127.0.0.1:1", {}, {}});
  const auto code = [&](EnrollRequest request) {
    request.fingerprint = std::string(32, 'f');
    const auto enrolled = enroll(dir, request);
    return enrolled ? Code::ok : enrolled.error().code;
  };
  EXPECT_EQ(code({"no token", "", "", false, ""}), Code::invalid_argument);
  EXPECT_EQ(code({token, "no port", "", false, ""}), Code::invalid_argument);
  EXPECT_EQ(code({token, "", "bad name!", false, ""}), Code::invalid_argument);
  EXPECT_EQ(code({token, "", "", false, ""}), Code::unavailable) << "nobody listens there";
  EXPECT_FALSE(dir.enrolled());
  EXPECT_FALSE(std::filesystem::exists(dir.config()));
}

TEST(Enroll, ServerOfAnotherAuthorityThanTheTokensIsRefused) {
  const TempDir temp;
  const StateDir dir(temp / "state");
  ASSERT_TRUE(dir.create());
  const ModelServer server;
  net::Token token{server.address(), {}, {}};
  token.ca_sha256[0] = std::byte{1};
  const auto enrolled = enroll(dir, {net::encode_token(token), "", "", false, std::string(32, 'f')});
  ASSERT_FALSE(enrolled);
  EXPECT_EQ(enrolled.error().code, Code::unauthenticated) << enrolled.error().message();
  EXPECT_FALSE(dir.enrolled());
}

TEST(Enroll, ExistingEnrolmentIsKeptUnlessReplaced) {
  const TempDir temp;
  const StateDir dir(temp / "state");
  ModelServer server;
  server.enroll(dir, "");
  const std::string token = net::encode_token({"127.0.0.1:1", {}, {}});
  const auto enrolled = enroll(dir, {token, "", "", false, std::string(32, 'f')});
  ASSERT_FALSE(enrolled);
  EXPECT_EQ(enrolled.error().code, Code::already_exists);
  EXPECT_FALSE(enroll(dir, {token, "", "", true, std::string(32, 'f')})) << "nobody listens there";
  EXPECT_TRUE(dir.machine()) << "a failed replacement leaves the old one";
}

TEST(MachineFacts, FingerprintDependsOnTheMachineAlone) {
  const TempDir temp;
  temp.write("class/dmi/id/product_uuid", "1-2-3\n");
  const std::string id = temp.write("machine-id", "abc\n").string();
  const OsPaths os{temp.path(), "/proc"};
  const auto first = machine_fingerprint(os, id, "");
  ASSERT_TRUE(first);
  EXPECT_EQ(first->size(), 32U);
  EXPECT_EQ(*machine_fingerprint(os, id, ""), *first);
  temp.write("machine-id", "abd\n");
  EXPECT_NE(*machine_fingerprint(os, id, ""), *first);
  EXPECT_EQ(*machine_fingerprint(os, id, "x"), *machine_fingerprint({}, "/none", "x"));
  EXPECT_EQ(machine_fingerprint({temp / "none", "/proc"}, temp / "none", "").error().code, Code::not_found);
}

TEST(MachineFacts, BootIdIsSixteenBytes) {
  const auto id = boot_id({});
  ASSERT_TRUE(id) << id.error().message();
  EXPECT_EQ(id->size(), 16U);
  EXPECT_FALSE(host_name().empty());
}

TEST(Backoff, GrowsToItsLimitWithJitterAndKeepsWhatTheServerAskedFor) {
  Backoff backoff(7);
  auto step = std::chrono::milliseconds(Backoff::kFirst);
  for (int i = 0; i < 20; ++i) {
    const auto wait = backoff.next();
    EXPECT_GE(wait, step / 2);
    EXPECT_LE(wait, step);
    step = std::min(step * 2, std::chrono::milliseconds(Backoff::kLast));
  }
  EXPECT_GE(backoff.next(std::chrono::milliseconds(100'000)).count(), 130'000);
  backoff.reset();
  EXPECT_LE(backoff.next(), Backoff::kFirst);
}

}  // namespace
}  // namespace tidemark::agent
