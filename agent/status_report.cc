// The forms of a status report: JSON both ways, and words.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "agent/status_board.h"

namespace tidemark::agent {
namespace {

using Json = nlohmann::json;
constexpr std::array<std::string_view, 10> kStates = {
    "stopped", "initiating", "initial-sync", "creating-first-point", "continuous", "backlog",
    "rescan",  "paused",     "stalled",      "disconnected"};

Json time_or_null(WallMicros time_us) { return time_us == 0 ? Json(nullptr) : Json(format_rfc3339(time_us)); }
Json number_or_null(EpochNumber number) { return number.value() == 0 ? Json(nullptr) : Json(number.value()); }

WallMicros time_in(const Json& json, const char* key) {
  const Json& value = json.at(key);
  if (value.is_null()) return 0;
  const auto time = parse_rfc3339(value.get<std::string>());
  if (!time) throw std::invalid_argument(time.error().message());
  return *time;
}
EpochNumber number_in(const Json& json, const char* key) {
  const Json& value = json.at(key);
  return value.is_null() ? EpochNumber() : EpochNumber(value.get<std::uint64_t>());
}

// The moment up to which the newest point is known to hold what the machine holds.
WallMicros as_of(const StatusReport& report) { return std::max(report.newest_point_us, report.unchanged_as_of_us); }

std::string duration_text(std::uint64_t seconds) {
  if (seconds >= 3600) return fmt::format("{}h{:02}m", seconds / 3600, seconds / 60 % 60);
  if (seconds >= 60) return fmt::format("{}m{:02}s", seconds / 60, seconds % 60);
  return fmt::format("{}s", seconds);
}

double percent_of(const StatusReport& report) {
  if (report.total_bytes == 0) return 0;
  return 100.0 * static_cast<double>(std::min(report.done_bytes, report.total_bytes)) /
         static_cast<double>(report.total_bytes);
}

std::optional<std::uint64_t> eta_of(const StatusReport& report) {
  if (report.rate_bytes_per_second == 0 || report.done_bytes >= report.total_bytes) return std::nullopt;
  return (report.total_bytes - report.done_bytes) / report.rate_bytes_per_second + 1;
}

}  // namespace

std::string size_text(std::uint64_t bytes) {
  constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, units[unit]);
}

std::string_view to_string(State state) { return kStates.at(static_cast<std::size_t>(state)); }

void StatusReport::take(const Memory& memory) {
  durable_epoch = memory.session.durable_epoch;
  durable_consistency = memory.durable ? std::string(to_string(memory.durable->consistency)) : "";
  newest_point = memory.newest_point;
  newest_point_us = memory.newest_point_us;
  unchanged_as_of_us = memory.unchanged_as_of_us;
  alarm = memory.alarm;
  alarm_us = memory.alarm_us;
  proven_us = memory.audit.proven_us;
  differences = memory.audit.differences;
  difference = memory.audit.difference;
  difference_us = memory.audit.difference_us;
}

