#include "tests/exact/load.h"

#include <fmt/format.h>
#include <linux/fiemap.h>
#include <linux/fs.h>

#include <cstring>

#include "base/aligned_buffer.h"
#include "base/check.h"

namespace tidemark::exact {
namespace {
constexpr std::uint64_t kLargest = 1 << 20;
constexpr std::uint64_t kPage = 4096;

std::uint64_t draw(std::uint64_t& state) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1DULL;
}

// Whole, whatever the kernel makes of it.
void write_all(int fd, const char* bytes, std::uint64_t size, std::uint64_t offset) {
  while (size > 0) {
    const ssize_t n = ::pwrite(fd, bytes, size, static_cast<off_t>(offset));
    TIDEMARK_CHECK(n > 0);
    bytes += n;
    size -= static_cast<std::uint64_t>(n);
    offset += static_cast<std::uint64_t>(n);
  }
}
}  // namespace

Area::Area(std::string name, std::string path, std::uint64_t offset, std::uint64_t size, bool buffered, bool device)
    : name_(std::move(name)),
      path_(std::move(path)),
      offset_(offset),
      size_(size),
      buffered_(buffered),
      device_(device),
      fd_(::open(path_.c_str(), O_RDWR | O_CLOEXEC | (buffered ? 0 : O_DIRECT) | (device ? 0 : O_CREAT), 0600)),
      ledger_(name_, size / kSector) {
  TIDEMARK_CHECK(static_cast<bool>(fd_));
  if (device_) extents_.push_back({0, offset_, size_});
}

void Area::fill() {
  AlignedBuffer buffer(kLargest);
  for (std::uint64_t at = 0; at < size_; at += kLargest) {
    const std::uint64_t size = std::min(kLargest, size_ - at);
    const std::uint64_t number = ledger_.submitted(at / kSector, size / kSector, false);
    Ledger::stamp(number, at / kSector, reinterpret_cast<char*>(buffer.data()), size / kSector);
    write_all(fd_.get(), reinterpret_cast<const char*>(buffer.data()), size, offset_ + at);
    TIDEMARK_CHECK(::fsync(fd_.get()) == 0);
    ledger_.completed(number);
  }
}

void Area::find_extents() {
  std::vector<char> memory(sizeof(fiemap) + 512 * sizeof(fiemap_extent));
  auto* map = reinterpret_cast<fiemap*>(memory.data());
  map->fm_length = size_;
  map->fm_flags = FIEMAP_FLAG_SYNC;
  map->fm_extent_count = 512;
  TIDEMARK_CHECK(::ioctl(fd_.get(), FS_IOC_FIEMAP, map) == 0);
  std::uint64_t covered = 0;
  for (unsigned i = 0; i < map->fm_mapped_extents; ++i) {
    const fiemap_extent& extent = map->fm_extents[i];
    TIDEMARK_CHECK((extent.fe_flags & (FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC)) == 0);
    const std::uint64_t length = std::min<std::uint64_t>(extent.fe_length, size_ - extent.fe_logical);
    extents_.push_back({extent.fe_logical, extent.fe_physical, length});
    covered += length;
  }
  TIDEMARK_CHECK(covered == size_);
}

std::string Area::from_image(std::string_view disk) const {
  std::string bytes(size_, '\0');
  for (const Extent& extent : extents_)
    std::memcpy(bytes.data() + extent.offset, disk.data() + extent.on_disk, extent.size);
  return bytes;
}

void Area::write_some(std::uint64_t& random) {
  static thread_local AlignedBuffer buffer(kLargest);
  const std::uint64_t kind = draw(random) % 100;
  // Mostly small, now and then large: those are in flight for long.
  std::uint64_t sectors = kind < 60   ? 1 + draw(random) % 16
                          : kind < 90 ? 8 * (1 + draw(random) % 8)
                                      : 1 + draw(random) % 2048;
  const bool clears = device_ && !buffered_ && kind >= 20 && kind < 26;
  std::uint64_t first = draw(random) % (size_ / kSector);
  if (draw(random) % 4 == 0) first = draw(random) % 64;  // hot
  if (clears) {
    first = first / 8 * 8;
    sectors = 8 * (1 + draw(random) % 16);
  }
  sectors = std::min(sectors, size_ / kSector - first);
  if (sectors == 0) return;
  const std::uint64_t number = ledger_.submitted(first, sectors, clears);
  if (clears) {
    std::uint64_t range[2] = {offset_ + first * kSector, sectors * kSector};
    const int done = ::ioctl(fd_.get(), kind % 2 == 0 ? BLKDISCARD : BLKZEROOUT, range);
    TIDEMARK_CHECK(done == 0);
  } else {
    Ledger::stamp(number, first, reinterpret_cast<char*>(buffer.data()), sectors);
    write_all(fd_.get(), reinterpret_cast<const char*>(buffer.data()), sectors * kSector, offset_ + first * kSector);
    if (buffered_) TIDEMARK_CHECK(::fdatasync(fd_.get()) == 0);
  }
  ledger_.completed(number);
}

Chain::Chain(std::string first, std::string second, std::uint64_t offset)
    : offset_(offset),
      first_(::open(first.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)),
      second_(::open(second.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)) {
  TIDEMARK_CHECK(first_ && second_);
}

void Chain::step(std::uint64_t slot) {
  AlignedBuffer buffer(kPage);
  const std::uint64_t number = ++next_[slot];
  std::memcpy(buffer.data(), &number, sizeof number);
  const std::uint64_t at = offset_ + slot * kPage;
  write_all(first_.get(), reinterpret_cast<const char*>(buffer.data()), kPage, at);
  write_all(second_.get(), reinterpret_cast<const char*>(buffer.data()), kPage, at);
}

std::string Chain::judge(std::string_view first, std::string_view second) const {
  for (std::uint64_t slot = 0; slot < kSlots; ++slot) {
    std::uint64_t a = 0, b = 0;
    std::memcpy(&a, first.data() + offset_ + slot * kPage, sizeof a);
    std::memcpy(&b, second.data() + offset_ + slot * kPage, sizeof b);
    if (b > a || a > b + 1) return fmt::format("chain {}: {} on the first disk, {} on the second", slot, a, b);
  }
  return {};
}

}  // namespace tidemark::exact
