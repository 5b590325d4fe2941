// Adopting what is pinned, and using it. Loading stands in kernel_marks_load.cc.
#include "agent/kernel_marks.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>
#include <tuple>

#include "agent/device_mapper.h"
#include "agent/pins.h"
#include "agent/text_file.h"
#include "base/check.h"
#include "base/crypto.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace fs = std::filesystem;

namespace {

constexpr auto kSettleLimit = std::chrono::seconds(10);  // the program runs for microseconds

constexpr Sha256 kUnknownTable{};
constexpr std::uint64_t kSector = 512;
constexpr std::uint64_t kGranuleSectors = limits::kGranuleSize / kSector;

template <typename T>
T seen(const T& value) {
  return __atomic_load_n(&value, __ATOMIC_SEQ_CST);
}

}  // namespace

Sha256 digest_of(const TrackedDisk& disk) {
  Sha256Stream digest;
  digest.update(std::as_bytes(std::span(disk.identity)));
  if (disk.table) digest.update(*disk.table);
  return digest.finish();
}

KernelMarks::Mapping::~Mapping() {
  if (at != nullptr) ::munmap(at, size);
}

Status KernelMarks::Mapping::map(const fs::path& pin, std::size_t value_size, std::uint64_t entries_min) {
  const FileDescriptor fd(::bpf_obj_get(pin.c_str()));
  if (!fd) return fail_errno(errno, pin.string(), "open the pinned map");
  bpf_map_info info{};
  __u32 length = sizeof info;
  if (::bpf_obj_get_info_by_fd(fd.get(), &info, &length) != 0) return fail_errno(errno, pin.string(), "look at");
  if (info.value_size != value_size || info.max_entries < entries_min) {
    return fail(Code::unsupported, pin.string(), "of another layout");
  }
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  entries = info.max_entries;
  size = (entries * value_size + page - 1) / page * page;
  void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (mapped == MAP_FAILED) return fail_errno(errno, pin.string(), "map");
  at = mapped;
  return {};
}

Result<std::unique_ptr<KernelMarks>> KernelMarks::open(const fs::path& pins, const std::vector<TrackedDisk>& disks,
                                                       const std::string& boot_id) {
  std::unique_ptr<KernelMarks> marks(new KernelMarks);
  std::error_code error;
  std::string why_new = "nothing was tracked before";
  if (fs::exists(pins, error)) {
    TIDEMARK_TRY(marks->lock(pins));
    if (auto adopted = marks->adopt(pins, disks, boot_id)) {
      marks->adopted_ = true;
      return marks;
    } else {
      why_new = adopted.error().what;
    }
    marks.reset(new KernelMarks);
    TIDEMARK_TRY(unpin(pins));
  }
  if (auto loaded = load(pins, disks, boot_id); !loaded) {
    (void)unpin(pins);  // the first error is the one to tell; half of it is never adopted
    return std::unexpected(std::move(loaded).error());
  }
  TIDEMARK_TRY(marks->lock(pins));
  TIDEMARK_TRY(marks->adopt(pins, disks, boot_id));
  marks->why_new_ = why_new;
  return marks;
}

KernelMarks::~KernelMarks() = default;

