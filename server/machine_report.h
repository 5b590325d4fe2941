// A machine and a point as the admin API shows them: plain values that cross threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "server/machine_status.h"
#include "server/space_watch.h"

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

struct SpaceReport {
  std::uint64_t logical_bytes = 0, stored_bytes = 0;
  std::uint64_t quota_bytes = 0;  // 0: none
  QuotaState quota = QuotaState::none;
  std::uint64_t growth = 0;  // bytes per second
  Watermark::Hold hold = Watermark::Hold::none;
  std::uint64_t rate = 0;  // bytes per second, when slowed
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
  WallMicros proven_us = 0;  // what its agent said last, as the next two
  std::uint64_t differences = 0;
  WallMicros difference_us = 0;
  std::vector<DiskReport> disks;
  std::string quarantine;
  bool revoked = false;
  std::int64_t certificate_expires_us = 0;
  PartitionId partition;
  std::optional<RemovalReport> removal;
  bool is_clone = false;
  bool cloned = false;  // clones stand on points of it
  StoredDamage damage;
  SpaceReport space;
};

}  // namespace tidemark::server
