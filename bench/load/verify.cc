#include "bench/load/verify.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/disk_map.h"
#include "cli/format.h"

namespace tidemark::bench {
namespace {

constexpr std::uint64_t kGranulesMax = 64ULL << 20;  // 256 GiB of disk: four bytes of memory for each granule
constexpr std::size_t kRequestsMax = 4096;           // ranges that are worth a request of their own

// Which version every granule of one disk has: the step that wrote it last.
std::vector<std::uint32_t> versions_of(const Plan& plan, const Fleet::Written& written, std::uint32_t disk,
                                       std::uint32_t last_step, bool newest) {
  std::vector<std::uint32_t> versions(plan.shape().disk_size / limits::kGranuleSize, 0);
  // A step of bulk covers everything: only the last two can be seen.
  const bool whole = plan.shape().profile == Profile::bulk;
  for (std::uint32_t step = whole && last_step > 2 ? last_step - 1 : 1; step <= last_step; ++step) {
    auto cursor = plan.begin(written.number, step);
    std::uint64_t writes = newest && step == last_step ? written.cut_short_at : UINT64_MAX;
    for (PlannedWrite write; writes-- != 0 && plan.next(cursor, write);)
      if (write.disk == disk)
        std::fill_n(versions.begin() + static_cast<std::ptrdiff_t>(write.first_granule), write.granules, step);
  }
  return versions;
}

class Comparison {
 public:
  Comparison(const Content& content, std::uint32_t machine, std::uint32_t disk,
             const std::vector<std::uint32_t>& versions, std::string name)
      : content_(content), machine_(machine), disk_(disk), versions_(versions), name_(std::move(name)) {}

  void seek(std::uint64_t offset) { position_ = offset; }
  std::uint64_t position() const { return position_; }
  Status take(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::uint64_t granule = position_ / limits::kGranuleSize, within = position_ % limits::kGranuleSize;
      if (granule >= versions_.size()) return fail(Code::corrupt, name_, "the disk is longer than it was");
      const auto& expected = granule_at(granule);
      const std::size_t size = std::min<std::size_t>(bytes.size(), limits::kGranuleSize - within);
      if (std::memcmp(bytes.data(), expected.data() + within, size) != 0) {
        const auto differs = std::mismatch(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size),
                                           expected.begin() + static_cast<std::ptrdiff_t>(within));
        return fail(Code::corrupt, name_,
                    "byte " + std::to_string(position_ + static_cast<std::uint64_t>(differs.first - bytes.begin())) +
                        " is not what was written there, in version " + std::to_string(versions_[granule]));
      }
      position_ += size;
      bytes = bytes.subspan(size);
    }
    return {};
  }
  // What the server says is zero must be.
  Status take_zeroes(std::uint64_t length) {
    const std::vector<std::byte> zeroes(limits::kGranuleSize);
    while (length != 0) {
      const std::uint64_t size =
          std::min<std::uint64_t>(length, limits::kGranuleSize - position_ % limits::kGranuleSize);
      // Never written, and said to be zero: nothing to compare.
      if (versions_[position_ / limits::kGranuleSize] == 0)
        position_ += size;
      else
        TIDEMARK_TRY(take(std::span(zeroes).first(size)));
      length -= size;
    }
    return {};
  }

 private:
  const std::vector<std::byte>& granule_at(std::uint64_t granule) {
    if (granule != held_) {
      content_.fill(machine_, disk_, granule * (limits::kGranuleSize / kSectorSize), versions_[granule], expected_);
      held_ = granule;
    }
    return expected_;
  }

  const Content& content_;
  const std::uint32_t machine_, disk_;
  const std::vector<std::uint32_t>& versions_;
  const std::string name_;
  std::uint64_t position_ = 0, held_ = UINT64_MAX;
  std::vector<std::byte> expected_ = std::vector<std::byte>(limits::kGranuleSize);
};