// Two who use the same marks would forget what the other has yet to send.
Status KernelMarks::lock(const fs::path& pins) {
  lock_ = FileDescriptor(::open(pins.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock_) return fail_errno(errno, pins.string(), "open");
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return {};
  if (errno != EWOULDBLOCK) return fail_errno(errno, pins.string(), "lock");
  return fail(Code::unavailable, pins.string(), "another agent of the same machine tracks its disks",
              "stop that one; a second agent on a machine enrols under a name of its own");
}

std::unique_ptr<KernelMarks> KernelMarks::over(const Memory& memory, const std::vector<std::uint64_t>& sizes) {
  std::unique_ptr<KernelMarks> made(new KernelMarks);
  made->lay_out(sizes);
  TIDEMARK_CHECK(memory.marks.size() == TRACK_SETS * made->words_);
  made->control_ = &memory.control;
  made->counters_ = memory.counters;
  made->marks_ = memory.marks.data();
  made->in_flight_ = memory.in_flight;
  made->carried_ = memory.carried;
  for (const std::uint64_t size : sizes)
    made->stretches_.push_back({static_cast<std::uint32_t>(made->stretches_.size()), 0, size / kSector});
  return made;
}

void KernelMarks::lay_out(const std::vector<std::uint64_t>& sizes) {
  for (const std::uint64_t size : sizes) {
    first_word_.push_back(words_);
    granules_.push_back((size + limits::kGranuleSize - 1) / limits::kGranuleSize);
    words_ += (granules_.back() + 63) / 64;
  }
}

Status KernelMarks::adopt(const fs::path& pins, const std::vector<TrackedDisk>& disks, const std::string& boot_id) {
  const auto other = [&](const std::string& what) { return fail(Code::unsupported, pins.string(), what); };
  TIDEMARK_TRY(control_map_.map(pins / "control", sizeof(track_control), 1));
  control_ = static_cast<track_control*>(control_map_.at);
  if (seen(control_->ready) != 1) return other("an agent ended while it began to track");
  if (control_->version != TRACK_VERSION) return other("the marks are of another version of the agent");
  if (boot_id.size() != sizeof control_->boot_id ||
      std::memcmp(control_->boot_id, boot_id.data(), boot_id.size()) != 0) {
    return other("the marks are of another boot");
  }
  if (control_->disks != disks.size()) return other("other disks are protected than before");
  std::vector<std::uint64_t> sizes;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    const auto& was = control_->disk[i];
    if (was.device != disks[i].device || was.diskseq != disks[i].diskseq || was.size != disks[i].size ||
        was.first_sector != disks[i].first_sector ||
        std::memcmp(was.identity, digest_of(disks[i]).data(), TRACK_IDENTITY_SIZE) != 0) {
      return other(disks[i].path + " is another disk than before, of another size, or mapped anew");
    }
    sizes.push_back(disks[i].size);
    stretches_.push_back({number_of_disk(disks[i].device), disks[i].first_sector, disks[i].size / kSector});
  }
  tracked_ = disks;
  lay_out(sizes);
  if (control_->words != words_) return other("the marks are of another layout");
  TIDEMARK_TRY(marks_map_.map(pins / "marks", sizeof(std::uint64_t), TRACK_SETS * words_));
  TIDEMARK_TRY(counters_map_.map(pins / "counters", sizeof(track_counters), 1));
  TIDEMARK_TRY(in_flight_map_.map(pins / "in_flight", sizeof(track_bucket), TRACK_BUCKETS));
  TIDEMARK_TRY(carried_map_.map(pins / "carried", sizeof(track_carried), TRACK_CARRIED_MAX));
  marks_ = static_cast<std::uint64_t*>(marks_map_.at);
  in_flight_ = {static_cast<track_bucket*>(in_flight_map_.at), TRACK_BUCKETS};
  carried_ = {static_cast<track_carried*>(carried_map_.at), TRACK_CARRIED_MAX};
  counters_ = {static_cast<track_counters*>(counters_map_.at), counters_map_.entries};
  for (const PinnedProgram& pinned : kPinnedPrograms) {
    FileDescriptor link(::bpf_obj_get((pins / pinned.name).c_str()));
    if (!link) return fail_errno(errno, (pins / pinned.name).string(), "open the pinned program");
    bpf_link_info info{};
    __u32 length = sizeof info;
    if (::bpf_obj_get_info_by_fd(link.get(), &info, &length) != 0) return fail_errno(errno, pinned.name, "look at");
    FileDescriptor program(::bpf_prog_get_fd_by_id(info.prog_id));
    if (!program) return fail_errno(errno, pinned.name, "open the program of");
    programs_.push_back(std::move(program));
    links_.push_back(std::move(link));
  }
  return {};
}

void KernelMarks::look_at_tables() {
  for (std::size_t i = 0; i < tracked_.size(); ++i) {
    TrackedDisk& disk = tracked_[i];
    if (!disk.table) continue;
    const auto table = digest_of_table(disk.device, disk.path);
    if (table && *table == *disk.table) continue;
    if (!table && *disk.table != kUnknownTable) spdlog::warn("tracking: {}", table.error().message());
    // First this, then what the next agent compares with: it finds one or the other.
    __atomic_fetch_or(&control_->missed, TRACK_MISSED_TABLE, __ATOMIC_SEQ_CST);
    disk.table = table ? *table : kUnknownTable;
    std::memcpy(control_->disk[i].identity, digest_of(disk).data(), TRACK_IDENTITY_SIZE);
  }
}

unsigned KernelMarks::collecting() const { return static_cast<unsigned>(seen(control_->generation) & 1); }

void KernelMarks::next_generation() { __atomic_fetch_add(&control_->generation, 1, __ATOMIC_SEQ_CST); }

Status KernelMarks::settle() {
  const unsigned old = resting();
  const auto deadline = std::chrono::steady_clock::now() + kSettleLimit;
  // Who left is counted before who entered: when the sums are equal, there was a moment with nobody inside.
  while (true) {
    std::uint64_t left = 0, entered = 0;
    for (const track_counters& cpu : counters_) left += seen(cpu.left[old]);
    for (const track_counters& cpu : counters_) entered += seen(cpu.entered[old]);
    if (left == entered) return {};
    if (std::chrono::steady_clock::now() > deadline) {
      return fail(Code::timed_out, "tracking", "the kernel's program did not leave a generation within 10 s",
                  "look for a hung CPU in the kernel's log; `tidemark-agent untrack` begins anew");
    }
    std::this_thread::yield();
  }
}

std::span<std::uint64_t> KernelMarks::words(unsigned set, std::size_t disk) {
  return {marks_ + set * words_ + first_word_[disk], (granules_[disk] + 63) / 64};
}
std::span<const std::uint64_t> KernelMarks::words(unsigned set, std::size_t disk) const {
  return {marks_ + set * words_ + first_word_[disk], (granules_[disk] + 63) / 64};
}

