#include <httplib.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

constexpr std::size_t kPointsDefault = 1000;
constexpr std::size_t kPointsMax = 100'000;
constexpr std::uint64_t kMapStep = 1_GiB;

Result<json> list_points(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  std::size_t limit = kPointsDefault;
  if (request.has_param("limit")) {
    const std::string text = request.get_param_value("limit");
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
    if (error != std::errc() || end != text.data() + text.size() || limit == 0 || limit > kPointsMax)
      return fail(Code::invalid_argument, "limit", "is \"" + text + "\"",
                  "allowed is 1 to " + std::to_string(kPointsMax));
  }
  const std::string fuzzy = request.get_param_value("fuzzy");
  const auto points =
      TIDEMARK_TRY(place.partition->epochs(place.id, limit, fuzzy == "1" || fuzzy == "true", kIndexTimeout));
  json list = json::array();
  for (const auto& point : points) list.push_back(point_to_json(point, report.disks));
  return json{{"points", std::move(list)}};
}

Result<json> one_point(Node& node, const httplib::Request& request) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node, place, request.matches[2]));
  return point_to_json(point, report.disks);
}

// The map is written as it is found: a disk can have millions of ranges.
Status stream_map(Node& node, const httplib::Request& request, httplib::Response& response) {
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node, place, request.matches[2]));
  const auto disk = TIDEMARK_TRY(find_disk(report.disks, point, request.matches[3]));
  std::shared_ptr<storage::Reader> reader =
      TIDEMARK_TRY(place.partition->read(place.id, DiskId(disk.disk), EpochNumber(point.number()), kIndexTimeout));
  response.set_header("Tidemark-Epoch", std::to_string(point.number()));
  response.set_chunked_content_provider("application/json", [&node, reader](std::size_t, httplib::DataSink& sink) {
    const std::uint64_t size = reader->disk_size();
    std::string text = "{\"size\": " + std::to_string(size) + ", \"ranges\": [";
    bool first = true;
    for (std::uint64_t at = 0; at < size;) {
      if (node.stopping) return false;
      const auto ranges = reader->map(at, std::min(kMapStep, size - at));
      if (!ranges || ranges->empty())
        return false;  // the connection is cut: a map that is short is never taken for whole
      for (const auto& range : *ranges) {
        text += first ? "\n" : ",\n";
        first = false;
        text += "{\"offset\": " + std::to_string(range.offset) + ", \"length\": " + std::to_string(range.length) +
                ", \"zero\": " + (range.zero ? "true}" : "false}");
        at = range.offset + range.length;
      }
      if (text.size() > 64 << 10) {
        if (!sink.write(text.data(), text.size())) return false;
        text.clear();
      }
    }
    text += "\n]}\n";
    if (!sink.write(text.data(), text.size())) return false;
    sink.done();
    return true;
  });
  return {};
}

}  // namespace

void add_point_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines/([^/]+)/points", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, list_points(node, request));
  });
  http.Get("/v1/machines/([^/]+)/points/([^/]+)",
           [&node](const httplib::Request& request, httplib::Response& response) {
             answer(response, one_point(node, request));
           });
  http.Get("/v1/machines/([^/]+)/points/([^/]+)/disks/([^/]+)/map",
           [&node](const httplib::Request& request, httplib::Response& response) {
             if (const auto streamed = stream_map(node, request, response); !streamed)
               answer(response, streamed.error());
           });
}

}  // namespace tidemark::server
