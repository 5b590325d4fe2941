#include "cli/disk_map.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/format.h"

namespace tidemark::cli {
namespace {

constexpr std::uint64_t kZeroMin = 256_KiB;  // below this a request costs more than the zeroes
constexpr int kRangeDepth = 3;               // { "ranges": [ { ...
constexpr std::size_t kRangeTextMax = 1024;

std::unexpected<Error> bad_map(const char* what) {
  return fail(Code::protocol, "disk map", what, "use a tidemarkd of the same version");
}

}  // namespace

DiskMap::DiskMap(std::uint64_t disk_size, std::size_t extents_max)
    : disk_size_(disk_size), extents_max_(std::max<std::size_t>(extents_max, 2)), zero_min_(kZeroMin) {}

Status DiskMap::feed(std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes) {
    const char c = static_cast<char>(byte);
    if (depth_ >= kRangeDepth || (depth_ == kRangeDepth - 1 && c == '{')) {
      if (object_.size() == kRangeTextMax) return bad_map("a range of the map is too long");
      object_ += c;
    }
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
      continue;
    }
    switch (c) {
      case '"': in_string_ = true; break;
      case '{':
      case '[':
        if (begun_ && depth_ == 0) return bad_map("there is something behind the map");
        begun_ = true;
        ++depth_;
        break;
      case '}':
      case ']':
        if (depth_ == 0) return bad_map("the map is not JSON");
        if (depth_-- == kRangeDepth) {
          TIDEMARK_TRY(take_range());
          object_.clear();
        }
        break;
      default: break;
    }
  }
  return {};
}

Status DiskMap::take_range() {
  const auto range = nlohmann::json::parse(object_, nullptr, false);
  const auto offset = number_at(range, "offset");
  const auto length = number_at(range, "length");
  if (!offset || !length) return bad_map("a range of the map has no offset or no length");
  if (*offset < position_ || *offset > disk_size_ || *length > disk_size_ - *offset)
    return bad_map("the ranges of the map overlap or pass the end of the disk");
  const bool touches = !zeroes_.empty() && zeroes_.back().offset + zeroes_.back().length == *offset;
  position_ = *offset + *length;
  if (!flag_at(range, "zero") || *length == 0) return {};
  if (touches) {
    zeroes_.back().length += *length;
  } else {
    // The one before is complete now: was it worth keeping?
    if (!zeroes_.empty() && zeroes_.back().length < zero_min_) zeroes_.pop_back();
    zeroes_.push_back({*offset, *length, true});
    if (zeroes_.size() > extents_max_) shed();
  }
  return {};
}

// Forgets the shorter half, and from now on everything as short.
void DiskMap::shed() {
  const Extent last = zeroes_.back();  // may still grow
  zeroes_.pop_back();
  std::vector<std::uint64_t> lengths;
  for (const Extent& extent : zeroes_) lengths.push_back(extent.length);
  const auto median = lengths.begin() + static_cast<std::ptrdiff_t>(lengths.size() / 2);
  std::ranges::nth_element(lengths, median);
  zero_min_ = *median + 1;
  std::erase_if(zeroes_, [&](const Extent& extent) { return extent.length < zero_min_; });
  zeroes_.push_back(last);
}

Result<std::vector<Extent>> DiskMap::finish() && {
  if (!begun_ || depth_ != 0) return bad_map("the map of the disk ended early");
  if (!zeroes_.empty() && zeroes_.back().length < zero_min_) zeroes_.pop_back();
  std::vector<Extent> extents;
  extents.reserve(zeroes_.size() * 2 + 1);
  std::uint64_t position = 0;
  for (const Extent& zero : zeroes_) {
    if (zero.offset > position) extents.push_back({position, zero.offset - position, false});
    extents.push_back(zero);
    position = zero.offset + zero.length;
  }
  if (position < disk_size_) extents.push_back({position, disk_size_ - position, false});
  return extents;
}

}  // namespace tidemark::cli
