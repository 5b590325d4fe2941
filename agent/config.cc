#include "agent/config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <charconv>
#include <set>

#include "agent/text_file.h"
#include "base/limits.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {

constexpr std::size_t kRateWindowsMax = 32;

class Reader {
 public:
  Reader(const toml::table& table, const std::string& name) : table_(table), name_(name) {}

  template <typename T>
  Status read(const char* key, T& value, const char* type) {
    known_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return {};
    if (const auto found = node->value_exact<T>()) {
      value = *found;
      return {};
    }
    return bad(key, *node, std::string("must be ") + type);
  }

  Status read_number(const char* key, double& value, double low, double high) {
    known_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return {};
    if (!node->is_number()) return bad(key, *node, "must be a number");
    value = node->value<double>().value_or(0);
    if (!(value >= low && value <= high)) return bad(key, *node, fmt::format("must be from {} to {}", low, high));
    return {};
  }

  bool is_auto(const char* key) {
    const auto text = table_[key].value_exact<std::string>();
    if (text == "auto") known_.insert(key);
    return text == "auto";
  }

  // What must be there.
  template <typename T>
  Status require(const char* key, T& value, const char* type) {
    TIDEMARK_TRY(read(key, value, type));
    if (table_.get(key) == nullptr) return missing(key, type);
    return {};
  }
  std::unexpected<Error> missing(const char* key, const char* type) const {
    return bad(key, table_, std::string("is missing: it must be ") + type);
  }

  // The tables of [[key]].
  Result<std::vector<const toml::table*>> read_tables(const char* key, std::size_t count_max) {
    known_.insert(key);
    std::vector<const toml::table*> tables;
    const toml::node* node = table_.get(key);
    if (node == nullptr) return tables;
    const toml::array* array = node->as_array();
    if (array == nullptr || array->size() > count_max)
      return bad(key, *node, fmt::format("must be at most {} tables [[{}]]", count_max, key));
    for (const toml::node& element : *array) {
      if (!element.is_table()) return bad(key, element, fmt::format("must be tables [[{}]]", key));
      tables.push_back(element.as_table());
    }
    return tables;
  }

  Status read_list(const char* key, std::vector<std::string>& value) {
    known_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return {};
    const toml::array* array = node->as_array();
    if (array == nullptr) return bad(key, *node, "must be a list of paths");
    for (const toml::node& element : *array) {
      const auto text = element.value_exact<std::string>();
      if (!text) return bad(key, element, "must be a list of paths");
      value.push_back(*text);
    }
    return {};
  }

  std::unexpected<Error> bad(const char* key, std::string what) const {
    return bad(key, *table_.get(key), std::move(what));
  }

  Status no_other_keys() const {
    for (const auto& [key, node] : table_) {
      const std::string text(key.str());
      if (known_.contains(text)) continue;
      std::string all;
      for (const std::string& one : known_) all += (all.empty() ? "" : ", ") + one;
      return fail(Code::invalid_argument, place(text, node), "unknown key", "known are: " + all);
    }
    return {};
  }

 private:
  std::string place(const std::string& key, const toml::node& node) const {
    return fmt::format("{}:{}: {}", name_, node.source().begin.line, key);
  }
  std::unexpected<Error> bad(const char* key, const toml::node& node, std::string what) const {
    return fail(Code::invalid_argument, place(key, node), std::move(what), "correct the file");
  }

  const toml::table& table_;
  const std::string& name_;
  std::set<std::string> known_;
};

Result<toml::table> parse_toml(std::string_view text, const std::string& name) {
  try {
    return toml::parse(text, std::string_view(name));
  } catch (const toml::parse_error& error) {
    return fail(Code::invalid_argument, fmt::format("{}:{}", name, error.source().begin.line),
                "not TOML: " + std::string(error.description()), "correct the file");
  }
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Byte offset of a place that toml++ names: lines by '\n', columns by code points, both from 1.
std::size_t offset_of(std::string_view text, const toml::source_position& place) {
  std::size_t at = 0;
  for (toml::source_index line = 1; line < place.line; ++line) at = text.find('\n', at) + 1;
  for (toml::source_index column = 1; column < place.column && at < text.size(); ++column) {
    ++at;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) ++at;
  }
  return at;
}

