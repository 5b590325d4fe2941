#include "tests/exact/ledger.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <ctime>

namespace tidemark::exact {
namespace {
constexpr std::uint64_t kMagic = 0x74696465'6d61726bULL;
}

std::int64_t wall_us() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * 1'000'000 + now.tv_nsec / 1000;
}

Ledger::Ledger(std::string name, std::uint64_t sectors)
    : name_(std::move(name)), last_(sectors, std::vector<std::uint32_t>{0}) {}

std::uint64_t Ledger::submitted(std::uint64_t sector, std::uint64_t count, bool zero) {
  const std::lock_guard lock(mutex_);
  writes_.push_back({wall_us(), INT64_MAX, zero});
  const std::uint64_t number = writes_.size();
  for (std::uint64_t i = 0; i < count; ++i) last_[sector + i].push_back(static_cast<std::uint32_t>(number));
  return number;
}

void Ledger::completed(std::uint64_t write) {
  const std::int64_t now = wall_us();
  const std::lock_guard lock(mutex_);
  writes_[write - 1].completed_us = now;
}

std::uint64_t Ledger::writes() const {
  const std::lock_guard lock(mutex_);
  return writes_.size();
}

void Ledger::stamp(std::uint64_t write, std::uint64_t sector, char* into, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t words[] = {kMagic, write, sector + i};
    for (std::size_t at = 0; at + sizeof words <= kSector; at += sizeof words)
      std::memcpy(into + i * kSector + at, words, sizeof words);
    std::memcpy(into + i * kSector + kSector - 8, words + 1, 8);
  }
}

std::string Ledger::judge_sector(std::uint64_t sector, std::string_view bytes, std::int64_t from_us,
                                 std::int64_t to_us) {
  std::uint64_t shown = 0;
  const bool zero = bytes.find_first_not_of('\0') == std::string_view::npos;
  if (!zero) {
    char expected[kSector] = {};
    std::memcpy(&shown, bytes.data() + 8, 8);
    stamp(shown, sector, expected, 1);
    if (bytes != std::string_view(expected, kSector) || shown == 0 || shown > writes_.size())
      return fmt::format("{}: sector {} holds what was never written", name_, sector);
  }
  const auto submitted_at = [&](std::uint32_t i) { return i == 0 ? 0 : writes_[i - 1].submitted_us; };
  const auto completed_at = [&](std::uint32_t i) { return i == 0 ? 0 : writes_[i - 1].completed_us; };
  auto& writes = last_[sector];
  // The newest that is known to have been submitted and completed before the moment.
  std::uint32_t newest = 0;
  std::int64_t newest_submitted = -1;
  for (const std::uint32_t i : writes) {
    if (completed_at(i) < from_us && submitted_at(i) > newest_submitted) {
      newest = i;
      newest_submitted = submitted_at(i);
    }
  }
  const auto allowed = [&](std::uint32_t i) { return submitted_at(i) <= to_us && completed_at(i) >= newest_submitted; };
  std::string wrong;
  if (zero) {
    const bool any = std::any_of(writes.begin(), writes.end(),
                                 [&](std::uint32_t i) { return (i == 0 || writes_[i - 1].zero) && allowed(i); });
    if (!any) wrong = fmt::format("{}: sector {} is empty, write {} is missing", name_, sector, newest);
  } else {
    const auto number = static_cast<std::uint32_t>(shown);
    if (submitted_at(number) > to_us) {
      wrong = fmt::format("{}: sector {} shows write {}, submitted {} us after the cut", name_, sector, number,
                          submitted_at(number) - to_us);
    } else if (completed_at(number) < newest_submitted) {
      wrong = fmt::format("{}: sector {} shows write {}, but write {}, completed {} us before the cut, is missing",
                          name_, sector, number, newest, from_us - completed_at(newest));
    }
  }
  // No later point may show what was overwritten before this one.
  std::erase_if(writes, [&](std::uint32_t i) { return completed_at(i) < newest_submitted; });
  return wrong;
}

std::string Ledger::judge(std::string_view image, std::int64_t from_us, std::int64_t to_us) {
  const std::lock_guard lock(mutex_);
  std::string first;
  for (std::uint64_t sector = 0; sector < last_.size(); ++sector) {
    std::string wrong = judge_sector(sector, image.substr(sector * kSector, kSector), from_us, to_us);
    if (first.empty()) first = std::move(wrong);
  }
  return first;
}

}  // namespace tidemark::exact
