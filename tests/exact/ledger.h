// What was written to one disk, and when, kept outside the agent: the judge of its points.
//
// Every sector (512 bytes) holds the number of the write that made it, or zeroes. A write is noted before it is
// submitted and after it completed, by the wall clock. A point whose moment lies between `from` and `to` may show, in a
// sector, a write k if
//   - k was submitted before `to`, and
//   - no write that had completed before `from` had been submitted after k completed.
// So it has all that completed before the moment, nothing submitted after it, and any part of what was in flight.
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace tidemark::exact {

inline constexpr std::size_t kSector = 512;

class Ledger {
 public:
  Ledger(std::string name, std::uint64_t sectors);

  // Before the first byte is submitted; the number to stamp with.
  std::uint64_t submitted(std::uint64_t sector, std::uint64_t count, bool zero);
  void completed(std::uint64_t write);
  static void stamp(std::uint64_t write, std::uint64_t sector, char* into, std::uint64_t count);

  // Empty: the image is one that the disk may have been at the moment. Else the first thing that is wrong with it.
  std::string judge(std::string_view image, std::int64_t from_us, std::int64_t to_us);
  const std::string& name() const { return name_; }
  std::uint64_t writes() const;

 private:
  struct Write {
    std::int64_t submitted_us = 0;
    std::int64_t completed_us = INT64_MAX;
    bool zero = false;
  };
  std::string judge_sector(std::uint64_t sector, std::string_view bytes, std::int64_t from_us, std::int64_t to_us);

  std::string name_;
  mutable std::mutex mutex_;
  std::deque<Write> writes_;  // number - 1
  std::vector<std::vector<std::uint32_t>>
      last_;  // of each sector: writes that a point may still show. 0: never written
};

std::int64_t wall_us();

}  // namespace tidemark::exact