Result<std::string> replace_value(std::string_view text, const std::string& name, const std::string& key,
                                  const std::string& value) {
  const toml::table table = TIDEMARK_TRY(parse_toml(text, name));
  std::string changed(text);
  if (const toml::node* node = table.get(key)) {
    const std::size_t begin = offset_of(text, node->source().begin);
    const std::size_t end = offset_of(text, node->source().end);
    changed.replace(begin, end - begin, value);
  } else {
    // At the front: a key behind a [table] would be another one.
    changed.insert(0, key + " = " + value + "\n");
  }
  // What is about to be written must read back as what was meant.
  if (const auto again = parse_toml(changed, name); !again || again->get(key) == nullptr) {
    return fail(Code::internal, name, "could not set " + key, "edit the file by hand");
  }
  return changed;
}

// One of [[rate_schedule]].
Result<RateWindow> parse_window(const toml::table& table, const std::string& name) {
  Reader reader(table, name);
  std::string from, to, days = "daily";
  double limit = 0;
  TIDEMARK_TRY(reader.require("from", from, "a text, HH:MM"));
  TIDEMARK_TRY(reader.require("to", to, "a text, HH:MM"));
  TIDEMARK_TRY(reader.read("days", days, "a text, as mon-fri"));
  TIDEMARK_TRY(reader.read_number("limit_mib_s", limit, 0, 1e6));
  TIDEMARK_TRY(reader.no_other_keys());
  if (table.get("limit_mib_s") == nullptr) return reader.missing("limit_mib_s", "a number, 0 for no limit");
  const auto bad = [&](const char* key, const Error& error) {
    return reader.bad(key, fmt::format("\"{}\" {}: {}", error.object, error.what, error.remedy));
  };
  const auto begin = parse_time_of_day(from, false);
  if (!begin) return bad("from", begin.error());
  const auto end = parse_time_of_day(to, true);
  if (!end) return bad("to", end.error());
  if (*begin == *end) return reader.bad("to", "is the same as from: for a whole day write 00:00 to 24:00");
  const auto on = parse_days(days);
  if (!on) return bad("days", on.error());
  return RateWindow{*begin, *end, *on, limit};
}

}  // namespace

Status check_address(const std::string& address) {
  const auto bad = [&](const char* what) {
    return fail(Code::invalid_argument, address, what, "write HOST:PORT, an IPv6 address in brackets");
  };
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return bad("no host and port");
  const std::string host = address.substr(0, colon);
  if (host.find(':') != std::string::npos && (host.front() != '[' || host.back() != ']'))
    return bad("no host and port");
  if (host.find_first_of(" \t\n/@") != std::string::npos) return bad("not a host name");
  unsigned port = 0;
  const char* end = address.data() + address.size();
  const auto [stop, error] = std::from_chars(address.data() + colon + 1, end, port);
  if (error != std::errc() || stop != end || port == 0 || port > 65535)
    return bad("its port is no number from 1 to 65535");
  return {};
}

