// A simulated disk and file system: the operating system as a crash finds it. Everything is drawn from one seed.
//
// - What was written but not synced is there to read, and survives a power cut by chance, sector by sector (512 bytes).
// - A durable write of the queue that is in flight at the cut may be there whole, in part or not at all; once its
//   completion was delivered it is there.
// - A name made, renamed or removed is durable after sync_directory of its directory; at a cut each directory keeps
//   some prefix of what was done to it since.
// - On demand: EIO, short writes, lost and misdirected writes, a full disk, flipped bits.
//
// Every operation that changes anything has a number, so that "the power goes at operation N" enumerates every crash
// point of a history: N itself takes effect in part, everything after it fails with EIO and changes nothing.
//
// Thread-safe as the seam asks; but a run is repeatable only while one thread uses the disk.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/units.h"
#include "storage/file.h"

namespace tidemark::storage {

// Chances, 0 to 1, per operation.
struct SimFaults {
  double read_error = 0;   // EIO
  double write_error = 0;  // EIO; any of its sectors may have reached the disk
  double short_write = 0;  // of a queue: fewer bytes than asked for
  double sync_error = 0;   // EIO; what was not durable before is kept or lost by chance, for good
  double lost_write = 0;   // reported as done, nothing was written
  double misdirect = 0;    // reported as done, written to another place of the same file
};

// The queue of a simulated disk. By default reap() completes some of what is in flight, in any order (the seed
// decides), and wait() at least one; with hold(true) nothing completes but what the test picks.
class SimQueue : public IoQueue {
 public:
  virtual void hold(bool held) = 0;
  // Completes the operation at this place among those submitted and in flight (0: the oldest), and delivers it.
  virtual void complete(std::size_t place) = 0;
  // Fails it instead, with a negative errno or a short count, after any part of it was written.
  virtual void fail(std::size_t place, int result) = 0;
  virtual std::size_t submitted() const = 0;  // in flight; in_flight() counts those queued as well
};

class SimDisk {
 public:
  explicit SimDisk(std::uint64_t seed, std::uint64_t capacity = 1_GiB);
  ~SimDisk();  // after its queues and files

  FileSystem& files();
  std::unique_ptr<SimQueue> make_queue();

  void set_faults(const SimFaults& faults);
  SimFaults faults() const;
  void set_capacity(std::uint64_t bytes);  // of all files together; beyond it: ENOSPC

  std::uint64_t operations() const;            // so far
  void cut_power_at(std::uint64_t operation);  // when operations() is about to pass it; 0: the very first
  bool powered_off() const;
  // Cuts the power now, if it is still on, and gives the disk as it is found afterwards, with power on, no faults, the
  // same capacity. Can be called once.
  std::unique_ptr<SimDisk> crash();

  // Damage to what is stored, past every cache: false when there is no such byte.
  bool flip_bit(const std::string& path, std::uint64_t offset, unsigned bit);
  bool overwrite(const std::string& path, std::uint64_t offset, std::span<const std::byte> bytes);

  struct State;  // private to sim_disk.cc

 private:
  explicit SimDisk(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
  std::unique_ptr<FileSystem> files_;
};

}  // namespace tidemark::storage
