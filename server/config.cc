#include "server/config.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "net/connect.h"

namespace tidemark::server {
namespace {

constexpr std::uint64_t kDurationMax = 100ULL * 366 * 86'400;
constexpr std::uint64_t kHoldoffMax = 366ULL * 86'400;

std::string place(const std::string& origin, const toml::source_region& source) {
  return fmt::format("{}:{}", origin, source.begin.line);
}

std::string size_text(std::uint64_t bytes) {
  if (bytes != 0 && bytes % 1_GiB == 0) return fmt::format("{}GiB", bytes >> 30);
  if (bytes != 0 && bytes % 1_MiB == 0) return fmt::format("{}MiB", bytes >> 20);
  if (bytes != 0 && bytes % 1_KiB == 0) return fmt::format("{}KiB", bytes >> 10);
  return fmt::format("{}", bytes);
}

std::string duration_text(std::uint64_t seconds) {
  if (seconds != 0 && seconds % 86'400 == 0 && seconds != 86'400) return fmt::format("{}d", seconds / 86'400);
  if (seconds != 0 && seconds % 3'600 == 0) return fmt::format("{}h", seconds / 3'600);
  if (seconds != 0 && seconds % 60 == 0) return fmt::format("{}m", seconds / 60);
  return fmt::format("{}s", seconds);
}

// Takes keys out of one table, one after the other, and remembers the first thing that is wrong. What is left when
// all known keys were taken is unknown.
class Section {
 public:
  Section(const toml::table& root, std::string name, const std::string& origin, Status& status)
      : name_(std::move(name)), origin_(origin), status_(status) {
    const toml::node* node = root.get(name_);
    if (node == nullptr) return;
    table_ = node->as_table();
    if (table_ == nullptr) wrong(*node, name_, "must be a table", fmt::format("begin it with a line [{}]", name_));
  }

  void number(const char* key, std::uint32_t& value, std::uint32_t min, std::uint32_t max) {
    const toml::node* node = take(key);
    if (node == nullptr) return;
    const auto given = node->as_integer();
    const std::string allowed = fmt::format("allowed is a whole number from {} to {}", min, max);
    if (given == nullptr) return wrong(*node, key, "is not a whole number", allowed);
    if (given->get() < std::int64_t{min} || given->get() > std::int64_t{max})
      return wrong(*node, key, fmt::format("is {}", given->get()), allowed);
    value = static_cast<std::uint32_t>(given->get());
  }

  void size(const char* key, std::uint64_t& value, std::uint64_t min, std::uint64_t max, std::uint64_t multiple = 1) {
    const toml::node* node = take(key);
    if (node == nullptr) return;
    std::string allowed =
        fmt::format("allowed is a size from {} to {}, like 67108864 or \"64MiB\"", size_text(min), size_text(max));
    if (multiple > 1) allowed += fmt::format(", a multiple of {}", size_text(multiple));
    std::uint64_t given = 0;
    if (const auto integer = node->as_integer()) {
      if (integer->get() < 0) return wrong(*node, key, fmt::format("is {}", integer->get()), allowed);
      given = static_cast<std::uint64_t>(integer->get());
    } else if (const auto text = node->as_string()) {
      const auto parsed = parse_size(text->get());
      if (!parsed) return wrong(*node, key, fmt::format("is \"{}\", not a size", text->get()), allowed);
      given = *parsed;
    } else {
      return wrong(*node, key, "is neither a whole number nor a size in quotes", allowed);
    }
    if (given < min || given > max || given % multiple != 0)
      return wrong(*node, key, fmt::format("is {}", size_text(given)), allowed);
    value = given;
  }

  void share(const char* key, double& value, double min, double max) {
    const toml::node* node = take(key);
    const std::string allowed = fmt::format("allowed is a number from {} to {}", min, max);
    if (node == nullptr) {
      if (table_ != nullptr && value < min) wrong(*table_, key, fmt::format("is {}, by default", value), allowed);
      return;
    }
    const auto given = node->value<double>();
    if (!given || !node->is_number()) return wrong(*node, key, "is not a number", allowed);
    if (!(*given >= min && *given <= max)) return wrong(*node, key, fmt::format("is {}", *given), allowed);
    value = *given;
  }

  void duration(const char* key, std::uint64_t& seconds, std::uint64_t max) {
    const toml::node* node = take(key);
    if (node == nullptr) return;
    const std::string allowed = fmt::format(
        "allowed is a time from \"0s\" to \"{}\", like \"90s\", \"15m\", \"24h\" or \"2d\"", duration_text(max));
    const auto text = node->as_string();
    if (text == nullptr) return wrong(*node, key, "is not a time in quotes", allowed);
    const auto parsed = parse_duration(text->get());
    if (!parsed || *parsed > max) return wrong(*node, key, fmt::format("is \"{}\"", text->get()), allowed);
    seconds = *parsed;
  }

  void flag(const char* key, bool& value) {
    const toml::node* node = take(key);
    if (node == nullptr) return;
    const auto given = node->as_boolean();
    if (given == nullptr) return wrong(*node, key, "is not true or false", "write true or false, without quotes");
    value = given->get();
  }

  void text(const char* key, std::string& value, const std::vector<std::string>& allowed = {}) {
    const toml::node* node = take(key);
    if (node == nullptr) return;
    const auto given = node->as_string();
    if (given == nullptr) return wrong(*node, key, "is not a text", "write it in double quotes");
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), given->get()) == allowed.end())
      return wrong(*node, key, fmt::format("is \"{}\"", given->get()),
                   fmt::format("allowed are {}", fmt::join(allowed, ", ")));
    const bool may_be_empty = value.empty();
    value = given->get();
    if (const std::string name(key); name == "listen" && !(value.empty() && may_be_empty)) {
      if (!is_listening_address(value))
        return wrong(*node, key, fmt::format("is \"{}\", not an address to listen on", value),
                     "write an IP address and a port, like 0.0.0.0:7443 or [::]:7443");
    }
  }

