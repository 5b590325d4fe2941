// A partition's log on a simulated disk: what the tests of log and recovery share. Deterministic by its seed.
#pragma once

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "storage/log.h"
#include "storage/recovery.h"
#include "storage/segment_keeper.h"
#include "storage/sim_disk.h"
#include "wire/block.h"

namespace tidemark::storage::log_fixture {

inline constexpr char kDirectory[] = "/log";
inline constexpr std::uint64_t kSmallSegment = 64_KiB;
inline constexpr PartitionId kPartition{7};
inline constexpr std::uint32_t kSalt = 0x5eed5a17;

inline MachineId machine(unsigned number) {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes[0] = static_cast<std::byte>(number + 1);
  return MachineId(bytes);
}

inline std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

// A payload of a few incompressible blocks, and sometimes zeroes.
inline std::string blocks_payload(Random& random, const MachineId& of, DiskId disk, EpochNumber epoch,
                                  unsigned blocks) {
  wire::BlockEncoder encoder(of, 0);
  encoder.start(disk, epoch);
  for (unsigned i = 0; i < blocks; ++i) {
    std::vector<std::byte> plain(limits::kGranuleSize * (1 + random.below(2)));
    random.fill(plain);
    encoder.add(random.below(1000) * limits::kBlockGranulesMax, plain);
    if (random.chance(0.2)) encoder.add_zeroes(random.below(1000), 1 + random.below(5000));
  }
  const auto payload = encoder.take();
  return std::string(reinterpret_cast<const char*>(payload.data()), payload.size());
}

struct Written {
  RecordType type{};
  MachineId of;
  DiskId disk;
  std::string payload;
};

// The whole of a record's bytes, read where the commit says that it stands.
inline std::string read_record(FileSystem& files, const CommitInfo& commit, std::size_t record) {
  auto file = files.open(segment_path(kDirectory, commit.segment), OpenMode::read, true);
  EXPECT_TRUE(file.has_value());
  AlignedBuffer bytes(commit.size);
  EXPECT_EQ((*file)->read_at(commit.offset, bytes.span()).value(), commit.size);
  std::size_t at = sizeof(CommitHeader);
  for (std::size_t i = 0; i < record; ++i) at += commit.records[i].payload_size;
  return std::string(reinterpret_cast<const char*>(bytes.data()) + at, commit.records[record].payload_size);
}

// One life of the log: from recovery to a crash or a clean end.
class Life final : public Log::Listener {
 public:
  explicit Life(SimDisk& disk, LogTail tail = {}, Incarnation incarnation = Incarnation(1), SegmentId last_id = {},
                std::vector<SegmentId> live = {}, std::uint64_t segment_size = kSmallSegment)
      : queue(disk.make_queue()), clock(1'000'000) {
    SegmentKeeperOptions options;
    options.directory = kDirectory;
    options.segment_size = segment_size;
    options.reserve = 1;
    options.last_id = last_id;
    options.live = std::move(live);
    options.background = false;
    auto opened = SegmentKeeper::open(disk.files(), std::move(options));
    if (!opened) {
      open_error = opened.error();
      return;
    }
    keeper = std::move(*opened);
    LogOptions log_options;
    log_options.partition = kPartition;
    log_options.salt = kSalt;
    log_options.incarnation = incarnation;
    log_options.commits_in_flight_max = 3;
    log.emplace(log_options, *queue, *keeper, clock, tail, *this);
  }
  Life(SimDisk& disk, const RecoveryResult& from)
      : Life(disk, from.tail, from.incarnation_max.next(), from.segment_max, from.segments) {}
  ~Life() { log.reset(); }

  void on_durable(CommitInfo&& commit) override {
    EXPECT_EQ(commit.first_lsn.value(), durable.value() + 1) << "commits are reported in log order";
    durable = commit.last_lsn;
    commits.push_back(std::move(commit));
  }
  void on_stopped(const Error& why) override {
    EXPECT_FALSE(stopped.has_value()) << "told once";
    stopped = why;
  }

  // End of a turn, the queue handed over, some completions.
  void turn() {
    log->end_turn();
    queue->submit();
    queue->reap();
    queue->submit();
  }
  // Until everything is durable, or the log has stopped.
  void settle() {
    log->end_turn();
    while (!log->stopped() && queue->wait() > 0) log->end_turn();
  }
  void idle() {
    log->on_idle();
    queue->submit();
    while (!log->stopped() && queue->wait() > 0) {
    }
  }

  std::unique_ptr<SimQueue> queue;
  ManualClock clock;
  std::unique_ptr<SegmentKeeper> keeper;
  std::vector<CommitInfo> commits;
  Lsn durable;
  std::optional<Error> stopped, open_error;
  std::optional<Log> log;
};

struct Recovered {
  RecoveryResult result;
  std::vector<CommitInfo> commits;
};

inline Result<Recovered> recover(SimDisk& disk, LogMark mark = {}) {
  Recovered recovered;
  RecoveryOptions options;
  options.partition = kPartition;
  options.salt = kSalt;
  options.mark = mark;
  auto result = recover_log(disk.files(), kDirectory, options, [&](CommitInfo&& commit) -> Status {
    recovered.commits.push_back(std::move(commit));
    return {};
  });
  if (!result) return std::unexpected(result.error());
  recovered.result = std::move(*result);
  return recovered;
}

inline std::unique_ptr<SimDisk> new_disk(std::uint64_t seed) {
  spdlog::set_level(spdlog::level::err);  // thousands of expected torn tails and full disks
  auto disk = std::make_unique<SimDisk>(seed);
  EXPECT_TRUE(disk->files().make_directory(kDirectory));
  EXPECT_TRUE(disk->files().sync_directory("/"));
  return disk;
}

}  // namespace tidemark::storage::log_fixture
