// What the agent must not forget: which epoch is durable, what it was, what was on its way. One small file, replaced
// as a whole and synced, with a checksum: after a power cut it is the old one or the new one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "agent/consistency.h"
#include "base/checksum.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/agent_session.h"

namespace tidemark::agent {

struct KnownDisk {
  DiskId disk;
  std::string identity;
  std::string name;
  std::uint64_t size = 0;
  bool operator==(const KnownDisk&) const = default;
};

// An epoch as it was committed.
struct EpochFacts {
  EpochNumber number;
  Hash128 digest;
  Consistency consistency = Consistency::fuzzy;
  WallMicros cut_us = 0;
  std::vector<KnownDisk> disks;
};

// What the audit (agent/audit.h) found, and where it stands.
struct AuditRecord {
  WallMicros proven_us = 0;      // whatever was on the disks then has been compared with the replica, or sent, since
  WallMicros pass_began_us = 0;  // of the pass that is under way; 0: none
  std::string disk;              // identity; where that pass stands
  std::uint64_t chunk = 0;
  bool pass_incomplete = false;   // parts could not be read
  std::uint64_t differences = 0;  // chunks that differed although no write was seen, ever
  std::string difference;         // the last of them, in a sentence
  WallMicros difference_us = 0;
};

struct Memory {
  MachineId machine;
  wire::AgentMemory session;          // as the session keeps it: what is durable, what was sent, what is open
  std::optional<EpochFacts> durable;  // what is known of the durable epoch, if it was made by this memory
  std::optional<EpochFacts> pending;  // committed, its Durable has not come yet
  std::string boot_id;                // of the boot in which the durable epoch was made
  std::string rescan;                 // why the next epoch is a rescan; empty: it need not be
  EpochNumber newest_point;
  WallMicros newest_point_us = 0;
  WallMicros unchanged_as_of_us = 0;
  std::string alarm;  // the server's history diverged, ...
  WallMicros alarm_us = 0;
  AuditRecord audit;

  // Durable up to `epoch`: moves pending to durable when it is the one. `session` is not touched.
  void became_durable(EpochNumber epoch, const Hash128& digest, const std::string& boot);
};

std::string encode_memory(const Memory& memory);
// corrupt, with the remedy, for anything that encode_memory did not make.
Result<Memory> decode_memory(const std::string& text, const std::string& name);

// An empty memory when there is no file. permission and damage are errors: to forget silently would hide a server that
// lost what it acknowledged.
Result<Memory> load_memory(const std::filesystem::path& path, const MachineId& machine);
Status save_memory(const std::filesystem::path& path, const Memory& memory);  // durable on return

}  // namespace tidemark::agent
