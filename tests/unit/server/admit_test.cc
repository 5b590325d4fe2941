#include "server/admit.h"

#include <gtest/gtest.h>

namespace tidemark::server {
namespace {

storage::pb::MachineRecord record_of_web1() {
  storage::pb::MachineRecord record;
  record.set_machine(std::string(16, 'm'));
  record.set_name("web1");
  record.set_fingerprint(std::string(32, 'f'));
  record.set_boot_id(std::string(16, 'b'));
  record.set_certificate_serial("aa");
  return record;
}

pb::Hello hello_of_web1() {
  pb::Hello hello;
  hello.set_fingerprint(std::string(32, 'f'));
  hello.set_boot_id(std::string(16, 'b'));
  return hello;
}

TEST(Admit, TheMachineItselfIsLetInAndNothingIsWritten) {
  const auto decision = decide_admission(record_of_web1(), "aa", hello_of_web1());
  EXPECT_TRUE(decision.verdict);
  EXPECT_FALSE(decision.store);
}

TEST(Admit, TheFirstFingerprintAndEachBootAreRemembered) {
  auto record = record_of_web1();
  record.clear_fingerprint();
  auto decision = decide_admission(record, "aa", hello_of_web1());
  EXPECT_TRUE(decision.verdict);
  EXPECT_TRUE(decision.store);
  EXPECT_EQ(decision.record.fingerprint(), std::string(32, 'f'));
  auto hello = hello_of_web1();
  hello.set_boot_id(std::string(16, 'c'));
  decision = decide_admission(record_of_web1(), "aa", hello);
  EXPECT_TRUE(decision.verdict);
  EXPECT_TRUE(decision.store);
  EXPECT_EQ(decision.record.boot_id(), std::string(16, 'c'));
}

TEST(Admit, AChangedFingerprintIsQuarantinedAndTheOriginalGoesOn) {
  auto hello = hello_of_web1();
  hello.set_fingerprint(std::string(32, 'x'));
  const auto decision = decide_admission(record_of_web1(), "aa", hello);
  ASSERT_FALSE(decision.verdict);
  EXPECT_EQ(decision.verdict.error().code, Code::quarantined);
  EXPECT_TRUE(decision.store);
  EXPECT_EQ(decision.record.quarantine_fingerprint(), std::string(32, 'x'));
  EXPECT_FALSE(decision.record.quarantine().empty());
  EXPECT_EQ(decision.record.fingerprint(), std::string(32, 'f'));
  EXPECT_TRUE(decide_admission(decision.record, "aa", hello_of_web1()).verdict);
  EXPECT_FALSE(decide_admission(decision.record, "aa", hello).store) << "trying again changes nothing";
}

TEST(Admit, RemovedAndRevokedMachinesAreTold) {
  auto record = record_of_web1();
  record.set_removed(true);
  EXPECT_EQ(decide_admission(record, "aa", hello_of_web1()).refusal, Refusal::removed);
  record = record_of_web1();
  record.set_revoked(true);
  EXPECT_EQ(decide_admission(record, "aa", hello_of_web1()).refusal, Refusal::revoked);
  record = record_of_web1();
  record.add_revoked_serials("aa");
  EXPECT_EQ(decide_admission(record, "aa", hello_of_web1()).verdict.error().what, "this certificate is revoked");
}

TEST(Admit, ARenewedCertificateReplacesTheOldOneOnceItIsShown) {
  auto record = record_of_web1();
  supersede_serial(record, "aa", "bb");
  EXPECT_TRUE(decide_admission(record, "aa", hello_of_web1()).verdict) << "the answer may have been lost";
  const auto decision = decide_admission(record, "bb", hello_of_web1());
  EXPECT_TRUE(decision.verdict);
  EXPECT_TRUE(decision.store);
  EXPECT_FALSE(decide_admission(decision.record, "aa", hello_of_web1()).verdict);
  EXPECT_TRUE(decide_admission(decision.record, "bb", hello_of_web1()).verdict);
}

TEST(Admit, ARenewalWhoseAnswerWasLostLeavesNoStrayCertificate) {
  auto record = record_of_web1();
  supersede_serial(record, "aa", "bb");  // lost
  supersede_serial(record, "aa", "cc");
  EXPECT_FALSE(decide_admission(record, "bb", hello_of_web1()).verdict);
  EXPECT_TRUE(decide_admission(record, "aa", hello_of_web1()).verdict);
  EXPECT_TRUE(decide_admission(record, "cc", hello_of_web1()).verdict);
}

TEST(Admit, EnrollingAgainRevokesWhateverWasIssuedBefore) {
  auto record = record_of_web1();
  supersede_serial(record, "aa", "bb");
  revoke_all_serials(record);
  record.set_certificate_serial("dd");
  for (const char* serial : {"aa", "bb"})
    EXPECT_FALSE(decide_admission(record, serial, hello_of_web1()).verdict) << serial;
  EXPECT_TRUE(decide_admission(record, "dd", hello_of_web1()).verdict);
}

}  // namespace
}  // namespace tidemark::server