Result<Config> parse_config(std::string_view text, const std::string& name) {
  const toml::table table = TIDEMARK_TRY(parse_toml(text, name));
  Reader reader(table, name);
  Config config;
  double interval_s = 0, freeze_limit_s = 10, zstd_level = -1, audit_days = 7, hook_limit_s = 30, hold_limit_s = 60;
  double application_points_every_s = 0;
  TIDEMARK_TRY(reader.read("server", config.server, "a text, HOST:PORT"));
  TIDEMARK_TRY(reader.read("name", config.name, "a text"));
  TIDEMARK_TRY(reader.read_list("disks", config.disks));
  TIDEMARK_TRY(reader.read("all_disks", config.all_disks, "true or false"));
  TIDEMARK_TRY(reader.read_list("except_disks", config.except_disks));
  TIDEMARK_TRY(reader.read_number("interval_s", interval_s, 0.1, 86400));
  std::string tracking = "auto";
  TIDEMARK_TRY(reader.read("tracking", tracking, "auto, ebpf or digests"));
  TIDEMARK_TRY(reader.read("bpffs", config.bpffs, "a text, a folder"));
  TIDEMARK_TRY(reader.read("freeze", config.freeze, "true or false"));
  TIDEMARK_TRY(reader.read_number("freeze_limit_s", freeze_limit_s, 0.1, 60));
  TIDEMARK_TRY(reader.read("hooks", config.hooks, "a text, a folder"));
  TIDEMARK_TRY(reader.read_number("hook_limit_s", hook_limit_s, 0.1, 3600));
  TIDEMARK_TRY(reader.read_number("hold_limit_s", hold_limit_s, 0.1, 3600));
  TIDEMARK_TRY(reader.read_number("application_points_every_s", application_points_every_s, 0, 31 * 86400));
  if (!reader.is_auto("zstd_level")) TIDEMARK_TRY(reader.read_number("zstd_level", zstd_level, 0, 19));
  TIDEMARK_TRY(reader.read("skip_free_space", config.skip_free_space, "true or false"));
  TIDEMARK_TRY(reader.read_number("rate_limit_mib_s", config.rate_limit_mib_s, 0, 1e6));
  for (const toml::table* window : TIDEMARK_TRY(reader.read_tables("rate_schedule", kRateWindowsMax)))
    config.rate_schedule.push_back(TIDEMARK_TRY(parse_window(*window, name)));
  TIDEMARK_TRY(reader.read_number("audit_days", audit_days, 0, 365));
  TIDEMARK_TRY(reader.read("fingerprint_override", config.fingerprint_override, "a text"));
  TIDEMARK_TRY(reader.read("log_level", config.log_level, "a text"));
  TIDEMARK_TRY(reader.no_other_keys());
  const auto milliseconds = [](double seconds) {
    return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
  };
  config.interval = milliseconds(interval_s);
  config.freeze_limit = milliseconds(freeze_limit_s);
  config.hook_limit = milliseconds(hook_limit_s);
  config.hold_limit = milliseconds(hold_limit_s);
  config.application_points_every = milliseconds(application_points_every_s);
  if (zstd_level >= 0) config.zstd_level = static_cast<int>(zstd_level);
  config.audit_period = milliseconds(audit_days * 86'400);

  if (tracking == "ebpf") {
    config.tracking = Tracking::ebpf;
  } else if (tracking == "digests") {
    config.tracking = Tracking::digests;
  } else if (tracking != "auto") {
    return reader.bad("tracking", "must be auto, ebpf or digests");
  }
  if (!config.hooks.starts_with('/')) return reader.bad("hooks", "must be an absolute path");
  if (!config.bpffs.starts_with('/')) return reader.bad("bpffs", "must be an absolute path");
  if (!config.server.empty()) {
    if (const auto fits = check_address(config.server); !fits)
      return reader.bad("server", fits.error().what + ": " + config.server);
  }
  if (!config.name.empty() && !wire::valid_machine_name(config.name)) {
    return reader.bad("name",
                      fmt::format("must be letters, digits, '.', '_' and '-', at most {}", limits::kNameLengthMax));
  }
  if (config.disks.size() > limits::kDisksPerMachineMax) {
    return reader.bad("disks", fmt::format("must be at most {} disks", limits::kDisksPerMachineMax));
  }
  std::set<std::string> seen;
  for (const std::string& disk : config.disks) {
    if (!disk.starts_with('/')) return reader.bad("disks", "must be absolute paths, not \"" + disk + "\"");
    if (!seen.insert(disk).second) return reader.bad("disks", "has " + disk + " twice");
  }
  for (const std::string& disk : config.except_disks) {
    if (!disk.starts_with('/')) return reader.bad("except_disks", "must be absolute paths, not \"" + disk + "\"");
  }
  if (!std::set<std::string>{"debug", "info", "warn", "error", "off"}.contains(config.log_level)) {
    return reader.bad("log_level", "must be debug, info, warn, error or off");
  }
  return config;
}

Result<Config> load_config(const std::filesystem::path& path) {
  auto text = read_text_file(path);
  if (!text) {
    if (text.error().code == Code::not_found)
      text.error().remedy = "enrol this machine: tidemark-agent enroll --token T";
    return std::unexpected(std::move(text).error());
  }
  return parse_config(*text, path.string());
}

Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key, bool value) {
  return replace_value(text, name, key, value ? "true" : "false");
}

Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::string& value) {
  return replace_value(text, name, key, quoted(value));
}

Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::vector<std::string>& value) {
  std::string list = "[";
  for (std::size_t i = 0; i < value.size(); ++i) list += (i == 0 ? "" : ", ") + quoted(value[i]);
  return replace_value(text, name, key, list + "]");
}

Status save_disks(const std::filesystem::path& path, const ProtectedDisks& disks) {
  const std::string name = path.string();
  std::string text = TIDEMARK_TRY(read_text_file(path));
  const Config before = TIDEMARK_TRY(parse_config(text, name));
  if (disks.except != before.except_disks) text = TIDEMARK_TRY(with_key(text, name, "except_disks", disks.except));
  if (disks.all != before.all_disks) text = TIDEMARK_TRY(with_key(text, name, "all_disks", disks.all));
  text = TIDEMARK_TRY(with_key(text, name, "disks", disks.disks));
  TIDEMARK_TRY(parse_config(text, name));
  return write_file_atomically(path, text, 0600);
}

}  // namespace tidemark::agent