  // After all keys: whatever else is there is not known.
  void done() {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      if (std::find(known_.begin(), known_.end(), key.str()) != known_.end()) continue;
      wrong(node, std::string(key.str()), "is not a known key",
            fmt::format("[{}] has {}", name_, fmt::join(known_, ", ")));
    }
  }

 private:
  const toml::node* take(const char* key) {
    known_.emplace_back(key);
    return table_ == nullptr ? nullptr : table_->get(key);
  }
  void wrong(const toml::node& node, const std::string& key, const std::string& what, const std::string& remedy) {
    if (!status_) return;
    const std::string full = key == name_ ? key : name_ + "." + key;
    status_ = fail(Code::invalid_argument, place(origin_, node.source()), fmt::format("{} {}", full, what), remedy);
  }

  std::string name_;
  const std::string& origin_;
  Status& status_;
  const toml::table* table_ = nullptr;
  std::vector<std::string> known_;
};

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  int shift = -1;
  if (unit.empty() || unit == "B") shift = 0;
  if (unit == "KiB" || unit == "K") shift = 10;
  if (unit == "MiB" || unit == "M") shift = 20;
  if (unit == "GiB" || unit == "G") shift = 30;
  if (unit == "TiB" || unit == "T") shift = 40;
  if (error != std::errc() || shift < 0 || number > (UINT64_MAX >> shift))
    return fail(Code::invalid_argument, std::string(text), "not a size", "write it like 4096, 512KiB, 64MiB, 1GiB");
  return number << shift;
}

Result<std::uint64_t> parse_duration(std::string_view text) {
  std::uint64_t amount = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), amount);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  std::uint64_t seconds = 0;
  if (unit == "s") seconds = 1;
  if (unit == "m") seconds = 60;
  if (unit == "h") seconds = 3'600;
  if (unit == "d") seconds = 86'400;
  if (error != std::errc() || seconds == 0 || amount > kDurationMax / seconds)
    return fail(Code::invalid_argument, std::string(text), "not a time", "write it like 90s, 15m, 24h or 2d");
  return amount * seconds;
}

