// What the model knows: of each machine what was acknowledged, what is on its way, and what is open.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/store_rig.h"

namespace tidemark::sim {

using SharedContent = std::shared_ptr<const Content>;

// How an open epoch looked after each payload: a crash may leave any of these.
struct Sent {
  std::uint64_t blocks = 0;
  Hash128 sum;
  SharedContent content;
};

struct OpenEpoch {
  std::uint64_t number = 0;
  std::uint32_t kind = 0;
  std::vector<Sent> sent;  // the first: as it was begun
  const Content& content() const { return *sent.back().content; }
};

struct PendingEpoch {
  OpenEpoch epoch;
  Hash128 digest;
};

struct AckedEpoch {
  SharedContent content;
  Hash128 digest;
  Lsn lsn;
};

// What a clone stands on.
struct ModelBase {
  std::uint32_t parent = 0;  // number of the machine
  std::uint64_t epoch = 0;
  SharedContent content;
};

struct ModelMachine {
  MachineId id;
  std::optional<ModelBase> base;  // it is a clone
  std::string name;
  bool record_acked = false;
  bool removing = false;
  bool removed_acked = false;
  std::map<std::uint32_t, std::uint64_t> disks;  // sizes, as the catalog has them
  std::map<std::uint64_t, AckedEpoch> acked;
  std::set<std::uint64_t> dropping;                  // asked to be dropped: may be gone at any time
  std::map<std::uint64_t, AckedEpoch> dropped;       // were seen to be gone
  std::deque<PendingEpoch> pending;                  // committed, not acknowledged
  std::map<std::uint64_t, WallMicros> committed_us;  // when each was, by a clock that never leaps
  std::optional<OpenEpoch> open;

  // On what the next epoch is built.
  SharedContent newest() const {
    if (!pending.empty()) return pending.back().epoch.sent.back().content;
    if (!acked.empty()) return acked.rbegin()->second.content;
    if (base) return base->content;
    return std::make_shared<Content>();
  }
};

}  // namespace tidemark::sim