std::uint64_t KernelMarks::marked(unsigned set, std::size_t disk, std::uint64_t first, std::uint64_t count) const {
  const auto all = words(set, disk);
  std::uint64_t found = 0;
  const std::uint64_t last = first + count - 1;
  for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
    std::uint64_t mask = ~std::uint64_t{0};
    if (word == first / 64) mask &= ~std::uint64_t{0} << (first % 64);
    if (word == last / 64) mask &= ~std::uint64_t{0} >> (63 - last % 64);
    found += static_cast<std::uint64_t>(std::popcount(seen(all[word]) & mask));
  }
  return found;
}

std::vector<track_carried> KernelMarks::in_flight() const {
  std::vector<track_carried> places;
  look_for_flights(places);
  // A part that was split off stands elsewhere than its whole. It may have come to where the first look had been, and
  // the whole have left before the look got there.
  look_for_flights(places);
  const auto order = [](const track_carried& place) { return std::tuple(place.disk, place.first, place.count); };
  std::ranges::sort(places, {}, order);
  const auto twice = std::ranges::unique(places, {}, order);
  places.erase(twice.begin(), twice.end());
  return places;
}

void KernelMarks::look_for_flights(std::vector<track_carried>& places) const {
  for (const track_bucket& bucket : in_flight_) {
    for (unsigned slot = 0; slot < TRACK_SLOTS; ++slot) {
      if (seen(bucket.bio[slot]) == 0) continue;
      // Of a generation that collects the place may be half written: what comes of it is read once more for nothing.
      const std::uint64_t first = seen(bucket.place[slot].sector);
      const std::uint64_t end = first + (std::uint64_t{seen(bucket.place[slot].bytes)} + kSector - 1) / kSector;
      for (std::size_t i = 0; i < stretches_.size(); ++i) {
        const Stretch& on = stretches_[i];
        if (on.disk != seen(bucket.place[slot].disk)) continue;
        const std::uint64_t from = std::max(first, on.first), to = std::min(end, on.first + on.count);
        if (from >= to) continue;
        const std::uint64_t granule = (from - on.first) / kGranuleSectors;
        const std::uint64_t last = (to - 1 - on.first) / kGranuleSectors;
        places.push_back({granule, static_cast<std::uint32_t>(last - granule + 1), static_cast<std::uint32_t>(i)});
      }
    }
  }
}

bool KernelMarks::carry(std::span<const track_carried> places) {
  if (places.size() > carried_.size()) return false;
  // Whoever dies in the middle leaves some of both lists, each whole as far as it is counted: nothing is missing that
  // the caller had not put elsewhere before.
  __atomic_store_n(&control_->carried, 0, __ATOMIC_SEQ_CST);
  std::copy(places.begin(), places.end(), carried_.begin());
  __atomic_store_n(&control_->carried, places.size(), __ATOMIC_SEQ_CST);
  return true;
}

std::span<const track_carried> KernelMarks::carried() const {
  return carried_.first(std::min<std::size_t>(seen(control_->carried), carried_.size()));
}

void KernelMarks::mark(unsigned set, const track_carried& place) {
  const auto all = words(set, place.disk);
  for (std::uint64_t i = place.first; i < place.first + place.count; ++i)
    __atomic_fetch_or(&all[i / 64], std::uint64_t{1} << (i % 64), __ATOMIC_SEQ_CST);
}

std::uint64_t KernelMarks::writes() const {
  std::uint64_t sum = 0;
  for (const track_counters& cpu : counters_) sum += seen(cpu.writes);
  return sum;
}

// A submission is lost only if both copies of its program were skipped, so if the counts of both grew. What grew is
// looked at over two looks: the counts of one event may fall to either side of one.
Result<KernelMarks::Skipped> KernelMarks::skipped() {
  std::map<Tracepoint, bool> all_grew, any_grew;
  for (std::size_t i = 0; i < programs_.size(); ++i) {
    bpf_prog_info info{};
    __u32 length = sizeof info;
    if (::bpf_obj_get_info_by_fd(programs_[i].get(), &info, &length) != 0)
      return fail_errno(errno, kPinnedPrograms[i].name, "ask for the count of skipped runs of");
    auto& counts = control_->skipped[i];
    const bool grew = info.recursion_misses != counts[0];
    counts[0] = counts[1];
    counts[1] = info.recursion_misses;
    const Tracepoint point = kPinnedPrograms[i].point;
    all_grew[point] = grew && all_grew.try_emplace(point, true).first->second;
    any_grew[point] = grew || any_grew[point];
  }
  Skipped skipped;
  skipped.submissions = all_grew[Tracepoint::queue] || all_grew[Tracepoint::remap] || any_grew[Tracepoint::split];
  skipped.ends = any_grew[Tracepoint::end];
  skipped.commands = skipped.ends && any_grew[Tracepoint::command];  // which are seen at either end
  return skipped;
}

}  // namespace tidemark::agent