bool is_agent_address(const std::string& text) {
  const auto parsed = net::parse_host_port(text);
  return parsed && parsed->port != 0 && text.ends_with(":" + std::to_string(parsed->port));
}

bool is_listening_address(const std::string& text) {
  const auto parsed = net::parse_host_port(text);
  if (!parsed || !text.ends_with(":" + std::to_string(parsed->port))) return false;
  in6_addr address;
  return ::inet_pton(AF_INET, parsed->host.c_str(), &address) == 1 ||
         ::inet_pton(AF_INET6, parsed->host.c_str(), &address) == 1;
}

Result<Config> parse_config(std::string_view text, const std::string& origin) {
  toml::table root;
  try {
    root = toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    return fail(Code::invalid_argument, place(origin, error.source()), std::string(error.description()),
                "it must be TOML: [section], then key = value");
  }
  Config config;
  Status status;

  Section server(root, "server", origin, status);
  server.text("listen", config.server.listen);
  server.text("admin_socket", config.server.admin_socket);
  server.number("shards", config.server.shards, 0, 256);
  server.flag("pin", config.server.pin);
  server.text("log_level", config.server.log_level, {"trace", "debug", "info", "warning", "error"});
  server.text("log_format", config.server.log_format, {"text", "json"});
  server.done();

  Section bounds(root, "limits", origin, status);
  bounds.number("sessions", config.limits.sessions, 1, 1'000'000);
  bounds.number("handshakes", config.limits.handshakes, 1, 4096);
  bounds.number("per_source_handshakes", config.limits.per_source_handshakes, 1, 1'000'000);
  bounds.size("session_credit", config.limits.session_credit, limits::kSessionCreditMin, limits::kSessionCreditMax);
  bounds.size("memory", config.limits.memory, 64_MiB, 1_TiB);
  bounds.done();

  Section storage(root, "storage", origin, status);
  storage.size("segment_size", config.storage.segment_size, limits::kSegmentSizeMin, limits::kSegmentSizeMax, 1_MiB);
  storage.number("reserve_segments", config.storage.reserve_segments, 1, 64);
  storage.size("free_space_min", config.storage.free_space_min, 0, 1024_TiB);
  storage.share("high_water", config.storage.high_water, 0.1, 1.0);
  storage.share("full_water", config.storage.full_water, config.storage.high_water, 1.0);
  storage.number("commits_in_flight", config.storage.commits_in_flight, 1, limits::kCommitsInFlightMax);
  storage.size("index_cache", config.storage.index_cache, 1_MiB, 1_TiB);
  storage.duration("settle_after", config.storage.settle_after, 365 * 86'400);
  storage.size("settle_rate", config.storage.settle_rate, 1_MiB, 1_TiB);
  storage.size("verify_rate", config.storage.verify_rate, 1_MiB, 1_TiB);
  storage.size("scrub_rate", config.storage.scrub_rate, 1_MiB, 1_TiB);
  storage.duration("scrub_interval", config.storage.scrub_interval, 366 * 86'400);
  storage.flag("encryption", config.storage.encryption);
  storage.text("master_key_file", config.storage.master_key_file);
  storage.done();

  Section nbd(root, "nbd", origin, status);
  nbd.text("socket", config.nbd.socket);
  nbd.text("listen", config.nbd.listen);
  nbd.text("tls", config.nbd.tls, {"required", "off"});
  nbd.number("threads", config.nbd.threads, 0, 256);
  nbd.number("connections", config.nbd.connections, 1, 65536);
  nbd.size("cache", config.nbd.cache, 1_MiB, 1_TiB);
  nbd.size("memory", config.nbd.memory, 64_MiB, 1_TiB);
  nbd.done();

  Section alarms(root, "alarms", origin, status);
  alarms.number("no_point_minutes", config.alarms.no_point_minutes, 1, 7 * 24 * 60);
  alarms.done();

  Section retention(root, "retention", origin, status);
  retention.duration("removal_holdoff", config.retention.removal_holdoff, kHoldoffMax);
  retention.done();

  for (const auto& [key, node] : root) {
    const std::string_view name = key.str();
    if (status && name != "server" && name != "limits" && name != "storage" && name != "nbd" && name != "alarms" &&
        name != "retention")
      status =
          fail(Code::invalid_argument, place(origin, node.source()), fmt::format("{} is not a known section", name),
               "there are [server], [limits], [storage], [nbd], [alarms] and [retention]");
  }
  if (!status) return std::unexpected(status.error());
  return config;
}

Result<Config> load_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail_errno(errno, path, "open the configuration");
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) return fail(Code::io, path, "cannot read the configuration");
  return parse_config(text.str(), path);
}

