#include "tests/sim/store_rig.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "storage/disk_reader.h"
#include "storage/disk_view.h"

namespace tidemark::sim {

using storage::Partition;

void granule_of(Token token, std::span<std::byte> to) {
  std::fill(to.begin(), to.end(), std::byte{0});
  if (token == 0) return;
  // Odd ones compress. SplitMix64: there are millions of them.
  const std::size_t size = token % 2 == 1 ? 128 : to.size();
  std::uint64_t state = token;
  for (std::size_t at = 0; at < size; at += sizeof state) {
    std::uint64_t word = state += 0x9e3779b97f4a7c15;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    word ^= word >> 31;
    std::memcpy(to.data() + at, &word, sizeof word);
  }
  std::memcpy(to.data(), &token, sizeof token);
}

void DiskContent::resize(std::uint64_t bytes) {
  size = bytes;
  granules.resize((bytes + limits::kGranuleSize - 1) / limits::kGranuleSize, 0);
}

StoreRig::StoreRig(std::uint64_t seed, storage::PartitionOptions options) : options_(std::move(options)) {
  std::string pattern =
      std::filesystem::exists("/dev/shm") ? "/dev/shm/tidemark-sim-XXXXXX" : "/tmp/tidemark-sim-XXXXXX";
  TIDEMARK_CHECK(mkdtemp(pattern.data()) != nullptr);
  index_directory_ = pattern;
  options_.index_directory = index_directory_ + "/index";
  options_.background = false;
  disk_ = std::make_unique<storage::SimDisk>(seed);
  queue_ = disk_->make_queue();
}

StoreRig::~StoreRig() {
  kill();
  std::error_code ignored;
  std::filesystem::remove_all(index_directory_, ignored);
}

Status StoreRig::create() { return Partition::create(files(), kDirectory, PartitionId(0), kServer); }

Status StoreRig::open() {
  TIDEMARK_CHECK(!partition_);
  stopped_.reset();
  acks_.clear();
  auto opened = Partition::open(files(), kDirectory, PartitionId(0), kServer, options_, *queue_, clock_, *this);
  if (!opened) return std::unexpected(std::move(opened).error());
  opened_ = std::move(*opened);
  partition_ = std::move(opened_.partition);
  return {};
}

void StoreRig::note_settled() {
  if (!partition_) return;
  const auto stats = partition_->stats().settler;
  settled_.blocks_moved += stats.blocks_moved;
  settled_.segments_kept += stats.segments_kept;
  settled_.regions_folded += stats.regions_folded;
  settled_.records_carried += stats.records_carried;
}

void StoreRig::kill() {
  note_settled();
  partition_.reset();
  opened_ = {};
}

void StoreRig::cut_power() {
  // What is in flight when the power goes never completes for us.
  auto after = disk_->crash();
  kill();
  queue_.reset();
  operations_ += disk_->operations();
  disk_ = std::move(after);
  queue_ = disk_->make_queue();
}

Status StoreRig::close() {
  note_settled();
  const Status closed = partition_->close();
  kill();
  return closed;
}

void StoreRig::lose_index(bool whole) {
  TIDEMARK_CHECK(!partition_);
  const std::filesystem::path index = index_directory_ + "/index";
  if (whole) {
    std::filesystem::remove_all(index);
  } else if (std::filesystem::exists(index / "CURRENT")) {
    std::filesystem::resize_file(index / "CURRENT", 3);
  }
}

Status StoreRig::rotate_master_key() {
  TIDEMARK_CHECK(!partition_ && options_.master_keys != nullptr);
  const auto needed = TIDEMARK_TRY(Partition::master_keys_needed(files(), kDirectory));
  const bool only_current =
      std::ranges::all_of(needed, [&](storage::MasterKeyId id) { return id == options_.master_keys->current().id; });
  const storage::MasterKeys kept = only_current ? options_.master_keys->current_only() : *options_.master_keys;
  options_.master_keys = std::make_shared<const storage::MasterKeys>(kept.with_new_key(clock_.wall_us()));
  return {};
}

void StoreRig::pump(bool all) {
  clock_.advance(std::chrono::milliseconds(1));
  for (;;) {
    partition_->end_turn();
    queue_->submit();
    const std::size_t before = queue_->in_flight();
    if (!all) {
      queue_->reap();
      queue_->submit();
      return;
    }
    if (before == 0) return;
    queue_->wait();
    queue_->submit();
  }
}

std::optional<std::string> compare_disk(Partition& store, const MachineId& machine, std::uint32_t disk,
                                        EpochNumber epoch, const DiskContent& expected, Random& random,
                                        std::optional<Error>& read_error, std::shared_ptr<storage::BlockCache> cache) {
  const std::string name = "disk " + std::to_string(disk) + " at epoch " + std::to_string(epoch.value());
  auto view = store.view(machine, DiskId(disk), epoch, std::chrono::milliseconds(0), std::move(cache));
  if (!view) {
    read_error = view.error();
    return std::nullopt;
  }
  const auto reader = storage::make_reader(*std::move(view));
  if (reader->disk_size() != expected.size) return name + " has the wrong size";
  std::vector<std::byte> plain(expected.granules.size() * limits::kGranuleSize);
  for (std::size_t i = 0; i < expected.granules.size(); ++i) {
    granule_of(expected.granules[i], std::span(plain).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
  }
  std::vector<std::byte> got;
  const std::uint64_t largest = random.chance(0.5) ? 1 << 21 : 20'000;
  for (std::uint64_t at = 0; at < expected.size;) {
    got.resize(std::min<std::uint64_t>(expected.size - at, 1 + random.below(largest)));
    if (const auto read = reader->read(at, got); !read) {
      read_error = read.error();
    } else if (std::memcmp(got.data(), plain.data() + at, got.size()) != 0) {
      std::size_t first = 0;
      while (got[first] == plain[at + first]) ++first;
      return name + " differs at byte " + std::to_string(at + first) + " (granule " +
             std::to_string((at + first) / limits::kGranuleSize) + ")";
    }
    at += got.size();
  }
  // What the map calls zero must be, and it must cover everything once.
  for (std::uint64_t at = 0; at < expected.size;) {
    const auto ranges = reader->map(at, expected.size - at);
    if (!ranges) {
      read_error = ranges.error();
      return std::nullopt;
    }
    if (ranges->empty()) return name + ": the map ends early";
    for (const storage::ByteRange& range : *ranges) {
      if (range.offset != at || range.length == 0 || range.length > expected.size - at)
        return name + ": the map has a hole";
      if (range.zero && !wire::all_zero(std::span(plain).subspan(range.offset, range.length))) {
        return name + ": the map takes data for zeroes at byte " + std::to_string(range.offset);
      }
      at += range.length;
    }
  }
  return std::nullopt;
}

}  // namespace tidemark::sim