std::string report_json(const StatusReport& report, WallMicros now_us, std::optional<bool> running) {
  Json disks = Json::array();
  for (const DiskStatus& disk : report.disks) {
    disks.push_back({{"path", disk.path},
                     {"name", disk.name},
                     {"disk", disk.disk < 0 ? Json(nullptr) : Json(disk.disk)},
                     {"size", disk.size}});
  }
  const auto eta = eta_of(report);
  nlohmann::ordered_json json;
  if (running) json["running"] = *running;
  json["pid"] = report.pid;
  json["updated"] = time_or_null(report.updated_us);
  json["machine"] = report.machine.to_string();
  json["name"] = report.name;
  json["command"] = report.command;
  json["server"] = report.server;
  json["connected"] = report.connected;
  json["state"] = to_string(report.state);
  json["state_since"] = time_or_null(report.state_since_us);
  json["percent"] = report.total_bytes == 0 ? Json(nullptr) : Json(percent_of(report));
  json["eta_seconds"] = eta ? Json(*eta) : Json(nullptr);
  json["rate_bytes_per_second"] = report.rate_bytes_per_second;
  json["done_bytes"] = report.done_bytes;
  json["total_bytes"] = report.total_bytes;
  json["lag_seconds"] = as_of(report) == 0
                            ? Json(nullptr)
                            : Json(static_cast<double>(std::max<WallMicros>(0, now_us - as_of(report))) / 1e6);
  json["backlog_bytes"] = report.backlog_bytes;
  json["durable_epoch"] = number_or_null(report.durable_epoch);
  json["durable_consistency"] = report.durable_consistency.empty() ? Json(nullptr) : Json(report.durable_consistency);
  json["newest_point"] = number_or_null(report.newest_point);
  json["newest_point_time"] = time_or_null(report.newest_point_us);
  json["unchanged_as_of"] = time_or_null(report.unchanged_as_of_us);
  json["application_point"] = number_or_null(report.application_point);
  json["application_point_time"] = time_or_null(report.application_point_us);
  json["hooks_failure"] = report.hooks_failure;
  json["hooks_failure_time"] = time_or_null(report.hooks_failure_us);
  json["rate_limit_mib_s"] = report.rate_cap ? Json(report.rate_cap->limit_mib_s) : Json(nullptr);
  json["rate_limit_until"] = time_or_null(report.rate_cap ? report.rate_cap->until_us : 0);
  json["cause"] = report.cause;
  json["remedy"] = report.remedy;
  json["limited_by"] = report.limited_by;
  json["alarm"] = report.alarm;
  json["alarm_time"] = time_or_null(report.alarm_us);
  json["proven_as_of"] = time_or_null(report.proven_us);
  json["differences"] = report.differences;
  json["difference"] = report.difference;
  json["difference_time"] = time_or_null(report.difference_us);
  json["tracking"] = report.tracking;
  json["tracking_since"] = time_or_null(report.tracking_since_us);
  json["tracking_reason"] = report.tracking_reason;
  json["disks"] = disks;
  json["certificate_expires"] = time_or_null(report.certificate_expires_us);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<StatusReport> parse_report(const std::string& text, const std::string& name) {
  try {
    const Json json = Json::parse(text);
    StatusReport report;
    report.pid = json.at("pid").get<std::int64_t>();
    report.updated_us = time_in(json, "updated");
    report.machine = MachineId::parse(json.at("machine").get<std::string>()).value_or(MachineId());
    report.name = json.at("name").get<std::string>();
    report.command = json.at("command").get<std::string>();
    report.server = json.at("server").get<std::string>();
    report.connected = json.at("connected").get<bool>();
    const auto state = std::find(kStates.begin(), kStates.end(), json.at("state").get<std::string>());
    if (state == kStates.end()) throw std::invalid_argument("unknown state");
    report.state = static_cast<State>(state - kStates.begin());
    report.state_since_us = time_in(json, "state_since");
    report.rate_bytes_per_second = json.at("rate_bytes_per_second").get<std::uint64_t>();
    report.done_bytes = json.at("done_bytes").get<std::uint64_t>();
    report.total_bytes = json.at("total_bytes").get<std::uint64_t>();
    report.backlog_bytes = json.at("backlog_bytes").get<std::uint64_t>();
    report.durable_epoch = number_in(json, "durable_epoch");
    if (!json.at("durable_consistency").is_null())
      report.durable_consistency = json.at("durable_consistency").get<std::string>();
    report.newest_point = number_in(json, "newest_point");
    report.newest_point_us = time_in(json, "newest_point_time");
    report.unchanged_as_of_us = time_in(json, "unchanged_as_of");
    report.application_point = number_in(json, "application_point");
    report.application_point_us = time_in(json, "application_point_time");
    report.hooks_failure = json.at("hooks_failure").get<std::string>();
    report.hooks_failure_us = time_in(json, "hooks_failure_time");
    if (!json.at("rate_limit_mib_s").is_null())
      report.rate_cap = RateCap{json.at("rate_limit_mib_s").get<double>(), time_in(json, "rate_limit_until")};
    report.cause = json.at("cause").get<std::string>();
    report.remedy = json.at("remedy").get<std::string>();
    report.limited_by = json.at("limited_by").get<std::string>();
    report.alarm = json.at("alarm").get<std::string>();
    report.alarm_us = time_in(json, "alarm_time");
    report.proven_us = time_in(json, "proven_as_of");
    report.differences = json.at("differences").get<std::uint64_t>();
    report.difference = json.at("difference").get<std::string>();
    report.difference_us = time_in(json, "difference_time");
    report.tracking = json.at("tracking").get<std::string>();
    report.tracking_since_us = time_in(json, "tracking_since");
    report.tracking_reason = json.at("tracking_reason").get<std::string>();
    report.certificate_expires_us = time_in(json, "certificate_expires");
    for (const Json& disk : json.at("disks")) {
      report.disks.push_back({disk.at("path").get<std::string>(), disk.at("name").get<std::string>(),
                              disk.at("disk").is_null() ? -1 : disk.at("disk").get<std::int64_t>(),
                              disk.at("size").get<std::uint64_t>()});
    }
    return report;
  } catch (const std::exception& error) {
    return fail(Code::corrupt, name, std::string("the status file is damaged: ") + error.what(),
                "it is written anew by the next run or sync");
  }
}

std::string report_text(const StatusReport& report, WallMicros now_us, bool running) {
  std::string text = fmt::format("machine    {} ({})\nserver     {}{}\n", report.name, report.machine.to_string(),
                                 report.server, running ? (report.connected ? ", connected" : ", not connected") : "");
  text += fmt::format("state      {}{}\n", to_string(report.state),
                      report.state_since_us == 0 ? "" : " since " + format_rfc3339(report.state_since_us));
  if (!report.cause.empty()) text += "cause      " + report.cause + "\n";
  if (!report.remedy.empty()) text += "remedy     " + report.remedy + "\n";
  if (running && report.total_bytes > 0 && report.done_bytes < report.total_bytes)
    text += "progress   " + progress_line(report, 40) + "\n";
  if (running && !report.limited_by.empty()) text += "limited by " + report.limited_by + "\n";
  if (report.newest_point.value() != 0) {
    text +=
        fmt::format("point      epoch {} of {}", report.newest_point.value(), format_rfc3339(report.newest_point_us));
    if (report.unchanged_as_of_us > report.newest_point_us)
      text += ", unchanged as of " + format_rfc3339(report.unchanged_as_of_us);
    text += fmt::format(
        "\nlag        {}\n",
        duration_text(static_cast<std::uint64_t>(std::max<WallMicros>(0, now_us - as_of(report)) / 1'000'000)));
  } else {
    text += "point      none yet\n";
  }
  if (report.durable_epoch.value() != 0) {
    text += fmt::format("durable    epoch {}{}\n", report.durable_epoch.value(),
                        report.durable_consistency.empty() ? "" : ", " + report.durable_consistency);
  }
  if (report.proven_us != 0) text += "complete   proven by comparison as of " + format_rfc3339(report.proven_us) + "\n";
  if (report.differences != 0) {
    text += fmt::format("DIFFERED   {} blocks so far, the last one at {}: {}\n", report.differences,
                        format_rfc3339(report.difference_us), report.difference);
  }
  if (report.application_point.value() != 0)
    text += fmt::format("app point  epoch {} of {}\n", report.application_point.value(),
                        format_rfc3339(report.application_point_us));
  if (!report.hooks_failure.empty())
    text += fmt::format("hooks      {}: {}\n", format_rfc3339(report.hooks_failure_us), report.hooks_failure);
  if (running && report.rate_cap && (report.rate_cap->limit_mib_s > 0 || report.rate_cap->until_us != 0)) {
    text += "rate       " +
            (report.rate_cap->limit_mib_s > 0 ? fmt::format("at most {:g} MiB/s", report.rate_cap->limit_mib_s)
                                              : std::string("no limit")) +
            (report.rate_cap->until_us == 0 ? "" : " until " + format_rfc3339(report.rate_cap->until_us)) + "\n";
  }
  if (report.tracking == "ebpf") {
    text += "tracking   in the kernel (ebpf), gapless since " + format_rfc3339(report.tracking_since_us) + "\n";
  } else if (!report.tracking.empty()) {
    text += fmt::format("tracking   none: everything is compared by digests ({})\n", report.tracking_reason);
  }
  if (report.backlog_bytes > 0) text += "backlog    " + size_text(report.backlog_bytes) + "\n";
  for (const DiskStatus& disk : report.disks)
    text += fmt::format("disk       {} ({})\n", disk.path, size_text(disk.size));
  if (report.certificate_expires_us != 0)
    text += "certificate expires " + format_rfc3339(report.certificate_expires_us) + "\n";
  if (!report.alarm.empty()) text += fmt::format("ALARM      {}: {}\n", format_rfc3339(report.alarm_us), report.alarm);
  return text;
}

std::string progress_line(const StatusReport& report, std::size_t width) {
  const double percent = percent_of(report);
  const std::size_t full = std::min(width, static_cast<std::size_t>(percent / 100 * static_cast<double>(width)));
  std::string line =
      fmt::format("[{}{}] {:5.1f} %  {} of {}  {}/s", std::string(full, '#'), std::string(width - full, '.'), percent,
                  size_text(report.done_bytes), size_text(report.total_bytes), size_text(report.rate_bytes_per_second));
  if (const auto eta = eta_of(report)) line += "  " + duration_text(*eta) + " left";
  return line;
}

}  // namespace tidemark::agent
