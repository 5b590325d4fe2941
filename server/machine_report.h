// A machine and a point as the admin API shows them: plain values that cross threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "server/machine_status.h"

namespace tidemark::server {

struct DiskReport {
  std::uint32_t disk = 0;
  std::string name;
  std::uint64_t size = 0;
};

// That an administrator wants the machine removed, and when it will be.
struct RemovalReport {
  WallMicros requested_us = 0, effective_us = 0;
  std::string by, reason;
};

struct MachineReport {
  MachineId id;
  std::string name;
  StatusView status;
  WallMicros state_since_us = 0;
  bool connected = false;
  std::string address;
  std::string agent_version;
  EpochNumber durable_epoch;
  EpochNumber newest_point;
  WallMicros newest_point_us = 0;
  WallMicros unchanged_as_of_us = 0;
  std::vector<DiskReport> disks;
  std::string quarantine;
  bool revoked = false;
  std::int64_t certificate_expires_us = 0;
  PartitionId partition;
  std::optional<RemovalReport> removal;
  bool is_clone = false;
  bool cloned = false;  // clones stand on points of it
};

}  // namespace tidemark::server
