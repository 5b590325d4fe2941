#include "server/json_shapes.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "server/logging.h"
#include "server/machine_status.h"
#include "storage/partition.h"
#include "wire/tidemark.pb.h"

namespace tidemark::server {
namespace {

constexpr WallMicros kNow = 1'795'169'703'000'000;
const StatusRules kRules{.server_started_us = kNow - 3'600'000'000, .no_point_minutes = 10, .partition_trouble = {}};

storage::MachineState machine_with_point(WallMicros point_us) {
  storage::MachineState machine;
  machine.record.set_name("web1");
  machine.durable_epoch = EpochNumber(7);
  machine.newest_point = EpochNumber(7);
  machine.newest_point_us = point_us;
  return machine;
}

TEST(JsonShapes, AMachineHasEveryKeyThatIsPromised) {
  MachineReport report;
  report.name = "web1";
  report.status = derive_status(machine_with_point(kNow - 2'000'000), {}, kNow, kRules);
  const auto json = to_json(report);
  for (const char* key : {"id",
                          "name",
                          "state",
                          "state_since",
                          "percent",
                          "eta_seconds",
                          "cause",
                          "remedy",
                          "connected",
                          "address",
                          "agent_version",
                          "durable_epoch",
                          "newest_point",
                          "newest_point_time",
                          "unchanged_as_of",
                          "lag_seconds",
                          "backlog_bytes",
                          "disks",
                          "quarantine",
                          "revoked",
                          "certificate_expires",
                          "partition"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["state"], "disconnected");
  EXPECT_TRUE(json["newest_point"].is_null()) << "the report has none";
}

TEST(JsonShapes, APointHasTheDisksAsTheyWere) {
  storage::pb::EpochEntry epoch;
  epoch.set_number(9);
  epoch.set_time_us(kNow);
  epoch.set_arrival_us(kNow + 1);
  epoch.set_consistency(pb::FILESYSTEM);
  auto* disk = epoch.add_disks();
  disk->set_disk(0);
  disk->set_size(4096);
  const auto json = point_to_json(epoch, {{0, "vda", 8192}});
  EXPECT_EQ(json["epoch"], 9);
  EXPECT_EQ(json["time"], "2026-11-20T10:15:03Z");
  EXPECT_EQ(json["consistency"], "filesystem");
  EXPECT_EQ(json["disks"][0]["name"], "vda");
  EXPECT_EQ(json["disks"][0]["size"], 4096);
}

TEST(JsonShapes, AnErrorKeepsItsPartsAndItsStatus) {
  const Error error{Code::not_found, "web9", "no such machine", "look"};
  EXPECT_EQ(to_json(error)["error"]["code"], "not-found");
  EXPECT_EQ(to_json(error)["error"]["remedy"], "look");
  EXPECT_EQ(http_status(Code::not_found), 404);
  EXPECT_EQ(http_status(Code::busy), 429);
  EXPECT_EQ(http_status(Code::no_space), 507);
  EXPECT_EQ(dump(to_json(Error{Code::io, "\xff", "x", ""})).find('\xff'), std::string::npos)
      << "foreign bytes do not break the answer";
}

TEST(MachineStatus, AConnectedMachineIsWhatItsAgentSays) {
  Observed observed;
  observed.connected = true;
  observed.state = "backlog";
  observed.done_bytes = 25;
  observed.total_bytes = 100;
  observed.rate_bytes_per_s = 5;
  observed.cause = "the network is slow";
  const auto view = derive_status(machine_with_point(kNow), observed, kNow, kRules);
  EXPECT_EQ(view.state, "backlog");
  EXPECT_DOUBLE_EQ(*view.percent, 25);
  EXPECT_EQ(*view.eta_seconds, 15u);
  EXPECT_EQ(view.cause, "the network is slow");
  observed.state = "levitating";
  EXPECT_EQ(derive_status(machine_with_point(kNow), observed, kNow, kRules).state, "continuous");
}

TEST(MachineStatus, AnInitialSyncIsSeenInItsOpenEpoch) {
  storage::MachineState machine;
  Observed observed;
  observed.connected = true;
  EXPECT_EQ(derive_status(machine, observed, kNow, kRules).state, "initiating");
  auto& open = machine.open_epoch.emplace();
  open.set_kind(pb::INITIAL);
  auto* disk = open.add_disks();
  disk->set_size(16 * 4096);
  auto* position = open.add_positions();
  position->set_size(4);
  EXPECT_EQ(derive_status(machine, observed, kNow, kRules).state, "initial-sync");
  EXPECT_DOUBLE_EQ(*derive_status(machine, observed, kNow, kRules).percent, 25);
  position->set_size(16);
  EXPECT_EQ(derive_status(machine, observed, kNow, kRules).state, "creating-first-point");
}

TEST(MachineStatus, NoNewPointForTooLongIsAnAlarmWithACause) {
  Observed observed;
  observed.connected = true;
  auto machine = machine_with_point(kNow - 599'000'000);
  EXPECT_FALSE(derive_status(machine, observed, kNow, kRules).alarm);
  EXPECT_NEAR(*derive_status(machine, observed, kNow, kRules).lag_seconds, 599, 0.01);
  const auto late = derive_status(machine, observed, kNow + 2'000'000, kRules);
  EXPECT_TRUE(late.alarm);
  EXPECT_EQ(late.cause, "no new point for 10 minutes");
  machine.unchanged_as_of_us = kNow;
  EXPECT_FALSE(derive_status(machine, observed, kNow + 2'000'000, kRules).alarm) << "unchanged is as good as new";
  const StatusRules fresh{.server_started_us = kNow, .no_point_minutes = 10, .partition_trouble = {}};
  EXPECT_FALSE(derive_status(machine_with_point(1), observed, kNow, fresh).alarm) << "a server that just started waits";
}

TEST(MachineStatus, AStoppedOneSaysWhy) {
  const StatusRules trouble{.server_started_us = 0, .no_point_minutes = 10, .partition_trouble = "the disk failed"};
  EXPECT_EQ(derive_status(machine_with_point(kNow), {}, kNow, trouble).cause, "the disk failed");
  auto machine = machine_with_point(kNow);
  machine.record.set_revoked(true);
  EXPECT_EQ(derive_status(machine, {}, kNow, kRules).state, "stopped");
  machine = machine_with_point(kNow);
  machine.record.set_quarantine("a clone");
  EXPECT_EQ(derive_status(machine, {}, kNow, kRules).cause, "a clone");
}

TEST(Logging, ALineOfTextBecomesAJsonObject) {
  const auto json =
      nlohmann::json::parse("{" +
                            log_line_to_json("session ended" + kv("machine", "web1") +
                                             kv("why", "it said \"no\" = bye\n") + kv("n", std::uint64_t{3})) +
                            "}");
  EXPECT_EQ(json["event"], "session ended");
  EXPECT_EQ(json["machine"], "web1");
  EXPECT_EQ(json["why"], "it said \"no\" = bye\n");
  EXPECT_EQ(json["n"], "3");
  EXPECT_EQ(kv("empty", ""), " empty=\"\"");
  EXPECT_TRUE(nlohmann::json::accept("{" + log_line_to_json("x=\"never closed \\") + "}"));
}

}  // namespace
}  // namespace tidemark::server
