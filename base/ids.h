// Strong types for every number that names something. A LSN cannot be passed where a segment is meant.
// All are plain values, comparable, hashable and free to copy.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace tidemark {

template <typename Tag, typename Rep>
class Named {
 public:
  using rep = Rep;
  constexpr Named() = default;
  constexpr explicit Named(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  constexpr auto operator<=>(const Named&) const = default;
  constexpr Named next() const { return Named(static_cast<Rep>(value_ + 1)); }

 private:
  Rep value_{};
};

using PartitionId = Named<struct PartitionTag, std::uint32_t>;
using SegmentId = Named<struct SegmentTag, std::uint64_t>;  // counts up within a partition, never reused
using Lsn = Named<struct LsnTag, std::uint64_t>;            // one per log record of a partition; 0 is "before all"
using Incarnation = Named<struct IncarnationTag, std::uint64_t>;  // raised each time a partition is opened
using EpochNumber = Named<struct EpochTag, std::uint64_t>;        // per machine; 0 is "before the first"
using DiskId = Named<struct DiskTag, std::uint32_t>;              // per machine, from 0, never reused
using VolumeId = Named<struct VolumeTag, std::uint32_t>;          // per partition, from 1, never reused

// A machine's identity: 128 random bits, drawn at enrolment, stated by its certificate.
class MachineId {
 public:
  static constexpr std::size_t kSize = 16;
  constexpr MachineId() = default;
  explicit MachineId(const std::array<std::byte, kSize>& bytes) : bytes_(bytes) {}
  const std::array<std::byte, kSize>& bytes() const { return bytes_; }
  bool is_nil() const { return bytes_ == std::array<std::byte, kSize>{}; }
  auto operator<=>(const MachineId&) const = default;

  std::string to_string() const;                                       // 32 lower-case hex digits
  static std::optional<MachineId> parse(std::string_view hex_digits);  // exactly what to_string makes

 private:
  std::array<std::byte, kSize> bytes_{};
};

// The partition in which a machine lives for good, in a data directory with `partition_count` of them.
PartitionId partition_of(const MachineId& machine, std::uint32_t partition_count);

}  // namespace tidemark

template <typename Tag, typename Rep>
struct std::hash<tidemark::Named<Tag, Rep>> {
  std::size_t operator()(const tidemark::Named<Tag, Rep>& id) const { return std::hash<Rep>{}(id.value()); }
};
template <>
struct std::hash<tidemark::MachineId> {
  std::size_t operator()(const tidemark::MachineId& id) const {
    std::size_t first_bytes;  // the bytes are random already
    std::memcpy(&first_bytes, id.bytes().data(), sizeof first_bytes);
    return first_bytes;
  }
};
