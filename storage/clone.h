// Clones. A clone is a machine without an agent: its disks begin as those of a point of another machine (or clone)
// were, and its own volumes hold what was written to it since, as epochs of its own. So it is made in constant time,
// survives restarts, is settled and rebuilt like everything else, and goes, with exactly its own bytes, when its record
// says that it is removed. Only its newest epoch is of use; the others are dropped.
//
// A clone that was never written to has no epoch: what is read of it as of epoch 0 is the point that it stands on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

inline constexpr std::uint32_t kCloneDepthMax = 8;     // clones of clones, down to the machine
inline constexpr std::size_t kClonesAtOnceMax = 1024;  // made in one call

// A point that clones can be made of, held so that it is not dropped meanwhile.
struct CloneBase {
  MachineId parent;
  EpochNumber epoch;
  std::uint32_t depth = 0;            // of a clone of it
  std::vector<pb::DiskRecord> disks;  // of the parent; size: at the point, 0 for one that it does not have
  std::shared_ptr<const void> hold;
};

struct CloneName {
  MachineId id;
  std::string name;  // as the catalog has it: unique among machines and clones
};

}  // namespace tidemark::storage
