// Figures, times and tables for people. --json never passes through here.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"

namespace tidemark::cli {

std::string human_size(std::uint64_t bytes);                   // "0 B", "1.5 KiB", "37 GiB"
std::string human_duration(std::int64_t seconds);              // "42 s", "3 min 5 s", "2 h 10 min", "12 d 4 h"
std::string human_time(WallMicros time_us);                    // "2026-11-20 10:15:03Z"
std::string human_age(WallMicros time_us, WallMicros now_us);  // "3 min 5 s ago", "in 59 min"

// Columns aligned, two spaces apart, nothing behind the last one.
class Table {
 public:
  enum class Align : std::uint8_t { left, right };
  struct Column {
    std::string title;
    Align align = Align::left;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> cells);  // as many as there are columns
  void print(std::ostream& to) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// Fields of the server's answers. What is absent, null or of another type is "absent", never an exception.
std::string text_at(const nlohmann::json& object, const char* key);  // "" when absent
std::optional<std::uint64_t> number_at(const nlohmann::json& object, const char* key);
bool flag_at(const nlohmann::json& object, const char* key);
std::optional<WallMicros> time_at(const nlohmann::json& object, const char* key);
const nlohmann::json& array_at(const nlohmann::json& object, const char* key);  // an empty array when absent

}  // namespace tidemark::cli
