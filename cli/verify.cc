#include "cli/verify.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/json_lines.h"
#include "cli/output.h"
#include "cli/point.h"

namespace tidemark::cli {

using nlohmann::json;

Result<json> verify_point(AdminClient& client, const std::string& machine, const std::string& at, Progress& progress,
                          const std::function<void(const json&)>& damage) {
  const Point point = TIDEMARK_TRY(read_point(client, machine, at));
  std::uint64_t total = 0;
  for (const Disk& disk : point.disks) total += disk.size;
  progress.start(machine, total);

  json verdict;
  std::uint64_t current_disk = 0, done_before = 0, done_in_disk = 0;
  JsonLines lines([&](const json& said) -> Status {
    if (said.contains("ok")) {
      verdict = said;
      return {};
    }
    if (said.contains("what")) {
      if (damage) damage(said);
      return {};
    }
    const std::uint64_t disk = number_at(said, "disk").value_or(0);
    if (disk != current_disk) done_before += std::exchange(done_in_disk, 0);
    current_disk = disk;
    done_in_disk = number_at(said, "done").value_or(done_in_disk);
    progress.set(done_before + done_in_disk);
    return {};
  });
  AdminClient::StreamRequest request;
  request.method = "POST";
  request.path = point_path(machine, exactly(point.epoch), "/verify");
  TIDEMARK_TRY(client.stream(request, [&](std::span<const std::byte> bytes) { return lines.feed(bytes); }));
  TIDEMARK_TRY(lines.finish());
  progress.finish();
  if (verdict.is_null())
    return fail(Code::unavailable, client.socket_path(), "the server stopped before the verification was through",
                "see tidemarkd's log, then try again");
  verdict["machine"] = machine;
  verdict["epoch"] = point.epoch;
  verdict["time"] = text_at(point.answer, "time");
  verdict["bytes"] = total;
  return verdict;
}

Outcome run_verify(Context& context, const std::string& machine, const std::string& at) {
  Progress progress(context.err, context.terminal && !context.json);
  const auto started = context.clock.monotonic();
  const json verdict = TIDEMARK_TRY(verify_point(context.client, machine, at, progress, [&](const json& damage) {
    if (context.json) return;
    progress.finish();  // it is drawn again with the next step
    const std::uint64_t offset = number_at(damage, "offset").value_or(0);
    context.err << fmt::format("tidemark: {}/{}: bytes {} to {} are damaged: {}\n", clean(machine),
                               clean(text_at(damage, "disk")), offset, offset + number_at(damage, "length").value_or(0),
                               clean(text_at(damage, "what")));
  }));
  const bool sound = flag_at(verdict, "ok");
  if (context.json) {
    answer(context, verdict);
    return sound ? 0 : 1;
  }
  const double seconds = std::chrono::duration<double>(context.clock.monotonic() - started).count();
  const auto time = time_at(verdict, "time");
  const std::string which =
      fmt::format("epoch {} of {}", number_at(verdict, "epoch").value_or(0), time ? human_time(*time) : "-");
  if (sound) {
    if (const auto digests = verdict.find("sha256"); digests != verdict.end() && digests->is_object())
      for (const auto& [disk, digest] : digests->items())
        context.out << clean(disk) << "  sha256 " << (digest.is_string() ? digest.get<std::string>() : digest.dump())
                    << '\n';
    const std::uint64_t bytes = number_at(verdict, "bytes").value_or(0);
    context.out << fmt::format(
        "{}: {}: every block is what was stored; {} in {:.1f} s, {}/s\n", clean(machine), which, human_size(bytes),
        seconds, human_size(static_cast<std::uint64_t>(static_cast<double>(bytes) / std::max(seconds, 0.001))));
    return 0;
  }
  const std::uint64_t count = number_at(verdict, "damaged_count").value_or(array_at(verdict, "damaged").size());
  const Error error{Code::corrupt, machine + ", " + which,
                    fmt::format("{} block{} of it {} damaged", count, count == 1 ? "" : "s", count == 1 ? "is" : "are"),
                    "recover from another point: `tidemark points " + machine + "`; `tidemark damage " + machine +
                        "` tells which points are affected"};
  context.err << "tidemark: " << clean(error.message()) << '\n';
  return 1;
}

}  // namespace tidemark::cli