std::string default_config_text(const std::string& listen) {
  const Config d;
  return fmt::format(
      R"(# Configuration of tidemarkd. A line that begins with # shows a default. `tidemarkd check-config FILE` checks it.

[server]
listen = "{}"                # where agents connect; port 0 lets the kernel choose
# admin_socket = ""                     # default: admin.sock in the data directory
# shards = 0                            # threads; 0: one per core, at most one per partition
# pin = true                            # keep each shard on a core of its own
# log_level = "{}"                    # trace, debug, info, warning, error
# log_format = "{}"                   # text (key=value) or json (one object a line)

[limits]
# sessions = {}                      # agents connected at a time
# handshakes = {}                       # TLS handshakes in flight per shard
# per_source_handshakes = {}           # connections a second from one address
# session_credit = "{}"               # bytes an agent may have in flight
# memory = "{}"                     # of buffers for frames that are being received

[storage]
# segment_size = "{}"                # of the log
# reserve_segments = {}                  # formatted ahead, per partition
# free_space_min = "{}"                  # below this nothing new is taken in; 0: what pruning needs, see the manual
# high_water = {}                     # above this share of the file system the fastest growers are slowed,
# full_water = {}                     # above this one they are paused
# commits_in_flight = {}                 # writes at a time, raised by itself as latency grows
# index_cache = "{}"                 # per partition
# settle_after = "{}"                   # the log is emptied into cold segments that long after it was written
# settle_rate = "{}"                # bytes per second that are moved then, per partition
# verify_rate = "{}"                # bytes per second of new data that are read back and checked
# scrub_rate = "{}"                  # bytes per second of a scrub, which reads everything
# scrub_interval = "{}"                 # from one scrub to the next; "0s": only `tidemark scrub start`
# encryption = {}                     # of what is stored; make a master key first: tidemarkd key init
# master_key_file = ""                  # default: master.key in the data directory; better on other media

[nbd]
# socket = ""                           # points and clones as disks; default: nbd.sock in the data directory; or "none"
# listen = ""                           # the same over TCP, like "0.0.0.0:10809"; default: not
# tls = "{}"                      # over TCP, with certificates of `tidemarkd certificate client`; or "off": anybody
# threads = {}                           # that read and decode; 0: twice the cores, 4 at least
# connections = {}                     # at a time
# cache = "{}"                      # of decoded blocks
# memory = "{}"                     # of requests under way

[alarms]
# no_point_minutes = {}                 # a machine without a new point for so long is an alarm

[retention]
# removal_holdoff = "{}"               # what an administrator removes can be taken back for so long; "0s": it cannot
)",
      listen, d.server.log_level, d.server.log_format, d.limits.sessions, d.limits.handshakes,
      d.limits.per_source_handshakes, size_text(d.limits.session_credit), size_text(d.limits.memory),
      size_text(d.storage.segment_size), d.storage.reserve_segments, size_text(d.storage.free_space_min),
      d.storage.high_water, d.storage.full_water, d.storage.commits_in_flight, size_text(d.storage.index_cache),
      duration_text(d.storage.settle_after), size_text(d.storage.settle_rate), size_text(d.storage.verify_rate),
      size_text(d.storage.scrub_rate), duration_text(d.storage.scrub_interval), d.storage.encryption, d.nbd.tls,
      d.nbd.threads, d.nbd.connections, size_text(d.nbd.cache), size_text(d.nbd.memory), d.alarms.no_point_minutes,
      duration_text(d.retention.removal_holdoff));
}

}  // namespace tidemark::server
