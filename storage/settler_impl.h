// Shared by settler*.cc only.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "storage/sealing.h"
#include "storage/settler.h"
#include "wire/block.h"

namespace tidemark::storage {

// What a machine's history is folded by.
struct Settler::Machine {
  MachineId id;
  std::map<VolumeId, DiskId> disks;
  std::set<VolumeId> encrypted;  // whose key is durable: it came from the index
  std::vector<Lsn> points;       // commits of its epochs, ascending; of newer ones nothing is looked at
  std::unique_ptr<wire::BlockEncoder> encoder;
};

// One settling: of which segments, what stands in them, and where it goes.
struct Settler::Move {
  std::set<SegmentId> victims;
  std::map<SegmentId, std::uint64_t> sizes;  // of the log's among them
  std::map<VolumeId, std::set<std::uint32_t>> regions;
  std::map<MachineId, std::vector<EpochNumber>> machines;  // with records in the victims; epochs committed there
  std::map<MachineId, EpochNumber> newest;                 // that wrote what stands in the victims
  std::map<MachineId, Machine> loaded;
  std::map<VolumeId, MachineId> owners;
  std::map<SegmentId, std::unique_ptr<File>> files;
  std::unique_ptr<ColdWriter> cold;
  std::vector<RegionChange> changes;       // that wait for the cold segment to be finished
  std::unique_ptr<StoredDecoder> decoder;  // made at first use
  std::unique_ptr<BlockSealer> sealer;     // likewise
  AlignedBuffer buffer;
  std::vector<std::byte> sealed;
  std::vector<std::byte> plain;
  std::uint64_t since_pause = 0;  // bytes moved
  // The region at hand.
  VolumeId volume;
  std::uint32_t region = 0;
};

}  // namespace tidemark::storage
