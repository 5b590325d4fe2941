#include "server/logging.h"

#include <fmt/format.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "base/clock.h"

namespace tidemark::server {
namespace {

bool plain_word(std::string_view value) {
  if (value.empty()) return false;
  for (const char c : value)
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c == 0x7f) return false;
  return true;
}

bool key_character(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

// Length of `key=` at the front of `text`, 0 when there is none.
std::size_t key_length(std::string_view text) {
  std::size_t n = 0;
  while (n < text.size() && key_character(text[n])) ++n;
  return n > 0 && n < text.size() && text[n] == '=' ? n + 1 : 0;
}

// Takes a value, quoted or bare, off the front.
std::string take_value(std::string_view& text) {
  std::string value;
  if (!text.empty() && text.front() == '"') {
    text.remove_prefix(1);
    while (!text.empty() && text.front() != '"') {
      if (text.front() == '\\' && text.size() > 1) {
        text.remove_prefix(1);
        value += text.front() == 'n' ? '\n' : text.front();
      } else {
        value += text.front();
      }
      text.remove_prefix(1);
    }
    if (!text.empty()) text.remove_prefix(1);
    return value;
  }
  const auto end = std::min(text.find(' '), text.size());
  value = text.substr(0, end);
  text.remove_prefix(end);
  return value;
}

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& to) override {
    const auto time = std::chrono::duration_cast<std::chrono::microseconds>(message.time.time_since_epoch()).count();
    const auto level = spdlog::level::to_string_view(message.level);
    const std::string line = fmt::format(
        "{{\"time\":\"{}\",\"level\":\"{}\",{}}}\n", format_rfc3339(time), std::string_view(level.data(), level.size()),
        log_line_to_json(std::string_view(message.payload.data(), message.payload.size())));
    to.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

}  // namespace

std::string json_escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20 || u == 0x7f) {
      out += fmt::format("\\u{:04x}", u);
    } else {
      out += c;
    }
  }
  return out;
}

std::string log_line_to_json(std::string_view line) {
  std::string event, fields;
  while (!line.empty()) {
    if (line.front() == ' ') {
      line.remove_prefix(1);
      continue;
    }
    if (const std::size_t n = key_length(line); n != 0) {
      const std::string_view key = line.substr(0, n - 1);
      line.remove_prefix(n);
      fields += fmt::format(",\"{}\":\"{}\"", key, json_escape(take_value(line)));
      continue;
    }
    const auto end = std::min(line.find(' '), line.size());
    if (!event.empty()) event += ' ';
    event += line.substr(0, end);
    line.remove_prefix(end);
  }
  return fmt::format("\"event\":\"{}\"{}", json_escape(event), fields);
}

std::string kv(std::string_view key, std::string_view value) {
  if (plain_word(value)) return fmt::format(" {}={}", key, value);
  std::string quoted;
  for (const char c : value) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      quoted += '?';
    } else {
      quoted += c;
    }
  }
  return fmt::format(" {}=\"{}\"", key, quoted);
}
std::string kv(std::string_view key, const char* value) { return kv(key, std::string_view(value)); }
std::string kv(std::string_view key, std::uint64_t value) { return fmt::format(" {}={}", key, value); }

std::string kv(const Error& error) {
  std::string text = kv("code", to_string(error.code));
  if (!error.object.empty()) text += kv("object", error.object);
  if (!error.what.empty()) text += kv("why", error.what);
  if (!error.remedy.empty()) text += kv("remedy", error.remedy);
  return text;
}

void start_logging(const std::string& level, const std::string& format) {
  auto logger = std::make_shared<spdlog::logger>("tidemarkd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(spdlog::level::from_str(level));
  if (format == "json") {
    logger->set_formatter(std::make_unique<JsonFormatter>());
  } else {
    logger->set_formatter(
        std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%fZ %^%l%$ %v", spdlog::pattern_time_type::utc));
  }
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace tidemark::server
