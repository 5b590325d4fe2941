// The keys of the index and the mark's value: fixed sizes, big-endian, so that bytewise order is the order meant.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/status.h"
#include "storage/commit_info.h"

namespace tidemark::storage::keys {

enum class Tag : std::uint8_t {
  mark = 0x01,
  rebuilding = 0x02,
  layout = 0x03,
  delta = 0x10,
  live = 0x20,
  stored = 0x21,
  kept = 0x22,
  epoch = 0x30,
  open_epoch = 0x31,
  aborted = 0x32,
  machine = 0x50,
  homes = 0x51,
};

inline constexpr std::size_t kRegionPrefix = 9;  // tag, volume, region: what the filter and prefix seeks go by

// A key of at most 25 bytes, on the stack.
class Key {
 public:
  explicit Key(Tag tag) { bytes_[size_++] = static_cast<char>(tag); }
  Key& u32(std::uint32_t value) { return big_endian(value); }
  Key& u64(std::uint64_t value) { return big_endian(value); }
  Key& machine(const MachineId& id) {
    std::memcpy(bytes_.data() + size_, id.bytes().data(), MachineId::kSize);
    size_ += MachineId::kSize;
    return *this;
  }
  std::string_view view() const { return {bytes_.data(), size_}; }

 private:
  template <typename T>
  Key& big_endian(T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      bytes_[size_++] = static_cast<char>(value >> (8 * (sizeof(T) - 1 - i)));
    }
    return *this;
  }
  std::array<char, 25> bytes_{};
  std::size_t size_ = 0;
};

inline std::uint64_t read_big_endian(std::string_view bytes) {
  std::uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<std::uint8_t>(byte);
  return value;
}

inline Key mark() { return Key(Tag::mark); }
inline Key region(VolumeId volume, std::uint32_t number) { return Key(Tag::delta).u32(volume.value()).u32(number); }
inline Key delta(VolumeId volume, std::uint32_t number, Lsn lsn) { return region(volume, number).u64(~lsn.value()); }
inline Key live(SegmentId segment) { return Key(Tag::live).u64(segment.value()); }
inline Key stored(VolumeId volume) { return Key(Tag::stored).u32(volume.value()); }
inline Key kept(SegmentId segment) { return Key(Tag::kept).u64(segment.value()); }
inline Key epoch(const MachineId& id, EpochNumber number) { return Key(Tag::epoch).machine(id).u64(~number.value()); }
inline Key of_machine(Tag tag, const MachineId& id) { return Key(tag).machine(id); }

struct DeltaKey {
  VolumeId volume;
  std::uint32_t region = 0;
  Lsn lsn;
};
// False when it is no key of a delta.
inline bool parse_delta(std::string_view key, DeltaKey& to) {
  if (key.size() != 17 || static_cast<std::uint8_t>(key[0]) != static_cast<std::uint8_t>(Tag::delta)) return false;
  to.volume = VolumeId(static_cast<std::uint32_t>(read_big_endian(key.substr(1, 4))));
  to.region = static_cast<std::uint32_t>(read_big_endian(key.substr(5, 4)));
  to.lsn = Lsn(~read_big_endian(key.substr(9, 8)));
  return true;
}

// The value of a count.
inline std::string encode_count(std::uint64_t value) { return std::string(Key(Tag::mark).u64(value).view().substr(1)); }

std::string encode_mark(const LogMark& mark);
Result<LogMark> decode_mark(std::string_view bytes);

}  // namespace tidemark::storage::keys
