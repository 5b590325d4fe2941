#include "cli/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/check.h"

namespace tidemark::cli {

using nlohmann::json;

std::string human_size(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  std::size_t unit = 0;
  double value = static_cast<double>(bytes);
  while (value >= 1023.95 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  if (value >= 99.95) return fmt::format("{:.0f} {}", value, kUnits[unit]);
  std::string text = fmt::format("{:.1f}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text + " " + kUnits[unit];
}

std::string human_duration(std::int64_t seconds) {
  seconds = std::max<std::int64_t>(seconds, 0);
  const auto two = [](std::int64_t big, const char* big_unit, std::int64_t small, const char* small_unit) {
    return small == 0 ? fmt::format("{} {}", big, big_unit)
                      : fmt::format("{} {} {} {}", big, big_unit, small, small_unit);
  };
  if (seconds < 60) return fmt::format("{} s", seconds);
  if (seconds < 3600) return two(seconds / 60, "min", seconds % 60, "s");
  if (seconds < 86400) return two(seconds / 3600, "h", seconds % 3600 / 60, "min");
  return two(seconds / 86400, "d", seconds % 86400 / 3600, "h");
}

std::string human_time(WallMicros time_us) {
  std::string text = format_rfc3339(time_us - ((time_us % 1'000'000) + 1'000'000) % 1'000'000);
  text[10] = ' ';
  return text;
}

std::string human_age(WallMicros time_us, WallMicros now_us) {
  const std::int64_t seconds = (now_us - time_us) / 1'000'000;
  if (seconds < 0) return "in " + human_duration(-seconds);
  return human_duration(seconds) + " ago";
}

void Table::add(std::vector<std::string> cells) {
  TIDEMARK_CHECK(cells.size() == columns_.size());
  rows_.push_back(std::move(cells));
}

void Table::print(std::ostream& to) const {
  // Letters, not bytes: continuation bytes of UTF-8 take no place.
  const auto width = [](const std::string& text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
  };
  std::vector<std::size_t> widths;
  for (const Column& column : columns_) widths.push_back(width(column.title));
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));

  const auto print_row = [&](const auto& cell_of) {
    std::string line;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::string& cell = cell_of(i);
      const std::string space(widths[i] - width(cell), ' ');
      line += columns_[i].align == Align::right ? space + cell : cell + space;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    to << line << '\n';
  };
  print_row([&](std::size_t i) -> const std::string& { return columns_[i].title; });
  for (const auto& row : rows_) print_row([&](std::size_t i) -> const std::string& { return row[i]; });
}

namespace {
const json* find(const json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}
}  // namespace

std::string text_at(const json& object, const char* key) {
  const json* value = find(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

std::optional<std::uint64_t> number_at(const json& object, const char* key) {
  const json* value = find(object, key);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<std::uint64_t>();
  const double number = value->get<double>();
  if (!(number >= 0 && number < 1.8e19)) return std::nullopt;
  return static_cast<std::uint64_t>(number);
}

bool flag_at(const json& object, const char* key) {
  const json* value = find(object, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

std::optional<WallMicros> time_at(const json& object, const char* key) {
  const std::string text = text_at(object, key);
  if (text.empty()) return std::nullopt;
  const auto time = parse_rfc3339(text);
  return time ? std::optional<WallMicros>(*time) : std::nullopt;
}

const json& array_at(const json& object, const char* key) {
  static const json none = json::array();
  const json* value = find(object, key);
  return value != nullptr && value->is_array() ? *value : none;
}

}  // namespace tidemark::cli
