#include "server/export_clients.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/unit/server/temporary_directory.h"

namespace tidemark::server {
namespace {

class ExportClientsTest : public ::testing::Test {
 protected:
  void issue(const std::string& serial, const std::string& client, WallMicros now_us) {
    net::CertificateInfo info;
    info.serial = serial;
    info.client = client;
    info.not_after_us = now_us + 1000;
    ASSERT_TRUE(ExportClients::record(path_, info, now_us));
  }
  std::unique_ptr<ExportClients> load() {
    auto clients = ExportClients::load(path_);
    EXPECT_TRUE(clients);
    return std::move(*clients);
  }

  TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/clients";
};

TEST_F(ExportClientsTest, NoneWasEverIssued) {
  EXPECT_TRUE(load()->list()->empty());
  EXPECT_EQ(load()->revoke("alice", 1).error().code, Code::not_found);
}

TEST_F(ExportClientsTest, ANameRevokesAllOfAClientAndASerialOne) {
  issue("0a01", "alice", 1);
  issue("0a02", "alice", 2);
  issue("0b01", "bob", 3);
  issue("0b02", "bob", 4);
  const auto clients = load();
  EXPECT_EQ(clients->revoke("alice", 10)->size(), 2u);
  EXPECT_EQ(clients->revoke("0B01", 11)->size(), 1u);
  EXPECT_EQ(clients->revoke("alice", 12).error().code, Code::already_exists);
  EXPECT_EQ(clients->revoke("0b01", 12).error().code, Code::already_exists);
  issue("0a03", "alice", 13);
  const auto again = load();
  for (const auto& now : {clients.get(), again.get()}) {
    for (const char* serial : {"0a01", "0a02", "0b01"}) EXPECT_TRUE(now->is_revoked(serial)) << serial;
    for (const char* serial : {"0a03", "0b02"}) EXPECT_FALSE(now->is_revoked(serial)) << serial;
  }
  const auto list = clients->list();
  ASSERT_EQ(list->size(), 5u);
  EXPECT_EQ(list->front().serial, "0a01");
  EXPECT_EQ(list->front().revoked_us, 10);
}

TEST_F(ExportClientsTest, OneThatIsNotKnownIsRevokedByItsSerial) {
  EXPECT_EQ(load()->revoke("00ff00ff", 5)->front().client, "");
  EXPECT_TRUE(load()->is_revoked("00ff00ff"));
  for (const char* nonsense : {"", "xyz", "../../etc/passwd", "abc"})
    EXPECT_EQ(load()->revoke(nonsense, 5).error().code, Code::not_found) << nonsense;
}

TEST_F(ExportClientsTest, ARecordThatCannotBeReadCountsAsRevoked) {
  issue("0a01", "alice", 1);
  issue("0b01", "bob", 1);
  for (const char* damaged : {"", "{", "[]", R"({"client": 7})"}) {
    std::ofstream(path_ + "/0a01.json") << damaged;
    EXPECT_TRUE(load()->is_revoked("0a01")) << damaged;
    EXPECT_FALSE(load()->is_revoked("0b01"));
  }
}

}  // namespace
}  // namespace tidemark::server