Status compare_disk(cli::AdminClient& client, const std::string& path, std::uint64_t epoch, std::uint64_t size,
                    Comparison& comparison) {
  cli::DiskMap map(size, kRequestsMax);
  TIDEMARK_TRY(
      client.stream({.path = path + "/map"}, [&](std::span<const std::byte> bytes) { return map.feed(bytes); }));
  const auto extents = TIDEMARK_TRY(std::move(map).finish());
  for (const auto& extent : extents) {
    if (extent.zero) {
      TIDEMARK_TRY(comparison.take_zeroes(extent.length));
      continue;
    }
    TIDEMARK_TRY(client.stream(
        {.path = path + "/data", .range = cli::AdminClient::Range{extent.offset, extent.length}, .epoch = epoch},
        [&](std::span<const std::byte> bytes) { return comparison.take(bytes); }));
    if (comparison.position() != extent.offset + extent.length)
      return fail(Code::corrupt, path, "the answer ended at byte " + std::to_string(comparison.position()));
  }
  if (comparison.position() != size) return fail(Code::corrupt, path, "the map does not cover the disk");
  return {};
}

}  // namespace

std::uint32_t step_of(const std::vector<StepMark>& marks, std::uint64_t epoch) {
  const StepMark* last = nullptr;
  for (const StepMark& mark : marks)
    if (mark.epoch <= epoch) last = &mark;
  return last == nullptr ? 0 : last->step + static_cast<std::uint32_t>(epoch - last->epoch);
}

Result<Verified> verify_machine(const std::string& admin_socket, const LoadOptions& options,
                                const Fleet::Written& written, std::size_t older) {
  const Plan& plan = options.plan;
  const std::uint64_t size = plan.shape().disk_size;
  if (size / limits::kGranuleSize > kGranulesMax)
    return fail(Code::invalid_argument, "--verify", "disks above 256 GiB cannot be verified",
                "take a smaller --disk-size");
  cli::AdminClient client(admin_socket);
  const auto answer = TIDEMARK_TRY(client.get(cli::machine_path(written.name, "/points?limit=100000")));
  std::vector<std::uint64_t> epochs;
  for (const auto& point : cli::array_at(answer, "points"))
    if (const auto epoch = cli::number_at(point, "epoch")) epochs.push_back(*epoch);
  if (epochs.empty() || epochs.front() != written.durable_epoch)
    return fail(Code::corrupt, written.name,
                "epoch " + std::to_string(written.durable_epoch) + " was acknowledged, and the newest point is " +
                    (epochs.empty() ? "none" : std::to_string(epochs.front())));
  // The newest, and others spread over the rest. Points of bulk before the newest are passes that went before it.
  std::vector<std::uint64_t> chosen{epochs.front()};
  for (std::size_t i = 1; i <= older && i < epochs.size(); ++i)
    chosen.push_back(epochs[1 + mix(plan.shape().seed, written.number * older + i) % (epochs.size() - 1)]);
  Verified verified;
  for (const std::uint64_t epoch : chosen) {
    ++verified.points;
    const std::uint32_t step = step_of(written.marks, epoch);
    for (std::uint32_t disk = 0; disk < plan.shape().disks; ++disk) {
      const auto versions = versions_of(plan, written, disk, step, epoch == chosen.front());
      const std::string name = written.name + "/disk" + std::to_string(disk) + " at epoch " + std::to_string(epoch);
      Comparison comparison(options.content, written.number, disk, versions, name);
      const std::string path =
          cli::machine_path(written.name, "/points/epoch:" + std::to_string(epoch) + "/disks/" + std::to_string(disk));
      TIDEMARK_TRY(compare_disk(client, path, epoch, size, comparison));
      ++verified.disks;
      for (const std::uint32_t version : versions)
        (version == 0 ? verified.zero_bytes : verified.written_bytes) += limits::kGranuleSize;
    }
  }
  return verified;
}

}  // namespace tidemark::bench
