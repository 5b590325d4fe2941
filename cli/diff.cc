#include "cli/diff.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/json_lines.h"
#include "cli/output.h"
#include "cli/point.h"

namespace tidemark::cli {

using nlohmann::json;

Result<json> read_diff(AdminClient& client, const DiffRequest& request,
                       const std::function<Status(std::uint64_t, const Extent&)>& take) {
  json totals;
  JsonLines lines([&](const json& said) -> Status {
    if (said.contains("ok")) totals = said;
    const auto offset = number_at(said, "offset");
    if (!offset) return {};
    const auto disk = number_at(said, "disk"), length = number_at(said, "length");
    if (!disk || !length) return odd_answer("a range without a disk or a length");
    return take(*disk, {*offset, *length, flag_at(said, "zero")});
  });
  AdminClient::StreamRequest stream;
  stream.path =
      machine_path(request.machine, "/diff?from=" + path_segment(request.from) + "&to=" + path_segment(request.to) +
                                        (request.written ? "" : "&compare=1"));
  if (!request.disk.empty()) stream.path += "&disk=" + path_segment(request.disk);
  TIDEMARK_TRY(client.stream(stream, [&](std::span<const std::byte> bytes) { return lines.feed(bytes); }));
  TIDEMARK_TRY(lines.finish());
  if (totals.is_null())
    return fail(Code::unavailable, client.socket_path(), "the server stopped before the comparison was through",
                "see tidemarkd's log, then try again");
  return totals;
}

Outcome run_diff(Context& context, const DiffRequest& asked) {
  DiffRequest request = asked;
  // Which points are meant is settled once.
  const Point first = TIDEMARK_TRY(read_point(context.client, request.machine, request.from));
  const Point second = TIDEMARK_TRY(read_point(context.client, request.machine, request.to));
  const bool turned = first.epoch > second.epoch;
  const Point& older = turned ? second : first;
  const Point& newer = turned ? first : second;
  Point chosen = newer;
  TIDEMARK_TRY(choose_disk(chosen, request.machine, request.disk));
  request.from = exactly(older.epoch);
  request.to = exactly(newer.epoch);

  std::ostream& out = context.out;
  const auto name_of = [&](std::uint64_t number) {
    for (const Disk& disk : chosen.disks)
      if (disk.number == number) return clean(disk.name);
    return std::to_string(number);
  };
  // For people as they come. A document is written when all are there, and nothing can go wrong any more.
  bool begun = false;
  std::vector<std::pair<std::uint64_t, Extent>> ranges;
  const auto take = [&](std::uint64_t disk, const Extent& range) -> Status {
    if (context.json) {
      ranges.emplace_back(disk, range);
      return {};
    }
    if (!std::exchange(begun, true)) out << fmt::format("{:<16} {:>16} {:>14}\n", "DISK", "OFFSET", "LENGTH");
    out << fmt::format("{:<16} {:>16} {:>14}{}\n", name_of(disk), range.offset, range.length,
                       range.zero ? "  zeroes now" : "");
    return {};
  };
  json totals = TIDEMARK_TRY(read_diff(context.client, request, take));
  if (context.json) {
    totals.erase("ok");
    totals["machine"] = request.machine;
    std::string head = totals.dump(-1, ' ', false, json::error_handler_t::replace);
    head.pop_back();  // the brace: the ranges, which may be many, follow one by one
    out << head << ",\"ranges\":[";
    for (bool first_one = true; const auto& [disk, range] : ranges) {
      out << (std::exchange(first_one, false) ? "\n" : ",\n")
          << json{{"disk", disk}, {"offset", range.offset}, {"length", range.length}, {"zero", range.zero}}.dump();
    }
    out << "]}\n";
    return 0;
  }
  for (const json& disk : array_at(totals, "disks"))
    out << fmt::format("{}: {} {} between epoch {} and epoch {}\n", clean(text_at(disk, "name")),
                       human_size(number_at(disk, "changed_bytes").value_or(0)),
                       request.written ? "written" : "changed", older.epoch, newer.epoch);
  return 0;
}

}  // namespace tidemark::cli
