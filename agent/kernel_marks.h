// The in-kernel program and its maps, as the agent holds them: loaded and attached once, pinned in bpffs, so that the
// kernel goes on marking when the agent ends, and found again by the next one.
//
// What the maps hold stands in agent/bpf/layout.h; what marks, in agent/bpf/track.bpf.c. Belongs to one thread, except
// marked(). Memory: three bits for each granule (96 MiB for a disk of 1 TiB) and 5 MiB, in the kernel.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "agent/bpf/layout.h"
#include "agent/file_descriptor.h"
#include "agent/os_paths.h"
#include "base/clock.h"
#include "base/crypto.h"
#include "base/planted.h"
#include "base/status.h"

namespace tidemark::agent {

// A disk or partition as the kernel's program knows it.
struct TrackedDisk {
  std::string path;
  std::string identity;
  dev_t device = 0;           // of the whole disk
  std::uint64_t diskseq = 0;  // a number that the kernel gives once: another one is another disk, or the same one anew
  std::uint64_t size = 0;     // bytes
  std::uint64_t first_sector = 0;
  std::optional<Sha256> table;  // of device mapper: agent/device_mapper.h
};
// unsupported, with the reason, for what cannot be tracked: regular files, disks with DAX, multipath heads of NVMe.
Result<TrackedDisk> describe_tracked(const OsPaths& os, const std::string& path, const std::string& identity,
                                     std::uint64_t size);

class KernelMarks {
 public:
  // What is pinned at `pins` when it is of this boot, this version and these disks; else it is replaced by a new one,
  // which knows nothing. permission_denied without the privilege, unsupported on a kernel that cannot, unavailable
  // while another agent has it, each with what to do.
  static Result<std::unique_ptr<KernelMarks>> open(const std::filesystem::path& pins,
                                                   const std::vector<TrackedDisk>& disks, const std::string& boot_id);
  // Over plain memory, where the caller does what the kernel's program would: for tests. All of it outlives this, as
  // what is pinned outlives an agent. `marks`: three sets, one behind the other, of disks of these sizes; in
  // `in_flight` their numbers are those of the list.
  struct Memory {
    track_control& control;
    std::span<track_counters> counters;
    std::span<std::uint64_t> marks;
    std::span<track_bucket> in_flight;
    std::span<track_carried> carried;
  };
  static std::unique_ptr<KernelMarks> over(const Memory& memory, const std::vector<std::uint64_t>& sizes);
  // Nothing is tracked any more. Not an error when nothing was; unavailable while an agent has it.
  static Status unpin(const std::filesystem::path& pins);
  ~KernelMarks();
  KernelMarks(const KernelMarks&) = delete;
  KernelMarks& operator=(const KernelMarks&) = delete;

  bool adopted() const { return adopted_; }
  const std::string& why_new() const { return why_new_; }
  track_control& control() { return *control_; }
  const track_control& control() const { return *control_; }

  // A new generation collects from the moment of a store within this call.
  void next_generation();
  // Waits until nobody marks in the generation before any more. timed_out: somebody still does.
  Status settle();
  unsigned collecting() const;
  unsigned resting() const { return 1 - collecting(); }

  std::size_t disks() const { return first_word_.size(); }
  std::uint64_t granules(std::size_t disk) const { return granules_[disk]; }
  // Words of one disk in one set.
  std::span<std::uint64_t> words(unsigned set, std::size_t disk);
  std::span<const std::uint64_t> words(unsigned set, std::size_t disk) const;
  std::uint64_t marked(unsigned set, std::size_t disk, std::uint64_t first, std::uint64_t count) const;
  std::uint64_t writes() const;  // seen since the tracking began

  // Where the writes go that were submitted, and of which it is not known that they ended: those of a resting
  // generation are among them once it has settled. One that ended before this call may be missing, or not.
  std::vector<track_carried> in_flight() const;
  // A list that outlives the agent. False: it is too long, and left as it was.
  bool carry(std::span<const track_carried> places);
  std::span<const track_carried> carried() const;
  // Marked by the agent; the kernel may be at it too.
  void mark(unsigned set, const track_carried& place);

  // May runs of the program have been lost, all copies of it skipped at one event, since the look before?
  struct Skipped {
    bool submissions = false;
    bool ends = false;
    bool commands = false;  // past the block layer
  };
  Result<Skipped> skipped();

  // Sets TRACK_MISSED_TABLE when a device of device mapper has got another table since the last look, or its table
  // cannot be read.
  void look_at_tables();

 private:
  KernelMarks() = default;
  Status lock(const std::filesystem::path& pins);
  Status adopt(const std::filesystem::path& pins, const std::vector<TrackedDisk>& disks, const std::string& boot_id);
  static Status load(const std::filesystem::path& pins, const std::vector<TrackedDisk>& disks,
                     const std::string& boot_id);

  struct Mapping {
    Mapping() = default;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();
    Status map(const std::filesystem::path& pin, std::size_t value_size, std::uint64_t entries_min);
    void* at = nullptr;
    std::size_t size = 0;
    std::uint64_t entries = 0;
  };

  void look_for_flights(std::vector<track_carried>& places) const;
  void lay_out(const std::vector<std::uint64_t>& sizes);  // which words are whose

  // A tracked disk as a stretch of a whole one.
  struct Stretch {
    std::uint32_t disk = 0;
    std::uint64_t first = 0, count = 0;  // sectors
  };

  Mapping control_map_, counters_map_, marks_map_, in_flight_map_, carried_map_;
  track_control* control_ = nullptr;
  std::span<track_counters> counters_;
  std::uint64_t* marks_ = nullptr;
  std::span<track_bucket> in_flight_;
  std::span<track_carried> carried_;
  std::vector<Stretch> stretches_;
  std::vector<TrackedDisk> tracked_;
  std::vector<std::uint64_t> first_word_, granules_;  // of each disk
  std::uint64_t words_ = 0;                           // of one set
  // Links are held as well as pinned: whatever happens to the pins, it tracks as long as this lives.
  std::vector<FileDescriptor> programs_, links_;
  FileDescriptor lock_;  // the folder of the pins
  bool adopted_ = false;
  std::string why_new_;
};

}  // namespace tidemark::agent
